"""Plan for a dataset folder and preprocess its cases. Writes only to the store, never to the dataset."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.folds import Fold, pick_fold, resolve_groups, write_splits
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.inspection.checks import SPLITS, CheckedDataset, visit_dataset
from candy_monai.data.inspection.fingerprint import Fingerprint
from candy_monai.data.pipelines.description import OwnTransforms
from candy_monai.data.planning.experience import expected
from candy_monai.data.planning.files import adopted_plan, keep_plan, read_plan
from candy_monai.data.planning.plan import Plan
from candy_monai.data.planning.rules import Configuration, plan
from candy_monai.data.planning.sizing import LIGHT_BELOW_BYTES
from candy_monai.data.samples.store import CaseStore, store_bytes, unstored_cases
from candy_monai.errors import BadInputError, DatasetError, SettingsError
from candy_monai.files import check_writable, digest_of_file
from candy_monai.incoming.weights import weights_file_of
from candy_monai.recipes.cascade import SECOND, FirstStage, first_stage_of
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.starting import StartingExperiment
from candy_monai.registry import choice_of_network
from candy_monai.text import as_word

if TYPE_CHECKING:
    from candy_monai.processes import Processes
    from candy_monai.training.segmentation import SegmentationTrainer

USABLE_SHARE = 0.7

_FOLD_OPTIONS = ("splits", "num_folds", "groups", "stratify")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A dataset that is ready to be trained on.

    Attributes:
        dataset: The dataset as it is on disk.
        fingerprint: Its fingerprint.
        plan: The plan that follows from it.
        store: The preprocessed cases.
        folds: The folds; empty if all cases are trained on.
        training: Ids of the cases to train on.
        validation: Ids of the cases to validate on.
        notes: Messages about the preparation for the log of the run.
        warnings: Unusual findings of the check of the dataset.
        first_stage: The first stage of a cascade; None without one.
        other: The plan of the other configuration, and why it was not chosen; None if there is none.
    """

    dataset: NNUNetDataset
    fingerprint: Fingerprint
    plan: Plan
    store: CaseStore
    folds: tuple[Fold, ...] = ()
    training: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    first_stage: FirstStage | None = None
    other: tuple[Plan, str] | None = None


