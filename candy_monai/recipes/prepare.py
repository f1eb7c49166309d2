"""From a dataset folder to a plan and the cases that training reads. Writes only to the store, never to the dataset."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.folds import Fold, resolve_groups
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.inspection.checks import CheckedDataset, visit_dataset
from candy_monai.data.inspection.fingerprint import Fingerprint
from candy_monai.data.pipelines.description import OwnTransforms
from candy_monai.data.planning.files import adopted_plan, keep_plan, read_plan
from candy_monai.data.planning.plan import Plan, plan
from candy_monai.data.samples.store import CaseStore, StoredPrecision, store_bytes, unstored_cases
from candy_monai.errors import BadInputError, DatasetError, SettingsError
from candy_monai.files import check_writable

USABLE_SHARE = 0.7


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A dataset that is ready to be trained on.

    Attributes:
        dataset: The dataset as it is on disk.
        fingerprint: What was found in it.
        plan: What follows from that.
        store: The preprocessed cases.
        warnings: What is suspicious and does not stop training.
    """

    dataset: NNUNetDataset
    fingerprint: Fingerprint
    plan: Plan
    store: CaseStore
    warnings: tuple[str, ...]

    @property
    def store_folder(self) -> Path:
        """Where the preprocessed cases are."""
        return self.store.folder


def store_of(store: PathLike | None, out: PathLike) -> Path:
    """Return the folder for what is derived from datasets: the one asked for, or ``.store`` beside the experiments."""
    return Path(store) if store is not None else Path(out) / ".store"


def checked_dataset(folder: PathLike, store: Path, *, jobs: int | None = None) -> CheckedDataset:
    """Check a dataset whole; of cases that were found sound before and have not changed no file is decoded.

    Args:
        folder: The dataset's folder, nnU-Net format.
        store: The folder for what is derived from datasets.
        jobs: Cases that are decoded at once; None for one a processor.

    Returns:
        The dataset, with digests and fingerprint.

    Raises:
        DatasetError: If anything about the dataset would stop or spoil training; every problem is listed.
        SettingsError: If the store lies inside the dataset.
        BadInputError: If the store's folder cannot be written to.
    """
    if store.resolve().is_relative_to(Path(folder).resolve()):
        raise SettingsError(f"{store}: inside the dataset, which is never written to; choose --out or --store")
    check_writable(store)
    checked = visit_dataset(folder, store=store, num_workers=jobs)
    if checked.report.problems:
        raise DatasetError(folder, checked.report.problems)
    if checked.fingerprint is None:
        raise DatasetError(folder, ["imagesTr: no case; training needs at least one image with its label"])
    return checked


def chosen_folds(
    dataset: NNUNetDataset,
    *,
    num_folds: int | None = None,
    groups: str | None = None,
    stratify: str | None = None,
    splits: PathLike | None = None,
) -> tuple[Fold, ...]:
    """Return the folds that a user chose by the command line's options; by default the dataset's own, or nnU-Net's.

    Args:
        dataset: The dataset.
        num_folds: How many to make; None for 5, or one a case.
        groups: Regular expression or CSV file: cases of a group stay on one side of a fold.
        stratify: Regular expression or CSV file: each fold gets its share of each kind of case.
        splits: A ``splits_final.json`` that says the folds.

    Raises:
        SettingsError: If the options contradict each other or do not fit the cases.
        DatasetError: If the split file names unknown cases or has a case on both sides.
    """
    strata = None if stratify is None else resolve_groups(stratify, dataset.case_ids, what="stratify")
    return dataset.folds(k=num_folds, groups=groups, stratify_by=strata, splits=splits)


