"""From a dataset folder to a trained experiment, in one call: what the command line's ``train`` does."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

from candy_monai.aliases import PathLike
from candy_monai.config import load_secrets
from candy_monai.data.datasets.folds import Fold, write_splits
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.datasets.patients import patients_on_both_sides
from candy_monai.data.inspection.suspicions import labels_absent_from_folds, names_by_id
from candy_monai.data.pipelines.building import check_own_transforms, read_own_transforms
from candy_monai.data.pipelines.description import PIPELINES, OwnTransforms
from candy_monai.data.planning.files import read_plan
from candy_monai.data.planning.plan import parsed_overrides
from candy_monai.data.samples.store import StoredPrecision
from candy_monai.device import auto_device
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.experiment.settings import SaveInterval
from candy_monai.files import check_writable
from candy_monai.frontends.base import Frontend
from candy_monai.processes import Processes
from candy_monai.recipes.planned_run import SPLITS, PlannedRun
from candy_monai.recipes.prepare import Prepared, checked_dataset, chosen_folds, prepare_dataset, store_of
from candy_monai.registry import class_from_file, find_bundle
from candy_monai.seeding import draw_seed
from candy_monai.training.segmentation import SegmentationTrainer


def train_dataset(
    dataset: PathLike,
    *,
    bundle: str = "unet",
    fold: int | Literal["all"] = 0,
    num_epochs: int | None = None,
    budget_s: float | None = None,
    save_every: int | str | None = None,
    seed: int | None = None,
    overrides: Mapping[str, str] | None = None,
    plan: PathLike | None = None,
    jobs: int | None = None,
    device: str = "auto",
    out: PathLike = "experiments",
    store: PathLike | None = None,
    store_precision: StoredPrecision = "float32",
    splits: PathLike | None = None,
    groups: str | None = None,
    stratify: str | None = None,
    num_folds: int | None = None,
    note: str = "",
    trainer: str | None = None,
    transforms: PathLike | None = None,
    trust: bool = False,
    frontend: type[Frontend] | None = None,
    elapsed_s: float = 0.0,
    on_progress: Callable[[str], None] = print,
) -> Path:
    """Prepare a dataset, train on one fold of it, and score the best weights on the other cases.

    Args:
        dataset: The dataset's folder, nnU-Net format.
        bundle: The architecture.
        fold: The fold to validate on; ``all`` trains on everything and validates on the same.
        num_epochs: Epochs to train; None for the plan's, or for what fits the budget.
        budget_s: Seconds for everything, preparing and the final validation included; None for no bound.
        save_every: Save within epochs, too: after so many steps, or as often as ``"10m"`` or ``"90s"`` says.
        seed: Seeds everything; None draws one and records it.
        overrides: Values of the plan, by name, as text.
        plan: An experiment folder or a file with the plan to keep; None plans anew.
        jobs: Cases that are checked and preprocessed at once; None for one a processor.
        device: A PyTorch device, or ``auto``.
        out: The folder for experiments.
        store: The folder for what is derived from datasets; None for ``<out>/.store``.
        store_precision: Type of the stored images; float16 halves them.
        splits: A ``splits_final.json``; None for the dataset's own, or nnU-Net's default folds.
        groups: Regular expression on case ids, or a CSV file of id and group; cases with the same group stay on one
            side of a fold.
        stratify: The same for a property that every fold shall have its share of.
        num_folds: How many folds there are; None for 5, or as many as there are cases.
        note: Your words about this run.
        trainer: ``FILE:Class``, a `SegmentationTrainer` of your own instead of the bundle's.
        transforms: A JSON or YAML file in MONAI's config language: a list of transforms for training patches, or lists
            under ``preprocessing``, ``augmentation`` and ``postprocessing``. Each extends or replaces the plan's as the
            attribute of that name of `SegmentationTrainer` does, and takes precedence over it.
        trust: Build any callable that these name, instead of known transforms only.
        frontend: A dashboard to report to.
        elapsed_s: Seconds of the budget that are over already, as a program's start takes.
        on_progress: Told what is being done.

    Returns:
        The experiment folder.

    Raises:
        BadInputError: If the dataset or a setting cannot work; nothing was trained.
    """
    started = time.monotonic() - elapsed_s
    overrides = overrides or {}
    _check_length(num_epochs, budget_s, overrides)
    if save_every is not None:
        SaveInterval.parse(save_every)
    parsed_overrides(overrides)  # a slip of the pen is better said before the data are read
    from_file = None if transforms is None else read_own_transforms(transforms, trust=trust)
    if plan is not None:
        read_plan(plan)
    if frontend is not None:
        frontend(load_secrets())  # nor should a missing secret be said an hour later
    check_writable(out)
    processes = Processes.from_environment()
    own_device = device_of_this_process(device, processes)
    trainer_class = bundle_trainer(bundle) if trainer is None else load_trainer_class(trainer)
    own = own_transforms(trainer_class, from_file, trust=trust)
    say = on_progress if processes.is_first else _in_silence
    with processes.connected(own_device):
        with processes.one_after_the_first():
            say(f"Checking {dataset}")
            checked = checked_dataset(dataset, store_of(store, out), jobs=jobs)
            about_usual_folds = patients_on_both_sides(checked.folds)
            for warning in checked.report.warnings:
                if warning not in about_usual_folds:  # of the fold to be trained it is said below
                    say(f"Warning: {warning}")
            folds: tuple[Fold, ...] = ()
            if fold != "all":
                folds = chosen_folds(
                    checked.dataset, num_folds=num_folds, groups=groups, stratify=stratify, splits=splits
                )
            training, validation = _sides(checked.dataset, folds, fold)
            for warning in () if fold == "all" else patients_on_both_sides([folds[fold]], first=fold):
                say(f"Warning: {warning}")
            prepared = prepare_dataset(
                checked,
                overrides=overrides,
                store=store,
                out=out,
                device=str(own_device),
                precision=store_precision,
                plan_from=plan,
                jobs=jobs,
                own=own,
                memory_factor=trainer_class.memory_factor,
                check_plan=trainer_class.check_plan,
                on_progress=say,
            )
            if folds and processes.is_first:
                write_splits(prepared.store_folder / SPLITS, folds)
            for warning in _labels_not_learned(prepared, folds, fold):
                say(f"Warning: {warning}")
        run = PlannedRun(
            prepared=prepared,
            folds=folds,
            plan=prepared.plan if num_epochs is None else dataclasses.replace(prepared.plan, num_epochs=num_epochs),
            training=training,
            validation=validation,
            trainer_class=trainer_class,
            own=own,
            save_every=save_every,
            seed=processes.broadcast(draw_seed() if seed is None else seed),
            device=own_device,
            out=Path(out),
            frontend=frontend,
            processes=processes,
        )
        if budget_s is not None:
            say("Measuring how fast this machine trains the plan")
            run = run.fitted_to(lambda: budget_s - (time.monotonic() - started), say)
        return run.train(note)


def _in_silence(_message: str) -> None:
    """Say nothing: what all processes do, the first one says."""


def _labels_not_learned(prepared: Prepared, folds: Sequence[Fold], fold: int | Literal["all"]) -> list[str]:
    """Say which labels no training case of a fold has that the user chose; of the usual folds the check has told."""
    if fold == "all" or folds == prepared.dataset.folds():
        return []
    fingerprint = prepared.fingerprint
    ids = {case.case_id: frozenset(case.class_voxels) for case in fingerprint.cases}
    return labels_absent_from_folds([folds[fold]], ids, names_by_id(fingerprint.labels), first=fold)


def _check_length(num_epochs: int | None, budget_s: float | None, overrides: Mapping[str, str]) -> None:
    """Refuse two answers to how long to train."""
    if num_epochs is not None and budget_s is not None:
        raise SettingsError("give a number of epochs or a budget, not both: each decides how long to train")
    if num_epochs is not None and "num_epochs" in overrides:
        raise SettingsError("give --epochs or --set num_epochs=..., not both")
    fixed = [name for name in ("num_epochs", "iterations_per_epoch") if name in overrides]
    if budget_s is not None and fixed:
        raise SettingsError(f"a budget decides {' and '.join(fixed)}: leave out the budget, or --set {fixed[0]}=...")


def _sides(
    dataset: NNUNetDataset, folds: Sequence[Fold], fold: int | Literal["all"]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the ids of the cases to train and to validate on, unless there are none."""
    sides = dataset.fold(fold=fold) if fold == "all" else dataset.sides(folds, fold)
    training, validation = (side.case_ids for side in sides)
    if not training or (not validation and len(dataset) > 1):
        raise BadInputError(
            f"fold {fold} has {len(training)} training and {len(validation)} validation cases of {len(dataset)}: each "
            "side needs one at least; choose other splits or groups, or --fold all to train on everything"
        )
    return training, validation


