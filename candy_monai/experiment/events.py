"""The events that observers of a run receive: immutable data. An observer never receives the trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from candy_monai.forecasting.best_score import Forecast
from candy_monai.forecasting.curve import ScoreRange
from candy_monai.plotting.case.views import CaseView


@dataclass(frozen=True, kw_only=True)
class RunStarted:
    """A run has started; its folder exists.

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
        class_names: The names of the classes or regions, including the background; empty if they have none.
        epoch: Number of epochs already done: above 0 for a resumed run.
        summary: A text table of the network's modules and their trainable parameters.
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
    class_names: tuple[str, ...] = ()
    epoch: int = 0
    summary: str = ""


@dataclass(frozen=True, slots=True)
class StepFinished:
    """A training batch or a validation case was finished.

    Attributes:
        epoch: The current epoch, counted from 1.
        phase: ``training`` or ``validation``.
        done: Steps or cases done in this phase, by one process.
        total: Steps or cases in this phase, of one process; None if unknown.
        num_samples: Samples of this step, in all processes; None if unknown.
    """

    epoch: int
    phase: str
    done: int
    total: int | None
    num_samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A validated case, on the CPU and detached.

    Attributes:
        image: ``(C, *spatial)``.
        label: ``(1, *spatial)``, ids.
        output: The output of ``validate_case``, usually logits ``(classes, *spatial)``.
        draw: Writes pictures of the case into the folder of its run when called; None to draw nothing.
        case_id: The case's id; empty if the loader yields none.
    """

    image: Tensor = field(repr=False)
    label: Tensor = field(repr=False)
    output: Tensor = field(repr=False)
    draw: Callable[[], None] | None = None
    case_id: str = ""


@dataclass(frozen=True, kw_only=True)
class ValidatedCase:
    """The scores of one validated case.

    Attributes:
        case_id: Its id, or a name such as ``case 3`` if the loader yields none.
        score: The score from ``validate_case``; NaN if it has none.
        metrics: The metrics that it returned, by name.
    """

    case_id: str
    score: float
    metrics: Mapping[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class ViewedCase:
    """A validated case for viewing.

    Attributes:
        case_id: Its id.
        score: Its score; NaN if it has none.
        role: ``worst``, ``median`` or ``best``.
        rank: Its place among the scored cases, the worst being 1.
        num_cases: Number of scored cases.
        view: Image, reference and prediction, reduced.
    """

    case_id: str
    score: float
    role: str
    rank: int
    num_cases: int
    view: CaseView = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Validated:
    """The cases of one validation.

    Attributes:
        cases: All of them, in the order in which they were validated.
        views: The worst, the median and the best of those that this process validated.
    """

    cases: Sequence[ValidatedCase] = field(repr=False)
    views: Sequence[ViewedCase] = ()


@dataclass(frozen=True, kw_only=True)
class EpochFinished:
    """An epoch has ended and is saved.

    Attributes:
        epoch: The epoch, counted from 1.
        num_epochs: Expected number of epochs of the run.
        metrics: Every metric over all epochs so far.
        score: This epoch's validation score; None if it was not validated.
        best_score: The best score so far; minus infinity before the first.
        best_epoch: Its epoch; 0 before the first.
        early_stop_tolerance: Remaining epochs without improvement before the run stops; None for any number.
        preview: The case to draw; None if there is none.
        forecast: The forecast of the best score; None if it is disabled, or the epoch was not validated.
        score_range: The smallest and the largest possible score; None if unknown.
        has_time_limit: Whether ``num_epochs`` is an estimate, since time decides.
        num_validated: Number of cases in the mean score; None if unknown, or if the epoch was not validated.
        standard_error: The standard error of that mean; NaN if unknown.
        validated: The cases of its validation; None if there was none, or if they were not requested.
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
    validated: Validated | None = field(default=None, repr=False)
    step: int = 0


@dataclass(frozen=True)
class MessageLogged:
    """A message for the console, which is already in ``logs.txt``.

    Attributes:
        line: The line of the log, with the time.
        text: The message without the time.
    """

    line: str
    text: str = ""


@dataclass(frozen=True)
class RunInterrupted:
    """The run has ended early with an exception, including Ctrl-C.

    Attributes:
        error: The exception.
    """

    error: BaseException


@dataclass(frozen=True, kw_only=True)
class RunFinished:
    """The run has ended as planned or by early stopping.

    Attributes:
        epoch: The number of epochs that were trained.
        best_score: The best score; minus infinity without any.
        best_epoch: Its epoch; 0 without any.
    """

    epoch: int
    best_score: float
    best_epoch: int


@dataclass(frozen=True, kw_only=True)
class RunScored:
    """The best weights of a planned run were scored on whole cases, in the geometry of their files.

    It comes after the run.

    Attributes:
        scores: Means by metric (``dice``), and by metric and class (``dice/Liver``); NaN where no case has the class.
        num_cases: Number of scored cases.
        file: The file with the scores of each case.
    """

    scores: Mapping[str, float]
    num_cases: int
    file: Path


Event = RunStarted | StepFinished | EpochFinished | MessageLogged | RunInterrupted | RunFinished | RunScored
