"""A dashboard in Notion: one page for each run in the user's database, kept up to date.

The columns are listed in `candy_monai.frontends.notion_table`, the requests are sent by
`candy_monai.frontends.notion_client`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import ClassVar

from typing_extensions import override

from candy_monai.columns import EPOCH_DURATION, SCORE
from candy_monai.config import Secret
from candy_monai.errors import SettingsError
from candy_monai.experiment.events import EpochFinished, Event, RunScored, RunStarted
from candy_monai.experiment.score_prediction import seconds_until
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.dashboard import NewPreviews
from candy_monai.frontends.notion_client import BASE_URL, NotionClient, NotionError, NotionUnavailableError
from candy_monai.frontends.notion_table import (
    COMPLETED,
    INTERRUPTED,
    PREVIEWS,
    RUNNING,
    Files,
    NotionTable,
    Span,
    Value,
)

_ID = re.compile(r"[0-9a-f]{32}")


class NotionFrontend(Frontend):
    """Shows each run as a page of a Notion database: status, progress, scores, metrics, previews and expected end.

    Needs the secrets ``notion_api_key`` (of an integration) and ``notion_database_id`` (the id, or the address of the
    database in the browser); the database must be connected to the integration. In a database that has only its title
    the columns are created; in any other one existing columns are filled, and the log names missing ones. A number
    column named after a metric, for example ``val dice``, shows its latest value.

    The latest previews of the run are uploaded to a column ``Previews`` of type *files*.

    A page is found by the experiment's id, so no run gets two pages. If Notion is not available, the log says so once,
    and missed updates are sent with the next epoch.

    Args:
        secrets: The user's secrets by name. ``notion_base_url`` may give another address of the API.
        base_url: Another address of the API, which takes precedence over that in the secrets.

    Raises:
        SettingsError: If a secret is missing or invalid.
    """

    catches_up: ClassVar[bool] = True

    def __init__(self, secrets: Mapping[str, Secret], *, base_url: str | None = None) -> None:
        super().__init__(secrets)
        key = self.require_nonempty_secret("notion_api_key")
        database_id = _database_id(self.require_nonempty_secret("notion_database_id"))
        url = base_url or str(self._secrets.get("notion_base_url") or BASE_URL)
        self._client = NotionClient(key, base_url=url)
        self._table = NotionTable(self._client, database_id, self.log)
        self._previews: NewPreviews | None = None
        self._uploaded: dict[str, str] = {}
        self._waiting: dict[str, bytes] = {}
        self._experiment_id = ""
        self._started = _now()
        self._num_epochs = 0
        self._tolerance: int | None = None
        self._untold: dict[str, Value] = {}
        self._is_cut_off = False

    @override
    def on_experiment_created(
        self,
        experiment_id: str,
        trainer: str,
        model: str,
        note: str,
        num_params: float,
        num_macs: float,
        num_epochs: int,
        early_stop_tolerance: int | None,
    ) -> None:
        self._experiment_id, self._started, self._untold = experiment_id, _now(), {}
        self._num_epochs, self._tolerance = num_epochs, early_stop_tolerance
        self._table.forget_columns()  # they may have changed since the last run
        self._tell_if_possible(
            experiment_id,
            {
                "Status": RUNNING,
                "Progress": 0.0,
                "Epoch": 0.0,
                "Time": Span(start=self._started),
                "Trainer": trainer,
                "Model": model,
                "Params (M)": num_params / 1e6,
                "MACs (G)": num_macs / 1e9,
                "Note": note,
            },
        )

    @override
    def on_experiment_updated(
        self, experiment_id: str, epoch: int, metrics: dict[str, list[float]], early_stop_tolerance: int | None
    ) -> None:
        newest = {name: known[-1] for name, values in metrics.items() if (known := _known(values))}
        facts: dict[str, Value] = {
            **newest,
            "Status": RUNNING,
            "Epoch": float(epoch),
            "Metrics": ", ".join(f"{name} {value:.4g}" for name, value in newest.items()),
        }
        if self._num_epochs:
            facts["Progress"] = epoch / self._num_epochs
        if scores := _known(metrics.get(SCORE, ())):
            facts["Score"] = max(scores)
        if early_stop_tolerance is not None and self._tolerance:
            facts["Early Stop"] = early_stop_tolerance / self._tolerance
        if EPOCH_DURATION in newest:
            left_s = seconds_until(self._num_epochs, epoch, metrics)
            facts["Expected End"] = Span(start=_now() + timedelta(seconds=left_s))
        self._tell_if_possible(experiment_id, facts)

    @override
    def on_event(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._previews, self._uploaded, self._waiting = NewPreviews(event.folder), {}, {}
        elif isinstance(event, EpochFinished) and self._previews is not None and self._previews.are_due(event):
            self._show_previews()
        elif isinstance(event, RunScored):
            scores = {name: score for name, score in event.scores.items() if math.isfinite(score)}
            told: dict[str, Value] = {f"final {name}": score for name, score in scores.items()}
            if "dice" in scores:
                told["Final Score"] = scores["dice"]
            told["Final Scores"] = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
            self._tell(self._experiment_id, told)

    @override
    def on_experiment_closed(self, experiment_id: str) -> None:
        self._show_previews()

    def _show_previews(self) -> None:
        """Upload the changed pictures, and attach all; a failure affects only the pictures."""
        if self._previews is None or not self._table.has(PREVIEWS, "files"):
            return
        try:
            self._waiting |= {path.name: path.read_bytes() for path in self._previews.changed().values()}
            for name, content in list(self._waiting.items()):
                self._uploaded[name] = self._client.upload(name, content, content_type="image/png")
                del self._waiting[name]
            if self._uploaded:
                self._table.write(self._experiment_id, {PREVIEWS: Files(ids=self._uploaded)})
        except NotionUnavailableError as error:
            self.log(f"These previews are not shown in Notion: {error}")
        except NotionError as error:
            self._previews = None
            self.log(f"Previews are not shown in Notion any more: {error}")

    @override
    def on_experiment_completed(self, experiment_id: str) -> None:
        self._tell_end(experiment_id, {"Status": COMPLETED, "Progress": 1.0})

    @override
    def on_experiment_interrupted(self, experiment_id: str, error: BaseException) -> None:
        what = ": ".join(filter(None, (type(error).__name__, str(error))))
        self._tell_end(experiment_id, {"Status": INTERRUPTED, "Observation": what})

    def _tell_end(self, experiment_id: str, facts: Mapping[str, Value]) -> None:
        end = Span(start=self._started, end=_now())
        self._tell(experiment_id, {**facts, "Time": end, "Expected End": Span(start=_now())})

    def _tell_if_possible(self, experiment_id: str, facts: Mapping[str, Value]) -> None:
        """Write now, or with the next epoch if Notion is not available."""
        try:
            self._tell(experiment_id, facts)
        except NotionUnavailableError as error:
            if not self._is_cut_off:
                self.log(f"Notion's page cannot be updated at present; this is tried again: {error}")
            self._is_cut_off = True
        else:
            if self._is_cut_off:
                self.log("Notion is available again")
            self._is_cut_off = False

    def _tell(self, experiment_id: str, facts: Mapping[str, Value]) -> None:
        self._untold |= facts
        self._table.write(experiment_id, self._untold)
        self._untold = {}


def _now() -> datetime:
    return datetime.now().astimezone()


def _database_id(text: str) -> str:
    """Read a database's id: 32 hexadecimal digits, with dashes or without, alone or in the database's address."""
    found = _ID.findall(text.partition("?")[0].replace("-", "").lower())
    if not found:
        raise SettingsError(
            "the secret 'notion_database_id' is not the id of a database: expected its 32 digits 0-9 and a-f, or its "
            "address"
        )
    return str(found[-1])


def _known(values: Sequence[float]) -> list[float]:
    return [float(value) for value in values if math.isfinite(value)]