def own_transforms(
    trainer: type[SegmentationTrainer], from_file: OwnTransforms | None, *, trust: bool = False
) -> OwnTransforms:
    """Return the transforms of a file, and those of a trainer's attributes for the pipelines that the file leaves out.

    Raises:
        SettingsError: If those of the trainer cannot be built, with the position of the entry.
    """
    own = OwnTransforms(
        preprocessing=trainer.preprocessing,
        augmentation=trainer.augmentation or (),
        postprocessing=trainer.postprocessing,
        trust=trust,
    )
    check_own_transforms(own, f"{trainer.__name__}.")
    given = {name: lists for name in PIPELINES if (lists := getattr(from_file, name, ()))}
    return dataclasses.replace(own, **given)


def device_of_this_process(device: str, processes: Processes) -> torch.device:
    """Return where this process trains, by a device's name or ``auto``."""
    return processes.device_of(torch.device(auto_device() if device == "auto" else device))


def bundle_trainer(name: str) -> type[SegmentationTrainer]:
    """Return a bundle's trainer.

    Raises:
        BadInputError: If there is no such bundle, or its trainer cannot follow a plan.
    """
    return _checked(find_bundle(name).trainer, f"the trainer of bundle {name!r}")


def load_trainer_class(where: str) -> type[SegmentationTrainer]:
    """Import a trainer of the user's own from ``FILE:Class``.

    Raises:
        BadInputError: If there is no such file or class, or it is no `SegmentationTrainer`.
    """
    return _checked(class_from_file(where, option="--trainer"), f"--trainer {where}")


def _checked(trainer: object, what: str) -> type[SegmentationTrainer]:
    if not isinstance(trainer, type) or not issubclass(trainer, SegmentationTrainer):
        raise BadInputError(f"{what} is not a SegmentationTrainer")
    return trainer
