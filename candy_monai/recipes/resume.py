"""Continue a planned run from its folder, as ``candy-monai resume`` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.inspection.findings import has_been_used
from candy_monai.data.pipelines.building import read_saved_transforms
from candy_monai.data.pipelines.description import OwnTransforms
from candy_monai.data.planning.files import plan_of
from candy_monai.data.planning.plan import Plan
from candy_monai.data.samples.store import CaseStore
from candy_monai.device import find_device
from candy_monai.errors import BadInputError, ExperimentError, SettingsError
from candy_monai.experiment.description import DESCRIPTION, PREVIOUS, DatasetRecord
from candy_monai.experiment.folder import STATE, VALIDATION_SCORES
from candy_monai.experiment.runs import resuming_call
from candy_monai.processes import Processes
from candy_monai.recipes.cascade import FirstStage
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.planned_run import TRAINER_ARGS, PlannedRun
from candy_monai.recipes.prepare import Prepared, checked_dataset
from candy_monai.recipes.train import ready_frontend
from candy_monai.recipes.trained_on import folder_of_dataset
from candy_monai.recipes.trainers import check_trainer_args, find_trainer, trainer_with_network_of
from candy_monai.training.resume import Continuation, SavedRun
from candy_monai.training.segmentation import SegmentationTrainer


def resume_training(
    experiment: PathLike,
    options: TrainOptions | None = None,
    *,
    dataset: PathLike | None = None,
    schedule: Continuation | None = None,
    force: bool = False,
    on_progress: Callable[[str], None] = print,
    **keywords: Any,
) -> Path:
    """Continue an interrupted run that was started by `train_dataset`, or extend a finished one.

    On a CPU the result is bit-identical to that of an uninterrupted run.

    Args:
        experiment: The experiment folder.
        options: Only ``num_epochs`` (total number of epochs; None for the planned number), ``device``, ``store`` and
            ``previous`` (None for their original paths), ``trainer``, ``trust``, ``frontends`` and ``no_references``
            are used; all other options are those of the run.
        dataset: The dataset's folder; None for its original path.
        schedule: The learning rate if the number of epochs changes; see ``Trainer.resume``.
        force: Continue even if data, network or trainer differ from those of the saved run.
        on_progress: Called with a line of text for each stage.
        **keywords: These fields of `TrainOptions`, in place of those of ``options``.

    Returns:
        The experiment folder.

    Raises:
        BadInputError: If the run has no plan, its dataset, its store or its first stage is not found, or a finished run
            had a budget and is given more epochs.
        ExperimentError: If the folder is no experiment, is being trained elsewhere, or differs.
        RunFailedError: If it failed after it was resumed, for example because the disk was full.
    """
    options = TrainOptions.of(options, keywords, resumes=True)
    frontend = ready_frontend(options)  # report a missing secret before anything is read
    folder = Path(experiment)
    saved = SavedRun.load(folder)
    trained, plan = saved.description.dataset, saved.description.plan
    if saved.description.host is not None:
        raise BadInputError(
            f"{folder}: was trained by the {saved.description.trainer} of {saved.description.host}, so only its "
            f"script can resume it: {resuming_call(folder, saved.description)}"
        )
    if trained is not None and None in (trained.folder, trained.store, trained.training, trained.validation):
        raise BadInputError(f"{folder / DESCRIPTION}: does not name the dataset, the store and the cases of the run")
    if trained is None or plan is None:
        raise BadInputError(
            f"{folder}: was trained from Python, so only its script knows the data: "
            f"call resume({folder.name!r}) on its trainer"
        )
    validated = not trained.validation or (folder / VALIDATION_SCORES).exists()
    if saved.is_finished and options.num_epochs is None and validated:
        on_progress(f"{folder}: finished already, nothing is left to train")
        return folder
    if saved.is_finished and options.num_epochs is not None and saved.settings.time_limit_s is not None:
        raise SettingsError(
            f"{folder}: was trained within a budget, which a resumed run keeps, so that there is no time for more "
            f"epochs; start a new run from its weights: candy-monai train {trained.folder} --init-from {folder}"
        )
    saved.continued(options.num_epochs, schedule=schedule, force=force)  # refused before the dataset is read
    seed = saved.settings.seed
    if seed is None:
        raise ExperimentError(f"{folder / STATE}: does not hold the seed of the run; restore the file from a copy")
    processes = Processes.from_environment()
    device = processes.device_of(find_device(options.device))
    trainer = _trainer_class(saved, options.trainer)
    own = read_saved_transforms(saved.description.pipelines, folder / DESCRIPTION, trust=options.trust)
    with processes.connected(device):
        with processes.main_process_first():
            followed = plan_of(plan, folder / DESCRIPTION)
            prepared = _prepared_again(saved, trained, followed, own, options, dataset, force, on_progress)
        run = PlannedRun(
            prepared=prepared,
            options=dataclasses.replace(
                options, out=saved.folder.resolve().parents[1], trainer_args=_trainer_args(trainer, saved)
            ),
            trainer_class=trainer,
            own=own,
            frontend=frontend,
            num_scored=trained.num_scored,
            budget=saved.description.budget,
            seed=seed,
            device=device,
            processes=processes,
        )
        return run.resume(folder, options.num_epochs, schedule, force=force)


def _trainer_args(trainer: type[SegmentationTrainer], saved: SavedRun) -> dict[str, Any] | None:
    """Return the attributes of the trainer that were set when the run was started."""
    attributes = saved.description.more.get(TRAINER_ARGS)
    if attributes is None:
        return None
    try:
        found: dict[str, Any] = dict(attributes)  # type: ignore[call-overload]  # what else raises
        check_trainer_args(trainer, found)
    except (TypeError, ValueError) as error:
        raise ExperimentError(f"{saved.folder / DESCRIPTION}: {TRAINER_ARGS}: {error}") from error
    return found


def _prepared_again(
    saved: SavedRun,
    trained: DatasetRecord,
    plan: Plan,
    own: OwnTransforms,
    options: TrainOptions,
    dataset: PathLike | None,
    force: bool,
    on_progress: Callable[[str], None],
) -> Prepared:
    """Return the dataset, the store and the cases of a run."""
    source = folder_of_dataset(trained, dataset)
    store = _store_that_was(trained, saved.folder) if options.store is None else Path(options.store)
    checked = checked_dataset(source, store, jobs=options.jobs)
    assert checked.fingerprint is not None  # a dataset without problems has both
    assert checked.digests is not None
    digests, first_stage = checked.digests, None
    if plan.num_previous:
        first_stage = _first_stage_again(saved, plan, options, checked.dataset, force=force)
        first_stage.predict(device=str(find_device(options.device)), on_progress=on_progress)
        digests = first_stage.digests(digests)
    return Prepared(
        dataset=checked.dataset,
        fingerprint=checked.fingerprint,
        plan=plan,
        store=CaseStore.build(
            checked.dataset,
            plan,
            store,
            precision="float16" if trained.store_precision == "float16" else "float32",
            own=own,
            digests=digests,
            num_workers=options.jobs,
            previous=None if first_stage is None else first_stage.label_map,
        ),
        first_stage=first_stage,
        training=trained.training or (),
        validation=trained.validation or (),
    )


def _first_stage_again(
    saved: SavedRun, plan: Plan, options: TrainOptions, dataset: NNUNetDataset, *, force: bool
) -> FirstStage:
    """Return the first stage of a cascade; refuse one with other weights than at the start of the run."""
    recorded = saved.description.more.get(PREVIOUS)
    known: Mapping[str, object] = recorded if isinstance(recorded, dict) else {}
    folder = known.get("folder") if options.previous is None else options.previous
    if not isinstance(folder, str | Path) or not Path(folder).is_dir():
        raise BadInputError(
            f"{folder}: the first stage of the cascade no longer exists; give the new path of its cross-validation "
            "with --previous"
        )
    stage = FirstStage.open(folder, dataset, plan)
    if stage.weights_digest != known.get("weights") and not force:
        raise BadInputError(
            f"{folder}: the weights of this first stage are not those with which {saved.folder} began: restore them, "
            "train the second stage anew, or continue with --force (force=True)"
        )
    return stage


def _store_that_was(trained: DatasetRecord, folder: Path) -> Path:
    """Return the store that was used, or the one in the experiments folder: no other path in a file is written to."""
    store, beside = Path(str(trained.store)), folder.resolve().parent.parent / ".store"
    if store == beside or has_been_used(store):
        return store
    if has_been_used(beside):  # both were moved
        return beside
    raise BadInputError(
        f"{store}: the folder of preprocessed cases no longer exists; give its new path, or another folder for it, "
        "with --store"
    )


def _trainer_class(saved: SavedRun, trainer: str | type[object] | None) -> type[SegmentationTrainer]:
    name, bundle = saved.description.trainer, saved.description.bundle
    if trainer is None and bundle is None:
        raise BadInputError(
            f"{saved.folder}: trained by {name}, a class of your own, which is never imported automatically: give its "
            f"file with --trainer FILE:{name}"
        )
    try:
        found = find_trainer(bundle=bundle, own=trainer)
    except BadInputError as error:
        if trainer is None:
            raise ExperimentError(f"{saved.folder / DESCRIPTION}: {error}") from error
        raise
    if found.__name__ != name:
        raise ExperimentError(f"{saved.folder}: trained by {name}, not by {found.__name__}")
    try:
        return trainer_with_network_of(found, saved.description)
    except SettingsError as error:
        raise ExperimentError(f"{saved.folder / DESCRIPTION}: network.arguments: {error}") from error
