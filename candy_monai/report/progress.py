"""The progress of a run, from its last event or from its folder, and the first lines of a page."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from candy_monai.columns import EPOCH_DURATION, SCORE
from candy_monai.errors import ExperimentError
from candy_monai.experiment.description import ExperimentDescription
from candy_monai.experiment.events import EpochFinished
from candy_monai.experiment.folder import LOCK, METRICS, STATE
from candy_monai.experiment.history import History, load_metrics
from candy_monai.experiment.score_prediction import (
    chance_as_text,
    duration_as_text,
    predict_safely,
    score_as_text,
    seconds_until,
)
from candy_monai.experiment.state import load_state
from candy_monai.experiment.summary import Summary
from candy_monai.experiment.time_limit import epochs_in_time
from candy_monai.forecasting.best_score import Forecast
from candy_monai.metrics.interval import half_width
from candy_monai.report.facts import end_of_log

State = Literal["running", "finished", "interrupted", "failed"]

_FINISHED: tuple[State, str] = ("finished", "")
_END = re.compile(r"\] Interrupted in epoch \d+(?:: (.*))?$")
_BEGIN = re.compile(r"\] Experiment .+ in .+$")
_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "KeyboardInterrupt", "SystemExit")
_CONCLUSION = re.compile(r"\] (Best validation score|Early stopping triggered|The time is up)")
_STALE_AFTER_S, _STALE_AFTER_EPOCHS = 600.0, 3.0
"""A page is written after each epoch: one of a run that goes on is not older than its longest epochs, and more."""


@dataclass(frozen=True, kw_only=True)
class RunProgress:
    """How far a run has come."""

    state: State
    epoch: int = 0  # done
    num_epochs: int | None = None  # as far as can be told
    metrics: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)  # over the epochs
    best_score: float | None = None  # None before the first
    best_epoch: int = 0
    reason: str = ""  # for ending early; empty if it did not, or if unknown
    forecast: Forecast | None = None  # of its best score
    is_estimate: bool = False  # whether ``num_epochs`` is an estimate, since time decides
    num_validated: int | None = None  # cases in the best mean score
    standard_error: float = math.nan  # of that mean
    can_go_on: bool = True  # whether its state can be read
    lacking: str = ""  # a sentence about files that could not be read


def progress_of_event(event: EpochFinished) -> RunProgress:
    """Return the progress given by an event."""
    is_best = event.best_epoch == event.epoch
    return RunProgress(
        state="running",
        epoch=event.epoch,
        num_epochs=event.num_epochs,
        metrics=event.metrics,
        best_score=event.best_score if event.best_epoch else None,
        best_epoch=event.best_epoch,
        forecast=event.forecast,
        is_estimate=event.has_time_limit,
        num_validated=event.num_validated if is_best else None,
        standard_error=event.standard_error if is_best else math.nan,
    )


def progress_of_folder(folder: Path, description: ExperimentDescription) -> RunProgress:
    """Return the progress given by the files of a run, of any version."""
    planned = description.setting("num_epochs")
    try:
        state = load_state(folder, verify=False)
    except ExperimentError:  # of another version, or half copied
        return _from_metrics(folder, planned if isinstance(planned, int) else None)
    history = History()
    history.load_state_dict(state.history)
    metrics, progress, settings = history.metrics(), state.progress, state.settings
    how, reason = _FINISHED if state.is_complete else _unfinished(folder)
    num_epochs = progress.epoch
    if not state.is_complete:
        durations, limit_s = metrics.get(EPOCH_DURATION, ()), settings.time_limit_s
        planned_epochs = epochs_in_time(
            durations, elapsed_s=progress.total_s, num_epochs=settings.num_epochs, limit_s=limit_s
        )
        num_epochs = max(num_epochs, planned_epochs)
    forecast = None
    if how == "running" and settings.val_score_prediction:
        found = description.score_range
        score_range = (found[0], found[1]) if found is not None and len(found) == 2 else None
        forecast = predict_safely(
            metrics, num_epochs, degree=settings.val_score_prediction_degree, score_range=score_range
        )
    return RunProgress(
        state=how,
        epoch=progress.epoch,
        num_epochs=num_epochs,
        metrics=metrics,
        best_score=progress.best_score if progress.best_epoch else None,
        best_epoch=progress.best_epoch,
        reason=reason,
        forecast=forecast,
        is_estimate=settings.time_limit_s is not None and not state.is_complete,
    )


def best_of(progress: RunProgress) -> dict[str, Any]:
    """Return the number of cases and the standard error of the best score, which only the page of a run stores."""
    return {
        "epoch": progress.best_epoch,
        "num_validated": progress.num_validated,
        "standard_error": progress.standard_error if math.isfinite(progress.standard_error) else None,
    }


def with_kept(progress: RunProgress, kept: Mapping[str, Any]) -> RunProgress:
    """Return the progress of a folder with the data about the best score from its page, if it is still the best."""
    best = kept.get("best")
    if not isinstance(best, Mapping) or best.get("epoch") != progress.best_epoch:
        return progress
    count, error = best.get("num_validated"), best.get("standard_error")
    return replace(
        progress,
        num_validated=count if isinstance(count, int) else None,
        standard_error=float(error) if isinstance(error, int | float) else math.nan,
    )


def tiles_of(progress: RunProgress, final: Summary | None, *, now: datetime) -> list[dict[str, Any]]:
    """Return the tiles at the top of a page, each with a label, a value and a sentence."""
    tiles = [_final_tile(final)] if final is not None else []
    best = {"label": "Best score", "value": "none yet", "detail": ""}
    if progress.best_score is not None:
        rests = ""
        if progress.num_validated:
            half = half_width(progress.standard_error, progress.num_validated)
            within = f" (±\u00a0{score_as_text(half)})" if math.isfinite(half) else ""
            rests = f", mean of {progress.num_validated} cases{within}"
        best |= {"value": score_as_text(progress.best_score), "detail": f"at epoch {progress.best_epoch}{rests}"}
    tiles.append(best)
    total, about = progress.num_epochs, "about " if progress.is_estimate and progress.state == "running" else ""
    of = f" of {about}{total}" if total is not None else ""
    share = min(1.0, progress.epoch / total) if total else None
    durations = [value for value in progress.metrics.get(EPOCH_DURATION, ()) if math.isfinite(value)]
    pace = (
        f"{duration_as_text(durations[-1]) if durations[-1] >= 10 else f'{durations[-1]:.2g} s'} the last one"
        if durations
        else ""
    )
    if progress.lacking:
        tiles.append({"label": "Epochs", "value": "unknown", "detail": progress.lacking})
    else:
        tiles.append({"label": "Epochs", "value": f"{progress.epoch}{of}", "detail": pace, "share": share})
    spent = duration_as_text(math.fsum(durations))
    if progress.state == "running" and total is not None and durations:
        left = seconds_until(total, progress.epoch, progress.metrics)
        ends = f"{_end_of(now, left)}{spent} so far"
        tiles.append({"label": "Time left", "value": duration_as_text(left), "detail": ends})
    elif durations:
        tiles.append({"label": "Time", "value": spent, "detail": "of training and validation"})
    if progress.state == "running" and progress.forecast is not None:
        tiles.append(_forecast_tile(progress.forecast, progress.best_score))
    return tiles


def _end_of(now: datetime, left_s: float) -> str:
    try:
        return f"ends about {now + timedelta(seconds=left_s):%a %H:%M}, "
    except OverflowError:  # epochs without end, for a run that is to be stopped by hand
        return ""


def status_of(progress: RunProgress) -> dict[str, Any]:
    """Return the state of a run, a sentence on it, and the seconds after which a page with it is out of date."""
    how = "can" if progress.can_go_on else "cannot"
    words = {
        "running": "is being trained",
        "finished": "is finished",
        "interrupted": f"was interrupted, and {how} be continued",
        "failed": f"has failed, and {how} be continued{' once the cause is fixed' * progress.can_go_on}",
    }[progress.state]
    status: dict[str, Any] = {"state": progress.state, "words": words, "reason": progress.reason}
    durations = [value for value in progress.metrics.get(EPOCH_DURATION, ()) if math.isfinite(value)]
    if progress.state == "running" and durations:
        status["stale_after_s"] = max(_STALE_AFTER_S, _STALE_AFTER_EPOCHS * max(durations))
    return status


def forecast_of(progress: RunProgress) -> dict[str, Any] | None:
    """Return the values of a forecast for a chart; None if there is none."""
    found = progress.forecast
    if found is None or found.interval is None or progress.state != "running" or progress.num_epochs is None:
        return None
    low, high = found.interval
    return {
        "from": progress.epoch,
        "to": progress.num_epochs,
        "best": progress.best_score,
        "score": found.score,
        "low": low,
        "high": high,
        "epoch": found.epoch,
    }


def _final_tile(final: Summary) -> dict[str, Any]:
    ends, count, of = (final.content.get(name) for name in ("dice_interval_95", "num_cases", "num_validation_cases"))
    value = "none" if final.dice is None else score_as_text(final.dice)
    detail = f"Dice of the best weights on {count} of {of} cases" if count is not None else "Dice of the best weights"
    if isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends):
        detail += f"; 95 % interval {score_as_text(ends[0])} to {score_as_text(ends[1])}"
    return {"label": "Final score", "value": value, "detail": detail}


def _forecast_tile(found: Forecast, best: float | None) -> dict[str, Any]:
    if found.interval is None:
        return {"label": "Forecast", "value": "none", "detail": str(found.reason)}
    low, high = found.interval
    chance = "" if best is None else f"; the chance of a better one is {chance_as_text(found.chance_above(best))}"
    detail = f"at epoch {found.epoch}; {low:.4f} to {high:.4f} in 80 % of the runs that get better{chance}"
    return {"label": "Forecast", "value": score_as_text(found.score), "detail": detail}


def _from_metrics(folder: Path, planned: int | None) -> RunProgress:
    try:
        metrics = load_metrics(folder / METRICS)
    except (OSError, ValueError, LookupError, TypeError, csv.Error):  # rows of other lengths, fields that never end
        metrics = {}
    scores = metrics.get(SCORE, [])
    known = [score for score in scores if math.isfinite(score)]
    epoch = max(map(len, metrics.values()), default=0)
    is_done = (planned is not None and epoch >= planned) or _says_that_it_is_over(folder)
    how, reason = _FINISHED if is_done else _unfinished(folder)
    return RunProgress(
        state=how,
        reason=reason,
        epoch=epoch,
        num_epochs=planned,
        metrics=metrics,
        best_score=max(known, default=None),
        best_epoch=scores.index(max(known)) + 1 if known else 0,
        can_go_on=False,
        lacking="" if epoch else f"neither {STATE} nor {METRICS} can be read",
    )


def _says_that_it_is_over(folder: Path) -> bool:
    """Return whether the log ends like that of a run that finished or was stopped early."""
    for line in reversed(end_of_log(folder)[0]):
        if _CONCLUSION.search(line):
            return True
        if _END.search(line) or _BEGIN.search(line):
            break
    return False


def _unfinished(folder: Path) -> tuple[State, str]:
    """Return the state of a run that has epochs left, and the reason why it ended."""
    if _is_being_trained(folder):
        return "running", ""
    for line in reversed(end_of_log(folder)[0]):
        if match := _END.search(line):
            reason = match[1] or ""
            return ("interrupted" if reason.startswith(_SIGNALS) or not reason else "failed"), reason
        if _BEGIN.search(line):
            break
    return "interrupted", "it ended without a message, as a killed process does"


def _is_being_trained(folder: Path) -> bool:
    path = folder / LOCK
    if not path.exists():
        return False
    lock = FileLock(path, blocking=False, fallback_to_soft=False)  # a marker would outlive a killed run
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:  # a folder that may only be read, or a file system without locks
        return False
    lock.release()
    return False
