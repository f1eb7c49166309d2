"""``state.pt``: everything needed to resume a run, as tensors and plain values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from candy_monai.errors import ExperimentError, reason_in_short
from candy_monai.experiment.checkpoints import (
    LATEST,
    CheckpointRecord,
    Checkpoints,
    Weights,
    WeightsKind,
    holds,
    load_tensors,
    load_weights,
    records_of,
    save_tensors,
    staged_path,
)
from candy_monai.experiment.description import FORMAT
from candy_monai.experiment.folder import STATE
from candy_monai.experiment.settings import TrainSettings


@dataclass(kw_only=True)
class Progress:
    """The progress of a run.

    Attributes:
        epoch: Epochs finished.
        step: Optimizer steps made.
        batch: Batches of the current epoch that were trained on; 0 between two epochs.
        learning_rate: The current epoch's first learning rate; NaN between two epochs.
        epoch_s: Seconds that the current epoch took before it was interrupted.
        total_s: Seconds that all finished epochs took, including saving.
        best_score: The best finite validation score so far; minus infinity before the first.
        best_epoch: The epoch of ``best_score``, counted from 1; 0 before the first.
    """

    epoch: int = 0
    step: int = 0
    batch: int = 0
    learning_rate: float = math.nan
    epoch_s: float = 0.0
    total_s: float = 0.0
    best_score: float = -math.inf
    best_epoch: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            is_count = name in ("epoch", "step", "batch", "best_epoch")
            if not isinstance(value, int if is_count else int | float) or (is_count and value < 0):
                raise ValueError(f"{name} is {value!r}, expected {'a number, 0 or more' if is_count else 'a number'}")

    def offer(self, score: float, *, epoch: int) -> bool:
        """Record ``score`` as the best if it is finite and better than the best so far, and return whether it was."""
        if not math.isfinite(score) or score <= self.best_score:
            return False
        self.best_score, self.best_epoch = score, epoch
        return True


@dataclass(frozen=True, kw_only=True)
class RunWeights:
    """The weights of a run at one moment.

    Attributes:
        raw: The weights from the optimizer.
        scored: The validated weights: the moving average if there is one, otherwise ``raw``.
        kind: What ``scored`` is.
    """

    raw: Weights
    scored: Weights
    kind: WeightsKind

    def to_dict(self, *, raw: bool, scored: bool) -> dict[str, Weights]:
        """Return the requested weights, each only once."""
        found: dict[str, Weights] = {"raw": dict(self.raw)} if raw else {}
        return {**found, "scored": dict(self.scored)} if scored and self.kind == "ema" else found


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """The states of a trainer's parts, each in tensors and plain values.

    Attributes:
        optimizer: Of the optimizer.
        scheduler: Of the learning rate's schedule.
        schedule_epochs: The epochs that the schedule is made for.
        scaler: Of half precision's gradient scaler; empty in any other.
        criterion: Of the loss.
        extra: The return value of the trainer's ``get_extra_state``.
        ema: Of the moving average, without its weights where these are in files of their own; None without one.
        processes: For each process its random generators and, within an epoch, its part of the metrics.
    """

    optimizer: Mapping[str, Any]
    scheduler: Any = field(default_factory=dict)
    schedule_epochs: int = 0
    scaler: Mapping[str, Any] = field(default_factory=dict)
    criterion: Any = field(default_factory=dict)
    extra: Any = field(default_factory=dict)
    ema: Mapping[str, Any] | None = None
    processes: Sequence[Mapping[str, Any]] = ()

    def of_process(self, rank: int) -> Mapping[str, Any]:
        """Return the saved state of a process; that of the first one if there is none."""
        return self.processes[rank if rank < len(self.processes) else 0]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The saved state of a run.

    Attributes:
        settings: What ``train`` was told.
        progress: How far it has come.
        history: The state of its `History`.
        early_stopping: The state of its `EarlyStopping`.
        is_complete: Whether no epoch is left.
        kind: Which weights the last validation scored.
        trainer: The states of the trainer's parts.
        checkpoints: What each weight file holds, by its name.
        weights: Weights that are in no weight file, ``raw`` and ``scored``.
    """

    settings: TrainSettings
    progress: Progress
    history: Mapping[str, Any]
    early_stopping: Mapping[str, int]
    is_complete: bool
    kind: WeightsKind
    trainer: TrainerState
    checkpoints: Mapping[str, CheckpointRecord] = field(default_factory=dict)
    weights: Mapping[str, Weights] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: object) -> Self:
        """Return the record of a dictionary from `to_dict`.

        Raises:
            ExperimentError: If it is of another format, or not the state of a run.
        """
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        if not isinstance(content, dict) or not isinstance(found, int) or found != FORMAT:
            is_first = isinstance(found, int) and found == 1
            older = "; it was written by an earlier version, whose runs cannot be continued" if is_first else ""
            raise ExperimentError(f"format {found!r}, this version reads format {FORMAT}{older}")
        own = {entry.name for entry in dataclasses.fields(cls)}
        try:
            return cls(
                **{name: value for name, value in content.items() if name in own}
                | {
                    "settings": TrainSettings(**content["settings"]),
                    "progress": Progress(**content["progress"]),
                    "checkpoints": records_of(content["checkpoints"]),
                    "trainer": TrainerState(
                        **{name: content[name] for name in _TRAINER if name in content},
                    ),
                }
            )
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            reason = reason_in_short(error)
            raise ExperimentError(f"not a state that this version can read: {reason}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``state.pt``."""
        entries = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        trainer = entries.pop("trainer")
        return {
            "format": FORMAT,
            **entries,
            "settings": self.settings.as_dict(),
            "progress": dataclasses.asdict(self.progress),
            "checkpoints": {name: dataclasses.asdict(record) for name, record in self.checkpoints.items()},
            **vars(trainer),
        }


_TRAINER = tuple(entry.name for entry in dataclasses.fields(TrainerState))


def save_state(folder: Path, state: RunState, *, confirm: Callable[[], None]) -> None:
    """Replace ``state.pt`` atomically; ``confirm`` waits until all files that the state names are on the disk."""
    save_tensors(folder / STATE, state.to_dict(), confirm=confirm)


def load_state(folder: Path, *, verify: bool = True) -> RunState:
    """Read ``state.pt`` onto the CPU. No code in it is executed.

    Unless it is to be verified, its checksums are not read, and tensors are read when used.

    Raises:
        ExperimentError: If it is missing, damaged, of another format or not the state of a run.
    """
    path = folder / STATE
    if not path.is_file():
        raise ExperimentError(f"{path}: missing, so this run cannot be continued or checked")
    try:
        content = load_tensors(path) if verify else torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ExperimentError(f"{path}: not readable ({reason_in_short(error)})") from error
    try:
        return RunState.from_dict(content)
    except ExperimentError as error:
        raise ExperimentError(f"{path}: {error}") from error


def stored_weights(state: RunState, checkpoints: Checkpoints, folder: Path) -> RunWeights:
    """Return the weights that belong to a state: from the state itself, or from the files that hold the same.

    Raises:
        ExperimentError: If a file is damaged.
    """
    inside, kind = state.weights, state.kind
    raw = inside["raw"] if "raw" in inside else load_weights(folder / LATEST)
    if kind == "raw":
        return RunWeights(raw=raw, scored=raw, kind=kind)
    if "scored" in inside:
        return RunWeights(raw=raw, scored=inside["scored"], kind=kind)
    file = checkpoints.holding(epoch=state.progress.epoch, kind=kind)
    if file is None:
        raise ExperimentError(f"{folder}: no file holds the averaged weights of epoch {state.progress.epoch}")
    return RunWeights(raw=raw, scored=load_weights(file), kind=kind)


def weight_file(folder: Path, name: str) -> Path:
    """Return the path of a weight file: its final one, or the staged one if a crash prevented the rename."""
    staged = staged_path(folder, name)
    if staged.exists():
        record = load_state(folder).checkpoints.get(name)
        if record is not None and holds(staged, record.digest):
            return staged
    return folder / name