def prepare_dataset(
    dataset: PathLike,
    options: TrainOptions,
    *,
    device: torch.device,
    own: OwnTransforms | None = None,
    trainer: type[SegmentationTrainer] | None = None,
    processes: Processes | None = None,
    on_progress: Callable[[str], None],
) -> Prepared:
    """Check a whole dataset, choose its folds, plan for it, and store the preprocessed cases.

    Args:
        dataset: The dataset's folder, nnU-Net format.
        options: The options for the folds, the plan and the store.
        device: The device for training, whose memory limits the patch.
        own: The user's own transforms; their preprocessing extends or replaces that of the plan.
        trainer: The trainer, for the memory of a step; None for one that needs as much as a U-Net.
        processes: The processes that call this together and share the cases; None for a single process.
        on_progress: Called with a line of text for each stage and each warning.

    Raises:
        DatasetError: If anything about the dataset would stop or impair training; every problem is listed.
        SettingsError: If an option is unknown or does not fit.
        BadInputError: If a side of the fold has no case, the preprocessed cases would not fit on the disk, or there is
            no plan to keep.
    """
    given = None if options.plan is None else read_plan(options.plan)  # what is wrong with it is better said at once
    store_folder = store_of(options)
    check_fold_options(dataset, options)
    on_progress(f"Checking {dataset}")
    checked = checked_dataset(dataset, store_folder, jobs=options.jobs, processes=processes)
    raw, fingerprint, digests = checked.dataset, checked.fingerprint, checked.digests
    assert fingerprint is not None  # a dataset without problems has both
    assert digests is not None
    folds = () if options.fold == "all" else chosen_folds(raw, options)
    training, validation = _sides(raw, folds, options)
    first = 0 if options.fold == "all" else options.fold
    warnings = checked.warnings_for(folds[first : first + 1], first=first)
    for warning in warnings:
        on_progress(f"Warning: {warning}")
    bound, start = memory_for(trainer, device), StartingExperiment.of(options, trainer)
    planned, notes = _planned(fingerprint, options, given, bound, trainer, start, validation)
    for note in notes:
        on_progress(note)
    made = planned if trainer is None else adapted(planned, trainer)
    if made.slice_axis is not None:
        instead = "" if "slice_axis" in made.chosen else " (--configuration 3d for a 3-D one)"
        on_progress(f"Configuration 2d: a 2-D network on slices across axis {made.slice_axis}{instead}")
    first_stage = first_stage_of(options, raw, made, own, [] if options.fold == "all" else [validation])
    if first_stage is not None:
        rank = 0 if processes is None else processes.rank
        first_stage.predict(device=str(device), rank=rank, on_progress=on_progress)
    contents = digests if first_stage is None else first_stage.digests(digests)
    left = unstored_cases(contents, made, store_folder, precision=options.store_precision, own=own)
    needed = store_bytes(fingerprint, made, precision=options.store_precision, case_ids=left)
    _check_space(store_folder, needed)
    is_main = processes is None or processes.is_main
    if given is None and is_main:
        moved = keep_plan(store_folder, planned, digest=digests.whole, wishes=_wishes(options, bound, start))
        if moved is not None:
            changes, earlier = moved
            old = shlex.quote(as_word(earlier))
            on_progress(
                f"The plan has changed with the dataset ({'; '.join(changes)}); to keep the old one, give --plan {old}"
            )
    if left:
        count = str(len(raw)) if len(left) == len(raw) else f"{len(left)} of {len(raw)}"
        on_progress(f"Preprocessing {count} cases: {_size(needed)} in {store_folder}")
    else:
        on_progress(f"All {len(raw)} cases are preprocessed already, in {store_folder}")
    store = CaseStore.build(
        raw,
        made,
        store_folder,
        precision=options.store_precision,
        own=own,
        digests=contents,
        num_workers=options.jobs,
        previous=None if first_stage is None else first_stage.label_map,
        processes=processes,
    )
    if folds and is_main:
        write_splits(store.folder / SPLITS, folds)
    if options.num_epochs is not None:
        chosen = tuple(sorted({*made.chosen, "num_epochs"}))
        made = dataclasses.replace(made, num_epochs=options.num_epochs, chosen=chosen)
    return Prepared(
        dataset=raw,
        fingerprint=fingerprint,
        plan=made,
        store=store,
        folds=folds,
        training=training,
        validation=validation,
        notes=tuple(notes),
        warnings=warnings,
        first_stage=first_stage,
        other=None if start else _other_configuration(made, fingerprint, options, bound, trainer),
    )


def _wishes(options: TrainOptions, bound: int | None, start: StartingExperiment | None) -> tuple[object, ...]:
    """Return the options that a plan depends on, besides the dataset."""
    wishes = (sorted((options.overrides or {}).items()), options.configuration, bound)
    return wishes if start is None else (*wishes, str(start.folder))


def _other_configuration(
    made: Plan,
    fingerprint: Fingerprint,
    options: TrainOptions,
    memory_bytes: int | None,
    trainer: type[SegmentationTrainer] | None,
) -> tuple[Plan, str] | None:
    """Return the plan of the configuration that was not chosen, with the reason; None if there was no choice."""
    was_given = options.plan is not None or "slice_axis" in made.chosen
    if (
        was_given
        or made.spacing_mm is None
        or made.num_dims < 3
        or trainer is None
        or not trainer.options.follows_filters
    ):
        return None
    if made.slice_axis is not None and made.median_shape[made.slice_axis] == 1:
        return None
    configuration: Literal["2d", "3d"] = "2d" if made.slice_axis is None else "3d"
    try:
        other = plan(fingerprint, memory_bytes=memory_bytes, overrides=options.overrides, configuration=configuration)
    except SettingsError:  # the entries that the user fixed are for the other configuration
        return None
    learned = expected(made.spacing_mm, len(fingerprint.cases), cpu_s=_cpu_s(options))
    return other, f"{learned}{', in the time of a CPU' if learned.configuration == configuration else ''}"


def _cpu_s(options: TrainOptions) -> float | None:
    """Return the CPU-seconds of a budget, the unit in the table of earlier runs."""
    return None if options.budget_s is None else options.budget_s * torch.get_num_threads()


