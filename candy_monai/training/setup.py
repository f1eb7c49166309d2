"""What surrounds a run before its first step: checks of the loaders, its description, and who watches it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from candy_monai.aliases import Shape
from candy_monai.data.inspection.digest import CaseSource, dataset_digest
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.experiment.description import as_json
from candy_monai.experiment.events import Preview, RunStarted
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.settings import TrainSettings
from candy_monai.network import count_macs, num_parameters, plain_network
from candy_monai.observers.base import BackgroundObserver, Observer, ObserverGroup
from candy_monai.observers.forecast import ForecastObserver, Log
from candy_monai.training.overridables import Overridables
from candy_monai.training.toolbox import TrainerToolbox

RENDERING_PATIENCE_S = 60.0


def length(sized: object) -> int | None:
    """Return ``len(sized)``, or None for what has no length, like a loader over a stream."""
    try:
        return len(sized) if isinstance(sized, Sized) else None
    except TypeError:  # a DataLoader over an iterable dataset has __len__ and still no length
        return None


def num_cases(loader: DataLoader[Any]) -> int | None:
    """Return how many samples a loader yields in all, or None if it cannot be known."""
    if loader.batch_size is None:  # batches of a size that the user's own sampler or dataset chooses
        return None
    return length(loader.sampler) if length(loader) is not None else None


def check_loaders(training: DataLoader[Any], validation: DataLoader[Any] | None) -> None:
    """Refuse loaders that yield nothing.

    Raises:
        BadInputError: If the training loader is empty, or a validation loader is given and empty.
    """
    if length(training) == 0:
        raise BadInputError(
            f"the training loader yields no batch: its dataset has {length(training.dataset)} samples, batch_size is "
            f"{training.batch_size} and drop_last is {training.drop_last}"
        )
    if validation is not None and length(validation) == 0:
        raise BadInputError("the validation loader yields no case: give it cases, or pass None to train without")


def check_score_range(score_range: object) -> None:
    """Refuse what is no range of scores.

    Raises:
        SettingsError: If it is neither None nor a pair of bounds, each None or a number, the first below the second.
    """
    if score_range is None:
        return
    if isinstance(score_range, tuple | list) and len(score_range) == 2:
        numbers = [value for value in score_range if isinstance(value, int | float) and not isinstance(value, bool)]
        others = [value for value in score_range if value is not None and value not in numbers]
        if not others and (len(numbers) < 2 or numbers[0] < numbers[1]):
            return
    raise SettingsError(
        "score_range must be the least and the largest validation score, each None for no bound, such as (0, 1) or "
        f"(None, 0), got {score_range!r}"
    )


def describe_loader(loader: DataLoader[Any] | None) -> dict[str, object] | None:
    """Return how many samples and which cases a loader is over, to recognise it by when a run is continued."""
    if loader is None:
        return None
    case_ids = getattr(loader.dataset, "case_ids", None)
    digest = None if case_ids is None else hashlib.sha256("\0".join(case_ids).encode()).hexdigest()[:16]
    return {"samples": num_cases(loader), "batch_size": loader.batch_size, "cases": digest}


def describe_parts(
    toolbox: TrainerToolbox, training: DataLoader[Any], validation: DataLoader[Any] | None
) -> dict[str, object]:
    """Return what a run is made of, in plain values that are the same whenever it is put together in the same way.

    Args:
        toolbox: Before the first step.
        training: The training loader.
        validation: The validation loader.
    """
    network, optimizer = plain_network(toolbox.model), toolbox.optimizer
    digest = hashlib.sha256(str(as_json(network)).encode()).hexdigest()[:16]
    numbers = [name for name, value in optimizer.defaults.items() if isinstance(value, float | tuple) and name != "lr"]
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    return {
        "network": f"{type(network).__name__} of {num_parameters(network)} parameters, layers {digest}",
        "optimizer": {
            "kind": type(optimizer).__name__,
            "lr": rates,
            **{name: [group[name] for group in optimizer.param_groups] for name in numbers},
        },
        "scheduler": type(toolbox.scheduler).__name__,
        "criterion": type(toolbox.criterion).__name__,
        "ema": None if toolbox.ema is None else type(toolbox.ema).__name__,
        "training data": _content_of(training),
        "validation data": None if validation is None else _content_of(validation),
    }


def _content_of(loader: DataLoader[Any]) -> str | None:
    """Return a digest of the files of a dataset that knows them; None of any other."""
    if not isinstance(loader.dataset, CaseSource):
        return None
    try:
        return dataset_digest(loader.dataset)
    except OSError:  # loading says more about what is wrong
        return None


def batches(loader: DataLoader[Any]) -> Iterator[object]:
    """Yield what the loader yields.

    Raises:
        BadInputError: If samples of different sizes cannot be stacked into one batch; it says what to do.
    """
    try:
        yield from loader
    except RuntimeError as error:
        if "equal size" not in str(error):
            raise
        first_line = str(error).partition("\n")[0]  # MONAI appends hints
        raise BadInputError(
            f"the loader cannot stack samples of different sizes into a batch of {loader.batch_size} ({first_line}): "
            "bring them to one size with a transform, cut patches from them, or use batch_size=1"
        ) from error


def floating_type(network: nn.Module) -> torch.dtype:
    """Return the type of a network's first floating parameter, which its images are brought to; else float32."""
    types = (parameter.dtype for parameter in network.parameters() if parameter.is_floating_point())
    return next(types, torch.float32)


def watchers(
    *,
    settings: TrainSettings,
    save_preview: Callable[[Preview], None],
    console: bool,
    others: Sequence[Observer],
    report: Log,
) -> ObserverGroup:
    """Return those who watch the run: the console at once, pictures on a thread of their own, and the others."""
    from candy_monai.observers.pictures import CurvesObserver, PreviewObserver

    pictures: list[Observer] = [CurvesObserver()]
    if settings.save_preview:
        pictures.append(PreviewObserver(save_preview))
    rendering = ObserverGroup(pictures, report)
    group: list[Observer] = []
    if console:
        from candy_monai.observers.notebook import screen_observer

        group.append(screen_observer())
    if settings.val_score_prediction:
        group.append(ForecastObserver(report))
    group += [
        BackgroundObserver(rendering, patience_s=RENDERING_PATIENCE_S, newest_epoch_only=True),
        *others,
    ]
    return ObserverGroup(group, report)


def bundle_of(trainer: Overridables) -> str | None:
    """Return the bundle that can build this trainer's network again; None if a subclass builds one of its own."""
    if "build_network" in vars(trainer):
        return None
    owner = next(cls for cls in type(trainer).__mro__ if "build_network" in vars(cls))
    bundle: str | None = vars(owner).get("bundle")
    return bundle


def run_started(run: Experiment, trainer: str, network: nn.Module, example_shape: Shape) -> RunStarted:
    """Return the event that tells what is about to be trained."""
    settings = run.settings
    return RunStarted(
        experiment_id=run.experiment_id,
        folder=run.folder,
        trainer=trainer,
        model=type(network).__name__,
        note=settings.note,
        num_params=num_parameters(network),
        num_macs=count_macs(network, example_shape),
        num_epochs=settings.num_epochs,
        early_stop_tolerance=run.early_stopping.tolerance,
    )
