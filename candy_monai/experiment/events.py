"""What observers are told about a run: frozen facts, no behaviour. An observer never receives the Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from candy_monai.forecasting.best_score import Forecast
from candy_monai.forecasting.curve import ScoreRange


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """A run begins; its folder exists.

    Attributes:
        experiment_id: ``YYYYMMDD-HH-xxxx``.
        folder: The experiment folder.
        trainer: The trainer's class name.
        model: The network's class name.
        note: The user's note.
        num_params: Trainable parameters.
        num_macs: Multiply-accumulate operations of one forward pass of one example; NaN if they could not be counted.
        num_epochs: Epochs planned.
        early_stop_tolerance: Epochs without improvement before the run stops; None for never.
        epoch: Epochs that are done already: above 0 in a run that goes on.
        summary: The network's parts and their trainable parameters, as a table in text.
    """

    experiment_id: str
    folder: Path
    trainer: str
    model: str
    note: str
    num_params: float
    num_macs: float
    num_epochs: int
    early_stop_tolerance: int | None
    epoch: int = 0
    summary: str = ""


@dataclass(frozen=True, slots=True)
class StepFinished:
    """One batch was trained on, or one case validated.

    Attributes:
        epoch: The current epoch, counted from 1.
        phase: ``training`` or ``validation``.
        done: Steps or cases done in this phase.
        total: Steps or cases in this phase; None if unknown.
    """

    epoch: int
    phase: str
    done: int
    total: int | None


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One validated case, on the CPU, detached.

    Attributes:
        image: ``(C, *spatial)``.
        label: ``(1, *spatial)``, ids.
        output: What ``validate_case`` returned, usually logits ``(classes, *spatial)``.
        draw: Writes pictures of the case into the folder of its run, whenever it is called; None to draw nothing.
    """

    image: Tensor = field(repr=False)
    label: Tensor = field(repr=False)
    output: Tensor = field(repr=False)
    draw: Callable[[], None] | None = None


@dataclass(frozen=True, kw_only=True)
class EpochFinished:
    """An epoch ended and is on disk.

    Attributes:
        epoch: The epoch, counted from 1.
        num_epochs: Epochs that the run will have, as far as can be told now.
        metrics: Every metric over all epochs so far.
        score: This epoch's validation score; None if it was not validated.
        best_score: The best score so far; minus infinity before the first.
        best_epoch: Its epoch; 0 before the first.
        early_stop_tolerance: Epochs that may still pass without improvement; None for any number.
        preview: The case to look at; None if there is none.
        forecast: Of the run's best score; None if it was not asked for, or the epoch was not validated.
        score_range: The least and the largest score that there can be; None if it is unknown.
        has_time_limit: Whether ``num_epochs`` is an estimate, since time decides.
        num_validated: Cases that the score is the mean of; None if that is unknown or it was not validated.
        standard_error: Of that mean; NaN if it is unknown.
        step: Optimizer steps so far.
    """

    epoch: int
    num_epochs: int
    metrics: Mapping[str, Sequence[float]] = field(repr=False)
    score: float | None
    best_score: float
    best_epoch: int
    early_stop_tolerance: int | None
    preview: Preview | None
    forecast: Forecast | None = None
    score_range: ScoreRange | None = None
    has_time_limit: bool = False
    num_validated: int | None = None
    standard_error: float = math.nan
    step: int = 0


@dataclass(frozen=True)
class MessageLogged:
    """A message for the screen, already in ``logs.txt``."""

    line: str


@dataclass(frozen=True)
class RunInterrupted:
    """The run ends early with an exception, Ctrl-C among them."""

    error: BaseException


@dataclass(frozen=True, kw_only=True)
class RunFinished:
    """The run ended as planned or by early stopping."""

    epoch: int
    best_score: float
    best_epoch: int


@dataclass(frozen=True, kw_only=True)
class RunScored:
    """The best weights of a planned run were scored on whole cases, in the geometry of their files.

    It comes after the run, and frontends only are told.

    Attributes:
        scores: Means by metric (``dice``), and by metric and class (``dice/Liver``); NaN where no case has the class.
        num_cases: Cases that were scored.
        file: Where the scores of each case are.
    """

    scores: Mapping[str, float]
    num_cases: int
    file: Path


Event = RunStarted | StepFinished | EpochFinished | MessageLogged | RunInterrupted | RunFinished | RunScored