def _planned(
    fingerprint: Fingerprint,
    options: TrainOptions,
    given: Plan | None,
    memory_bytes: int | None,
    trainer: type[SegmentationTrainer] | None,
    start: StartingExperiment | None,
    validation: Sequence[str],
) -> tuple[Plan, list[str]]:
    """Return the plan that follows from a dataset and the options, or the given plan, and messages about it."""
    overrides = options.overrides or {}
    if given is None or options.plan is None:

        def planned(more: Mapping[str, object], asked: Configuration) -> Plan:
            return plan_for(
                fingerprint, options, memory_bytes=memory_bytes, trainer=trainer, more=more, configuration=asked
            )

        made = planned({}, "auto")
        if start is None:
            return made, []
        made, notes = start.followed(made, planned, options)
        return made, notes + start.warnings(made, validation, digest=fingerprint.digest)
    is_second = given.num_previous > 0 and fingerprint.num_dims == given.num_dims
    own = plan(fingerprint, memory_bytes=memory_bytes, configuration=SECOND if is_second else "auto")
    adopted = adopted_plan(given, own, overrides, path=options.plan)
    if options.configuration not in ("auto", adopted.configuration):
        raise SettingsError(
            f"{options.plan}: a plan for the configuration {adopted.configuration}, but --configuration is "
            f"{options.configuration}: leave out --configuration or --plan"
        )
    return adopted, []


def checked_plan(
    fingerprint: Fingerprint, options: TrainOptions, trainer: type[SegmentationTrainer], device: torch.device
) -> Plan:
    """Return the plan that a run would follow, so that what it would refuse is refused before anything is started.

    Raises:
        BadInputError: If an option does not fit, or the trainer's network cannot be built for the plan.
    """
    given = None if options.plan is None else read_plan(options.plan)
    bound, start = memory_for(trainer, device), StartingExperiment.of(options, trainer)
    planned, _ = _planned(fingerprint, options, given, bound, trainer, start, ())
    return adapted(planned, trainer)


def plan_for(
    fingerprint: Fingerprint,
    options: TrainOptions,
    *,
    memory_bytes: int | None,
    trainer: type[SegmentationTrainer] | None,
    more: Mapping[str, object] | None = None,
    configuration: Configuration = "auto",
) -> Plan:
    """Return the plan that follows from a dataset and the options, before the trainer adapts it.

    Args:
        fingerprint: What was found in the dataset.
        options: The options of the user.
        memory_bytes: Memory for a step of a U-Net; None for the default of a plan.
        trainer: The trainer; None if it is not known.
        more: Further fixed entries, in addition to the user's.
        configuration: The configuration, if that of the options is ``auto``.

    Raises:
        SettingsError: If an option does not fit.
    """
    overrides = {**(options.overrides or {}), **(more or {})}
    configuration = options.configuration if configuration == "auto" else configuration
    builds_its_own = trainer is not None and not trainer.options.follows_filters  # perhaps one for volumes alone
    if configuration == "auto" and builds_its_own and fingerprint.num_dims == 3 and "slice_axis" not in overrides:
        configuration = "3d"
    return plan(
        fingerprint,
        memory_bytes=memory_bytes,
        overrides=overrides,
        configuration=configuration,
        cpu_s=_cpu_s(options),
    )


def given_files(options: TrainOptions) -> dict[str, Any]:
    """Return the content of the files that affect what is learned: the entries of the plan, and digests of the others.

    Own transforms, trainers and starting weights are meant; the files that decide the folds show in the cases of each
    fold. None stands for a file that is not given.

    Raises:
        BadInputError: If one cannot be read.
    """
    weights = None if options.init_from is None else weights_file_of(options.init_from)
    trainer = options.trainer.rpartition(":")[0] if isinstance(options.trainer, str) else None  # FILE:Class
    return {
        "plan": None if options.plan is None else read_plan(options.plan).to_dict(),
        "content of transforms": _digest_of(options.transforms),
        "content of trainer": _digest_of(trainer),
        "content of init_from": _digest_of(weights),
    }


def _digest_of(file: PathLike | None) -> str | None:
    return None if file is None else digest_of_file(file)[:16]


def adapted(plan: Plan, trainer: type[SegmentationTrainer]) -> Plan:
    """Return a plan adapted to a trainer; entries that the trainer cannot follow are refused before preprocessing.

    Raises:
        BadInputError: If the trainer's network cannot be built for it.
    """
    if (chooser := choice_of_network(trainer)) is not None:
        adapted_plan: Plan = chooser.adapt_plan(plan)  # which checks it, too
        return adapted_plan
    trainer.check_plan(plan)
    return plan


def memory_for(trainer: type[SegmentationTrainer] | None, device: torch.device) -> int | None:
    """Return the bytes for a step of a U-Net such that a step of this trainer's network fills the device's memory.

    In a small plan the U-Net has half the usual width, but a network with a fixed width does not: its ratio to the
    U-Net is then twice as large.
    """
    memory = device_memory(device)
    if memory is None or trainer is None:
        return memory
    bound = int(memory / trainer.options.memory_factor)
    return bound // 2 if bound < LIGHT_BELOW_BYTES and not trainer.options.follows_filters else bound


