"""Go on with a planned run from its folder alone: what the command line's ``resume`` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from candy_monai.aliases import PathLike
from candy_monai.config import load_secrets
from candy_monai.data.inspection.findings import has_been_used
from candy_monai.data.pipelines.description import OwnTransforms
from candy_monai.data.planning.plan import Plan
from candy_monai.data.samples.store import CaseStore, StoredPrecision
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.experiment.description import DESCRIPTION, DatasetRecord
from candy_monai.frontends.base import Frontend
from candy_monai.processes import Processes
from candy_monai.recipes.planned_run import VALIDATION_SCORES, PlannedRun
from candy_monai.recipes.prepare import Prepared, checked_dataset, store_of
from candy_monai.recipes.train import bundle_trainer, device_of_this_process, load_trainer_class
from candy_monai.training.resume import Continuation, SavedRun
from candy_monai.training.segmentation import SegmentationTrainer


def resume_training(
    experiment: PathLike,
    *,
    dataset: PathLike | None = None,
    store: PathLike | None = None,
    num_epochs: int | None = None,
    schedule: Continuation | None = None,
    trainer: str | None = None,
    frontend: type[Frontend] | None = None,
    device: str = "auto",
    force: bool = False,
    trust: bool = False,
    on_progress: Callable[[str], None] = print,
) -> Path:
    """Continue an interrupted run that was begun by ``train_dataset``, or make a finished one longer.

    Args:
        experiment: The experiment folder.
        dataset: The dataset's folder; None for where it was.
        store: The folder for what is derived from datasets; None for where it was.
        num_epochs: Epochs in all; None for as many as planned.
        schedule: What the learning rate does when the number of epochs changes; see ``Trainer.continue_training``.
        trainer: ``FILE:Class``, the trainer of your own that the run was begun with.
        frontend: A dashboard to report to.
        device: A PyTorch device, or ``auto``.
        force: Go on even if data, network or trainer are not those that the run was saved with.
        trust: Build any callable that the run's pipelines name, instead of known transforms only.
        on_progress: Told what is being done.

    Returns:
        The experiment folder.

    Raises:
        BadInputError: If the run was not begun by a plan, or its dataset or its store is not where it was.
        ExperimentError: If the folder is no experiment, is being trained elsewhere, or differs.
    """
    if frontend is not None:
        frontend(load_secrets())  # a missing secret is better said before anything is read
    folder = Path(experiment)
    saved = SavedRun.load(folder)
    trained, plan = saved.description.dataset, saved.description.plan
    if trained is not None and None in (trained.folder, trained.store, trained.training, trained.validation):
        raise BadInputError(f"{folder / DESCRIPTION}: does not name the dataset, the store and the cases of the run")
    if trained is None or plan is None:
        raise BadInputError(
            f"{folder}: was trained from Python, so only its script knows the data: "
            f"call recover_from({folder.name!r}).continue_training() on its trainer"
        )
    validated = not trained.validation or (folder / VALIDATION_SCORES).exists()
    if saved.is_finished and num_epochs is None and validated:
        on_progress(f"{folder}: finished already, nothing is left to train")
        return folder
    processes = Processes.from_environment()
    own_device = device_of_this_process(device, processes)
    trainer_class = _trainer_class(saved, trainer)
    own = OwnTransforms.from_saved(saved.description.pipelines, trust=trust)
    with processes.connected(own_device):
        run = _planned_run(
            saved,
            trained,
            Plan.from_dict(plan),
            trainer_class,
            dataset,
            store,
            own=own,
            device=own_device,
            processes=processes,
        )
        run = dataclasses.replace(run, frontend=frontend)
        return run.resume(folder, num_epochs, schedule, force=force)


def _planned_run(
    saved: SavedRun,
    trained: DatasetRecord,
    plan: Plan,
    trainer: type[SegmentationTrainer],
    dataset: PathLike | None,
    store: PathLike | None,
    *,
    own: OwnTransforms,
    device: torch.device,
    processes: Processes,
) -> PlannedRun:
    source = Path(dataset if dataset is not None else str(trained.folder))
    if not source.is_dir():
        raise BadInputError(f"{source}: the dataset is not there any more; say where it is now (--dataset)")
    store_folder = Path(store) if store is not None else _store_that_was(trained, saved.folder)
    with processes.one_after_the_first():
        checked = checked_dataset(source, store_folder)
        assert checked.fingerprint is not None  # a dataset without problems has one
        precision: StoredPrecision = "float16" if trained.store_precision == "float16" else "float32"
        prepared = Prepared(
            dataset=checked.dataset,
            fingerprint=checked.fingerprint,
            plan=plan,
            store=CaseStore.build(
                checked.dataset, plan, store_folder, precision=precision, own=own, digests=checked.digests
            ),
            warnings=checked.report.warnings,
        )
    seed = saved.settings.seed
    assert seed is not None  # a run records the seed that it drew
    return PlannedRun(
        prepared=prepared,
        plan=plan,
        training=trained.training or (),
        validation=trained.validation or (),
        trainer_class=trainer,
        own=own,
        num_scored=trained.num_scored,
        seed=seed,
        device=device,
        processes=processes,
        out=saved.folder.resolve().parents[1],
    )


def _store_that_was(trained: DatasetRecord, folder: Path) -> Path:
    """Return where the store is that was used, or the one beside the experiments: no file says where else to write."""
    store, beside = Path(str(trained.store)), store_of(None, folder.resolve().parent.parent)
    if store == beside or has_been_used(store):
        return store
    if has_been_used(beside):  # both were moved
        return beside
    raise BadInputError(f"{store}: the store is not there any more; say where it is, or is to be (--store)")


def _trainer_class(saved: SavedRun, trainer: str | None) -> type[SegmentationTrainer]:
    name, bundle = saved.description.trainer, saved.description.bundle
    if trainer is not None:
        found = load_trainer_class(trainer)
    elif bundle is not None:
        found = bundle_trainer(bundle)
    else:
        raise BadInputError(
            f"{saved.folder}: trained by {name}, a class of your own, which is never imported by a name that stands in "
            f"a file: say where it is, --trainer FILE:{name}"
        )
    if found.__name__ != name:
        raise ExperimentError(f"{saved.folder}: trained by {name}, not by {found.__name__}")
    return found
