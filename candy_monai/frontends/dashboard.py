"""What dashboards with a client library show of a run, and when; backends only implement the calls."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from candy_monai.aliases import PathLike
from candy_monai.columns import EPOCH_DURATION, LEARNING_RATE, SCORE, VALIDATION
from candy_monai.experiment.checkpoints import BEST
from candy_monai.experiment.description import read_description
from candy_monai.experiment.events import EpochFinished, Event, RunFinished, RunInterrupted, RunScored, RunStarted
from candy_monai.files import atomic_write_text
from candy_monai.frontends.base import Frontend

PREVIEWS = "*preview*.png"
MOST_PREVIEWS = 50
"""Maximum number of times that previews are sent in a run, evenly spread, besides the last ones."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 600.0
"""First and longest pause after a failure, since a failing client may block for seconds."""

FINISHED, INTERRUPTED, FAILED = "finished", "interrupted", "failed"

_LONGEST_TEXT = 500
_LONGEST_NAME = 200
_OWN_NAMES = {LEARNING_RATE: "run/learning_rate", EPOCH_DURATION: "run/epoch_duration"}
_BEST, _STEP = "val/best_score", "run/step"
_FORECAST = ("forecast/best_score", "forecast/epoch", "forecast/low", "forecast/high")


class Dashboard(Frontend):
    """A frontend that shows settings, metrics, forecast, previews, scores and the end of a run, each only once.

    A subclass implements these with its client, in the methods whose names begin with ``_show`` and in ``_open`` and
    ``_close``. They may raise: the epochs are then shown with the next successful one, after a pause; the log says once
    that they are late, and at the end which are missing.
    """

    catches_up: ClassVar[bool] = True
    _run: RunStarted | None = None
    _newest: EpochFinished | None = None
    _is_open = False

    @override
    def on_event(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._begin(event)
            self._catch_up_if_possible()
        elif isinstance(event, EpochFinished):
            self._newest = event
            self._catch_up_if_possible()
        elif isinstance(event, RunScored):
            self._catch_up()
            self._show_scores({f"final/{metric_name(name)}": score for name, score in _known(event.scores)}, event)
        elif isinstance(event, RunFinished | RunInterrupted):
            self._catch_up()
            status, words = _how_it_ended(event)
            facts, checkpoint = {"status": words}, (self._folder / BEST).resolve()
            self._show_end(status, facts | {"checkpoint": str(checkpoint)} if checkpoint.exists() else facts)

    @override
    def on_experiment_closed(self, experiment_id: str) -> None:
        if self._run is None:
            return
        try:
            self._catch_up()
            self._show_previews_that_changed()
        finally:
            try:
                if self._is_open:
                    self._close()
            finally:
                self._is_open = False
                if self._newest is not None and (missing := self._newest.epoch - self._num_shown) > 0:
                    self.log(
                        f"{type(self).__name__}: {missing} of {self._newest.epoch} epochs are missing in the dashboard"
                    )

    # What a backend does

    def _open(self, run: RunStarted, settings: Mapping[str, Any]) -> int:
        """Begin or find a run, show its settings, and return the number of its epochs that are already shown."""
        raise NotImplementedError

    def _show_epochs(self, epochs: Mapping[int, Mapping[str, float]]) -> None:
        """Show the metrics of epochs, by epoch number and name; NaN is left out."""
        raise NotImplementedError

    def _show_previews(self, pictures: Mapping[str, Path], epoch: int) -> None:
        """Show PNG files, by name."""
        raise NotImplementedError

    def _show_scores(self, scores: Mapping[str, float], event: RunScored) -> None:
        """Show the final scores by name; NaN is left out."""
        raise NotImplementedError

    def _show_end(self, status: str, facts: Mapping[str, str]) -> None:
        """Show the outcome of the run: a status, and a text."""
        raise NotImplementedError

    def _close(self) -> None:
        """Finish pending work; called last for this run."""

    # What is the same for all

    @property
    def _folder(self) -> Path:
        assert self._run is not None
        return self._run.folder

    def _begin(self, run: RunStarted) -> None:
        if self._is_open:  # the run before was not closed: this frontend had been left out of the rest of it
            with suppress(Exception):
                self._close()
        self._run, self._newest = run, None
        self._is_open = self._is_behind = False
        self._num_shown, self._names = 0, MetricNames()
        self._previews = NewPreviews(run.folder)
        self._pause_s, self._not_before = FIRST_PAUSE_S, -math.inf

    def _catch_up_if_possible(self) -> None:
        """Show pending data now, or with the next epoch if the dashboard is not available."""
        if time.monotonic() < self._not_before:
            return
        try:
            self._catch_up()
        except Exception as error:
            self._not_before = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            if not self._is_behind:
                self.log(f"{type(self).__name__} cannot be updated at present; this is tried again: {_in_words(error)}")
            self._is_behind = True
        else:
            if self._is_behind:
                self.log(f"{type(self).__name__} is up to date again")
            self._is_behind, self._pause_s = False, FIRST_PAUSE_S

    def _catch_up(self) -> None:
        assert self._run is not None
        if not self._is_open:
            self._num_shown = min(self._open(self._run, described(self._run)), self._run.epoch)
            self._is_open = True
        event = self._newest
        if event is None or event.epoch <= self._num_shown:
            return
        self._show_epochs(dict(self._rows(event)))
        self._num_shown = event.epoch
        if self._previews.are_due(event):
            self._show_previews_that_changed()

    def _rows(self, event: EpochFinished) -> Iterator[tuple[int, dict[str, float]]]:
        """Yield the epochs that are not shown yet."""
        columns = {self._names.of(column): values for column, values in event.metrics.items()}
        best = -math.inf
        for index, score in enumerate(event.metrics.get(SCORE, [math.nan] * event.epoch)):
            best = best if math.isnan(score) else max(best, score)
            if index < self._num_shown:
                continue
            row = dict(_known({name: values[index] for name, values in columns.items()}))
            if math.isfinite(best):
                row[_BEST] = best
            if index + 1 == event.epoch:
                row |= _of_the_newest(event)
            yield index + 1, row

    def _show_previews_that_changed(self) -> None:
        if changed := self._previews.changed():
            self._show_previews({f"previews/{name}": path for name, path in changed.items()}, self._num_shown)


class NewPreviews:
    """The previews in a run's folder that a dashboard has not shown yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, tuple[int, int]] = {}
        self._due = 0

    def are_due(self, event: EpochFinished) -> bool:
        """Return whether to show them with this epoch, which is the case about 50 times in a run."""
        if event.epoch < self._due:
            return False
        self._due = event.epoch + max(1, event.num_epochs // MOST_PREVIEWS)
        return True

    def changed(self) -> dict[str, Path]:
        """Return the files that are new or have changed, by names that dashboards accept."""
        found = {}
        for path in sorted(self._folder.glob(PREVIEWS)):
            facts = path.stat()
            state = (facts.st_mtime_ns, facts.st_size)
            if not path.name.startswith(".") and self._seen.get(path) != state:
                self._seen[path] = state
                found[metric_name(path.stem.replace("(preview)", ""))] = path
        return found


class MetricNames:
    """The names of a run's metrics in a dashboard: ``val/dice``, ``train/combined_loss``.

    Dashboards group by the part before the slash. No two columns get the same name.
    """

    def __init__(self) -> None:
        self._by_column: dict[str, str] = {}

    def of(self, column: str) -> str:
        """Return a column's name."""
        if column not in self._by_column:
            name = wanted = _OWN_NAMES.get(column) or metric_name("/".join(_group_of(column)))
            number = 2
            taken = {*self._by_column.values(), _BEST, _STEP, *_FORECAST}
            while name in taken:
                name, number = f"{wanted}_{number}", number + 1
            self._by_column[column] = name
        return self._by_column[column]


def _group_of(column: str) -> tuple[str, str]:
    """Return the group of a column and its name there; other hosts write ``val_dice`` and ``train_loss``."""
    for group, start in (("val", VALIDATION), ("val", "val_"), ("train", "train_")):
        if column.startswith(start) and column != start:
            return group, column.removeprefix(start)
    return "train", column


def metric_name(text: str) -> str:
    """Return a name that every dashboard accepts: letters, digits, ``_``, ``-``, ``.``, and ``/`` between."""
    parts = [re.sub(r"[^\w.-]+", "_", part.strip()) for part in text.split("/")]
    return "/".join(part for part in parts if part.strip("."))[:_LONGEST_NAME].rstrip("/") or "_"


def described(run: RunStarted) -> dict[str, Any]:
    """Return the description of a run as nested plain values: settings, network, plan, dataset, environment.

    Case ids and paths of the data are left out, since a dashboard may be on another machine.
    """
    description = read_description(run.folder)
    facts: dict[str, Any] = {
        "trainer": run.trainer,
        "bundle": description.bundle,
        "model": {
            "class": run.model,
            "parameters": run.num_params,
            "macs": run.num_macs if math.isfinite(run.num_macs) else None,
            "arguments": description.network.arguments,
        },
        "settings": {**(description.settings or {}), "num_epochs": run.num_epochs},
        "parts": description.parts,
        "plan": description.plan,
        "processes": description.processes,
        "environment": description.environment,
    }
    if (dataset := description.dataset) is not None:
        facts["dataset"] = {
            "name": dataset.name,
            "digest": dataset.digest,
            "channel_names": dataset.channel_names,
            "labels": dataset.labels,
            "num_training": len(dataset.training or ()),
            "num_validation": len(dataset.validation or ()),
        }
    if (budget := description.budget) is not None:
        facts["budget"] = {"budget_s": budget.budget_s, "usable_s": budget.usable_s, "amp": budget.amp}
    return facts


def flattened(facts: Mapping[str, Any], *, prefix: str = "") -> dict[str, str | int | float | bool]:
    """Return nested values by names such as ``plan/batch_size``: lists as JSON, long texts cut, None left out."""
    flat: dict[str, str | int | float | bool] = {}
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flattened(value, prefix=f"{name}/")
        elif isinstance(value, bool | int | float):
            flat[name] = value
        elif value is not None and not (isinstance(value, list | tuple) and not value):
            text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            flat[name] = text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 3]}..."
    return flat