def store_of(options: TrainOptions) -> Path:
    """Return the folder of the store: the given one, or ``.store`` in the experiments folder."""
    return Path(options.out) / ".store" if options.store is None else Path(options.store)


def checked_dataset(
    folder: PathLike, store: Path, *, jobs: int | None = None, processes: Processes | None = None
) -> CheckedDataset:
    """Check a whole dataset; files of unchanged cases that were already checked without problems are not read again.

    Raises:
        DatasetError: If anything about the dataset would stop or spoil training; every problem is listed.
        SettingsError: If the store lies inside the dataset.
        BadInputError: If the store's folder cannot be written to.
    """
    refuse_inside(store, folder)
    check_writable(store)
    checked = visit_dataset(folder, store=store, num_workers=jobs, processes=processes)
    if checked.report.problems:
        raise DatasetError(folder, checked.report.problems)
    if checked.fingerprint is None:
        raise DatasetError(folder, ["imagesTr: no case; training needs at least one image with its label"])
    return checked


def refuse_inside(path: PathLike, dataset: PathLike) -> None:
    """Raise SettingsError if an output path lies inside a dataset."""
    if Path(path).resolve().is_relative_to(Path(dataset).resolve()):
        raise SettingsError(f"{path}: inside the dataset, which is never written to; choose another folder")


def chosen_folds(dataset: NNUNetDataset, options: TrainOptions) -> tuple[Fold, ...]:
    """Return the folds that a user chose; by default those of the dataset, or nnU-Net's.

    Raises:
        SettingsError: If the options contradict each other or do not fit the cases.
        DatasetError: If the split file names unknown cases, or has a case on both sides of a fold.
    """
    strata = None
    if options.stratify is not None:
        strata = resolve_groups(options.stratify, dataset.case_ids, what="stratify")
    return dataset.folds(k=options.num_folds, groups=options.groups, stratify_by=strata, splits=options.splits)


def evenly_spaced(case_ids: Sequence[str], count: int | None) -> tuple[str, ...]:
    """Return ``count`` of the cases, spread over their order, since neighbours often come from one site.

    A smaller selection is part of every larger one, so that scores on both use the same cases as far as possible.
    """
    if count is None or count >= len(case_ids):
        return tuple(case_ids)
    digits = len(case_ids).bit_length()
    # Bit-reversed positions: first the halves, then the quarters, and so on.
    spread = sorted(range(len(case_ids)), key=lambda index: int(f"{index:0{digits}b}"[::-1], 2))
    return tuple(case_ids[index] for index in sorted(spread[:count]))


def check_fold_options(folder: PathLike, options: TrainOptions) -> None:
    """Check the options of the folds by the ids of the cases, before the cases are read, which may take long."""
    if options.fold in (0, "all") and all(getattr(options, name) is None for name in _FOLD_OPTIONS):
        return
    try:
        dataset = NNUNetDataset(folder)
    except BadInputError:
        return  # the check of the dataset says everything that is wrong with it
    _sides(dataset, () if options.fold == "all" else chosen_folds(dataset, options), options)


def _sides(
    dataset: NNUNetDataset, folds: tuple[Fold, ...], options: TrainOptions
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the ids of the training and the validation cases; refuse an empty side."""
    training = validation = dataset.case_ids
    if options.fold != "all":
        chosen = pick_fold(folds, options.fold)
        training, validation = chosen.train, chosen.validation
    if not training or (not validation and len(dataset) > 1):
        raise BadInputError(
            f"fold {options.fold} has {len(training)} training and {len(validation)} validation cases of "
            f"{len(dataset)}: both need at least one; choose other splits or groups, or --fold all to train on "
            "everything"
        )
    return training, validation


def _check_space(folder: Path, needed: int) -> None:
    """Refuse to start if the disk has not enough space."""
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


def device_memory(device: torch.device) -> int | None:
    """Return the bytes that a plan may use on a CUDA device; None for other devices, for which the plan has a default.

    That is a share of the device's total memory: the rest is for CUDA's own context, cuDNN's workspaces and the error
    of the plan's estimate.
    """
    if device.type != "cuda":
        return None
    return int(USABLE_SHARE * torch.cuda.get_device_properties(device).total_memory)
