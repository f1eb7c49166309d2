"""Load the predictor of experiment folders, as ``candy-monai predict`` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from candy_monai.aliases import PathLike
from candy_monai.data.planning.files import plan_of
from candy_monai.errors import WARNING, ExperimentError
from candy_monai.experiment.description import CUSTOM, DESCRIPTION, read_description
from candy_monai.experiment.runs import configurations_below, folds_below, summarize, what_is_below
from candy_monai.incoming.nnunet import NNUNetPredictor
from candy_monai.incoming.opening import kind_of_model, load_predictor
from candy_monai.inference.cases import CasePredictor
from candy_monai.inference.ensemble import EnsemblePredictor
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.inference.predictor import Predictor, experiment_predictor
from candy_monai.recipes.selection import INFERENCE, Selection, selection_in
from candy_monai.recipes.trainers import find_trainer, network_again, trainer_with_network_of
from candy_monai.training.segmentation import SegmentationTrainer


def load_experiments(
    experiments: Sequence[PathLike],
    *,
    trainer: str | None = None,
    checkpoint: str = "best",
    device: str = "cpu",
    mirror: bool = False,
    largest_component: bool = False,
    memory: int | None = None,
    channels: Sequence[int] | None = None,
    trust: bool = False,
    on_progress: Callable[[str], None] = print,
) -> CasePredictor:
    """Return the predictor of one experiment, or of several as an ensemble.

    Args:
        experiments: The experiment folders; the folder of a cross-validation stands for the experiments of its folds,
            or for what `select` chose in it. MONAI Bundles and nnU-Net's model folders are taken as well.
        trainer: ``FILE:Class``, your own trainer that trained the experiments; None for bundles.
        checkpoint: ``best``, ``latest``, or the name of a weight file.
        device: Where to predict.
        mirror: Average over mirrored images along the mirror axes of the plan.
        largest_component: Keep only the largest connected component of each class.
        memory: Memory limit for a case, in bytes; None for no limit.
        channels: The channels of the files to use; see `Predictor`.
        trust: Build any callable that the pipelines of the experiments name, instead of only known transforms.
        on_progress: Called with a line of text that names the folds used, and runs that are not finished.

    Raises:
        BadInputError: If a folder is not an experiment (the message lists the runs in it), an experiment cannot be
            loaded, or the experiments do not fit together.
    """
    selection = selection_in(experiments)
    folders = experiment_folders(experiments, checkpoint=checkpoint, on_progress=on_progress)
    trainer_class = None if trainer is None else find_trainer(own=trainer)
    of_all: dict[str, Any] = {"largest_component": largest_component, "memory": memory}
    options = {"checkpoint": checkpoint, "device": device, "mirror": mirror, "channels": channels, "trust": trust}
    if selection is None and len(folders) == 1:
        return _predictor(folders[0], trainer_class, {**options, **of_all}, on_progress)
    members: list[NetworkPredictor] = []
    for folder in folders:
        predictor = _predictor(folder, trainer_class, options, on_progress)
        members += predictor.members if isinstance(predictor, EnsemblePredictor) else [predictor]
    if selection is None:
        return EnsemblePredictor(members, **of_all)
    if checkpoint == "best":
        selection.check_weights()
    return EnsemblePredictor(
        members, **of_all, postprocessing=selection.postprocessing, thresholds=selection.thresholds
    )


def _is_foreign(folder: Path) -> bool:
    """Return whether a folder holds a model that was trained elsewhere."""
    return kind_of_model(folder) not in (None, "experiment")


def _predictor(
    folder: Path,
    trainer_class: type[SegmentationTrainer] | None,
    options: dict[str, Any],
    on_progress: Callable[[str], None],
) -> NetworkPredictor | EnsemblePredictor:
    if _is_foreign(folder):
        predictor = load_predictor(folder, **options)
        if isinstance(predictor, NNUNetPredictor):
            on_progress(f"{folder}: {predictor.summary}")
        return predictor
    return _member(folder, trainer_class, options)


def experiment_folders(
    folders: Sequence[PathLike], *, checkpoint: str = "best", on_progress: Callable[[str], None] = print
) -> list[Path]:
    """Return the experiments of folders: the folders themselves, or the folds or selected models of a cross-validation.

    Raises:
        ExperimentError: If a folder is neither; the message lists the runs in it.
    """
    found = [run for folder in folders for run in _runs_of(Path(folder), checkpoint, on_progress)]
    times = Counter(run.resolve() for run in found)
    for run, count in times.items():
        if count > 1:
            on_progress(f"{WARNING}{run} is given {count} times, and counts as often in the mean")
    return found


def _runs_of(folder: Path, checkpoint: str, on_progress: Callable[[str], None]) -> list[Path]:
    """Return the experiment or the model of another kind that a folder is, or the experiments of its folds."""
    if _is_foreign(folder):
        return [folder]
    if (folder / DESCRIPTION).is_file():
        _tell_of_unfinished(folder, checkpoint, on_progress)
        return [folder]
    if (folder / INFERENCE).is_file():
        selection = Selection.read(folder)
        on_progress(f"As chosen in {folder / INFERENCE}:")
        for reason in selection.reasons:
            on_progress(f"- {reason}")
        return selection.experiments
    if folds := folds_below(folder):
        return _finished_of(folder, folds, checkpoint, on_progress)
    if configurations := configurations_below(folder):
        raise ExperimentError(
            f"{folder}: a cross-validation of the configurations {', '.join(configurations)}: choose among them with "
            f"candy-monai select {folder}, or give one of them, such as {next(iter(configurations.values()))}"
        )
    below = what_is_below(folder, call="candy-monai predict {run} INPUT OUTPUT", takes_folds=True)
    if not folder.is_dir():
        is_file = folder.is_file()
        found = f"it is a file; did you mean its folder, {folder.parent}?" if is_file else "there is no such folder"
        raise ExperimentError(f"{folder}: not an experiment folder ({found})")
    raise ExperimentError(
        f"{folder}: not an experiment folder (it has no {DESCRIPTION}), nor that of a MONAI Bundle (it has no "
        f"configs/inference.json) or of a trained nnU-Net (it has no plans.json){below}"
    )


def _finished_of(
    folder: Path, folds: Mapping[int, Path | None], checkpoint: str, on_progress: Callable[[str], None]
) -> list[Path]:
    """Return the experiments of the finished folds of a cross-validation, or of all if none is finished."""
    runs = {number: summarize(run) for number, run in folds.items() if run is not None}
    finished = [number for number, run in runs.items() if run.is_finished is not False]
    for number in folds:
        if number not in runs:
            on_progress(f"{folder}: fold {number} has no run, and is left out")
        elif finished and number not in finished:
            on_progress(f"{folder}: fold {number} is not finished, and is left out ({runs[number]})")
    if not runs:
        raise ExperimentError(f"{folder}: a cross-validation of {len(folds)} folds, none of which has a run yet")
    taken = finished or list(runs)
    for number in () if finished else taken:
        _tell_of_unfinished(runs[number].folder, checkpoint, on_progress)
    on_progress(f"{folder}: predicting with {_folds(taken)} of {len(folds)} together")
    return [runs[number].folder for number in taken]


def _folds(numbers: Sequence[int]) -> str:
    return f"fold{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _tell_of_unfinished(folder: Path, checkpoint: str, on_progress: Callable[[str], None]) -> None:
    run = summarize(folder)
    if run.is_finished is False:
        which = f"the {checkpoint} weights so far" if checkpoint in ("best", "latest") else checkpoint
        on_progress(f"Predicting with {which} of a run that is not finished: {run}")


def _member(folder: Path, trainer_class: type[SegmentationTrainer] | None, options: dict[str, Any]) -> Predictor:
    """Return the predictor of one experiment: that of its bundle, or one with the network of the user's own trainer."""
    description = read_description(folder)
    if trainer_class is None:
        if description.bundle is None:
            name = description.trainer
            if description.host is not None:
                raise ExperimentError(
                    f"{folder}: was trained by the {name} of {description.host}, and only its script builds the "
                    "network: predict in Python, Predictor(..., network=...)"
                )
            raise ExperimentError(
                f"{folder}: trained by {name}, a class of your own, which is never imported automatically: give its "
                f"file with --trainer FILE:{name} (in Python Predictor(..., network=...))"
            )
        return experiment_predictor(folder, **options)
    trainer_class = trainer_with_network_of(trainer_class, description)
    trainer = trainer_class("unused", None, None, console=False)  # type: ignore[arg-type]  # it trains nothing
    if description.plan is not None:
        trainer.use_plan(plan_of(description.plan, folder / DESCRIPTION))
    elif description.num_classes is not None:
        trainer.num_classes = description.num_classes
    return Predictor(
        folder,
        network=network_again(trainer, folder, description),
        padding=trainer.build_padding_module(),
        inferer=trainer.inferer if description.inferer == CUSTOM else None,
        **options,
    )