def remembered(file: Path) -> dict[str, Any]:
    """Return the data written by `remember`; empty if there is no valid file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def remember(file: PathLike, facts: Mapping[str, str | None]) -> None:
    """Write the data with which a dashboard finds a run again when it is resumed."""
    atomic_write_text(file, json.dumps(facts, indent=2) + "\n")


def project_of(run: RunStarted, settings: Mapping[str, Any]) -> str:
    """Return the group of a run in a dashboard: the dataset, or else the trainer."""
    return str((settings.get("dataset") or {}).get("name") or run.trainer)


def _of_the_newest(event: EpochFinished) -> dict[str, float]:
    """Return the metrics that are known only for the last epoch."""
    row: dict[str, float] = {_STEP: event.step} if event.step else {}
    forecast = event.forecast
    if forecast is not None and forecast.interval is not None:
        row |= zip(_FORECAST, (forecast.score, forecast.epoch, *forecast.interval), strict=True)
    return row


def _known(values: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if not math.isnan(value):
            yield name, float(value)


def _how_it_ended(event: RunFinished | RunInterrupted) -> tuple[str, str]:
    if isinstance(event, RunFinished):
        if not event.best_epoch:
            return FINISHED, f"finished after epoch {event.epoch}"
        return FINISHED, f"finished after epoch {event.epoch}, best {event.best_score:.4f} at epoch {event.best_epoch}"
    return INTERRUPTED if isinstance(event.error, KeyboardInterrupt) else FAILED, _in_words(event.error)


def _in_words(error: BaseException) -> str:
    text = " ".join(str(error).split())[:_LONGEST_TEXT]
    return ": ".join(filter(None, (type(error).__name__, text)))