def prepare_dataset(
    dataset: PathLike | CheckedDataset,
    *,
    overrides: Mapping[str, str],
    store: PathLike | None,
    out: PathLike,
    device: str,
    precision: StoredPrecision = "float32",
    plan_from: PathLike | None = None,
    jobs: int | None = None,
    own: OwnTransforms | None = None,
    memory_factor: float = 1.0,
    check_plan: Callable[[Plan], None] | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Prepared:
    """Check a dataset whole, plan for it, and store what training reads.

    Args:
        dataset: The dataset's folder, nnU-Net format; or what `checked_dataset` returned for it.
        overrides: Values of the plan to use instead of the planned ones, by name, as text.
        store: The folder for everything derived from datasets; None for ``<out>/.store``.
        out: The folder of the experiments.
        device: Where the training will be; its memory bounds the patch.
        precision: Type of the stored images; float16 halves them.
        plan_from: Where an earlier plan is that is to be kept, see `read_plan`; None plans anew.
        jobs: Cases that are worked on at once; None for one a processor. Fewer where memory is short.
        own: The user's own transforms, whose preprocessing extends or replaces the plan's.
        memory_factor: Memory of a training step, as a multiple of a U-Net's, which plans are made for.
        check_plan: Raises if training could not follow the plan, before the cases are preprocessed for it.
        on_progress: Told what is being done.

    Raises:
        DatasetError: If anything about the dataset would stop or spoil training; every problem is listed.
        SettingsError: If an override is unknown or does not fit.
        BadInputError: If the preprocessed cases would not fit on the disk, or there is no plan to keep.
    """
    say = on_progress or (lambda _message: None)
    given = None if plan_from is None else read_plan(plan_from)  # what is wrong with it is better said at once
    store_folder = store_of(store, out)
    if not isinstance(dataset, CheckedDataset):
        say(f"Checking {dataset}")
        dataset = checked_dataset(dataset, store_folder, jobs=jobs)
    raw, fingerprint, digests = dataset.dataset, dataset.fingerprint, dataset.digests
    assert fingerprint is not None  # a dataset without problems has both
    assert digests is not None
    memory = device_memory(device)
    bound = None if memory is None else int(memory / memory_factor)
    made = plan(fingerprint, memory_bytes=bound, overrides=overrides if given is None else None)
    if given is not None and plan_from is not None:
        made = adopted_plan(given, made, overrides, path=plan_from)
    if check_plan is not None:
        check_plan(made)
    left = unstored_cases(digests, made, store_folder, precision=precision, own=own)
    needed = store_bytes(fingerprint, made, precision=precision, case_ids=left)
    _check_space(store_folder, needed)
    if given is None:
        moved = keep_plan(store_folder, made, digest=digests.whole, wishes=(sorted(overrides.items()), bound))
        if moved is not None:
            changes, earlier = moved
            old = shlex.quote(str(earlier))
            say(f"The plan has moved with the dataset ({'; '.join(changes)}); to keep the old one: --plan {old}")
    if left:
        count = str(len(raw)) if len(left) == len(raw) else f"{len(left)} of {len(raw)}"
        say(f"Preprocessing {count} cases: {_size(needed)} in {store_folder}")
    else:
        say(f"All {len(raw)} cases are preprocessed already, in {store_folder}")
    cases = CaseStore.build(raw, made, store_folder, precision=precision, own=own, digests=digests, num_workers=jobs)
    return Prepared(dataset=raw, fingerprint=fingerprint, plan=made, store=cases, warnings=dataset.report.warnings)


def _check_space(folder: Path, needed: int) -> None:
    """Refuse to start what the disk cannot hold."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise BadInputError(
            f"{folder}: the preprocessed cases take {_size(needed)}, and {_size(free)} are free there; choose "
            "another --store, a coarser --set spacing_mm=..., or --store-precision float16, which halves the images"
        )


def _size(num_bytes: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.3g} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"


def device_memory(device: str) -> int | None:
    """Return the bytes that a plan may fill on a CUDA device; None for any other, where the plan has its own figure.

    That is a share of the device's total memory: the rest is for CUDA's own context, cuDNN's workspaces and the error
    of the plan's estimate.
    """
    import torch

    if torch.device(device).type != "cuda":
        return None
    return int(USABLE_SHARE * torch.cuda.get_device_properties(torch.device(device)).total_memory)
