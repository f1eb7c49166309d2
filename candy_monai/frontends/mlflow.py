"""A dashboard in MLflow, in a database next to the experiments or in the user's own store."""

from __future__ import annotations

import getpass
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock
from typing_extensions import override

from candy_monai.config import Secret
from candy_monai.errors import SettingsError
from candy_monai.experiment.description import DESCRIPTION
from candy_monai.experiment.events import RunScored, RunStarted
from candy_monai.experiment.folder import LOGS, METRICS
from candy_monai.experiment.runs import COPIES
from candy_monai.frontends.dashboard import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    Dashboard,
    flattened,
    metric_name,
    project_of,
    remember,
    remembered,
)
from candy_monai.optional import require

T = TypeVar("T")

RUN_FILE = "mlflow.json"
"""The file in the experiment folder with the ids of the run and of its experiment in MLflow."""
DATABASE, ARTIFACTS = "mlruns.db", COPIES
"""Beside the experiments."""

_STATUSES = {FINISHED: "FINISHED", INTERRUPTED: "KILLED", FAILED: "FAILED"}
_COUNTED = "run/epoch_duration"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_MOST_METRICS, _MOST_PARAMS = 1000, 100
"""Limits of one request of the server."""
_ENDS_WITH = (DESCRIPTION, METRICS, LOGS, "progress.png", "report.html")
"""Files that are stored as artifacts at the end of the run, if they exist."""


class MLflowFrontend(Dashboard):
    """Logs each run into MLflow: parameters, metrics by epoch, tags and artifacts.

    By default the store is the SQLite database ``mlruns.db`` next to the experiments, with the artifacts in
    ``mlartifacts`` next to it, and no secret is needed: ``mlflow ui --backend-store-uri
    sqlite:///experiments/mlruns.db`` shows it. ``MLFLOW_TRACKING_URI`` (or the secret ``mlflow_tracking_uri``) selects
    another store or a server; MLflow's other variables work as usual, for example ``MLFLOW_TRACKING_TOKEN`` and
    ``MLFLOW_EXPERIMENT_NAME``, which is otherwise the name of the dataset or of the trainer. A resumed run is continued
    under the same id, which is stored in ``mlflow.json`` in the experiment folder. MLflow's telemetry is disabled.

    Args:
        secrets: The user's secrets by name.

    Raises:
        MissingExtraError: If MLflow is not installed, or what it needs for a database.
        SettingsError: If MLflow does not support the tracking URI.
    """

    _client: Any = None

    def __init__(self, secrets: Mapping[str, Secret]) -> None:
        super().__init__(secrets)
        # Its report of each call to its makers is not asked for, and draws from Python's global generator.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        self._mlflow = _required("mlflow")
        self._entities = _required("mlflow.entities")
        uri = os.environ.get("MLFLOW_TRACKING_URI") or self._secrets.get("mlflow_tracking_uri")
        self._uri = None if uri is None else str(uri)
        if self._uri is not None and urlsplit(self._uri).scheme.partition("+")[0] not in _DATABASES:
            _check(self._uri, self._mlflow)
            return
        for module in ("sqlalchemy", "alembic", "mlflow.store.tracking.sqlalchemy_store"):
            _required(module)  # now, since these imports take a second that the training would miss later

    @override
    def _open(self, run: RunStarted, settings: Mapping[str, Any]) -> int:
        uri = self._uri or _uri_of_database(run.folder.resolve().parents[1] / DATABASE)
        database = _database(uri)
        with _quietly(), _alone(database):  # two runs that begin at once would both make the tables
            self._client = self._mlflow.MlflowClient(tracking_uri=uri)
            self._run_id, known = self._found(run.folder) or self._created(run, settings, database)
        self._log_parameters(flattened(settings))
        self._log_input(settings.get("dataset") or {})
        self._client.log_text(self._run_id, run.summary, "model_summary.txt")
        return known

    def _found(self, folder: Path) -> tuple[str, int] | None:
        """Return the id of the run to continue, and its last epoch; None if it is not in this store."""
        run_id = remembered(folder / RUN_FILE).get("run_id")
        if not isinstance(run_id, str):
            return None
        try:
            found = self._client.get_run(run_id)
        except self._mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        if found.info.lifecycle_stage != "active":
            return None
        self._client.update_run(run_id, status="RUNNING")
        return run_id, max((metric.step for metric in self._client.get_metric_history(run_id, _COUNTED)), default=0)

    def _created(self, run: RunStarted, settings: Mapping[str, Any], database: Path | None) -> tuple[str, int]:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or project_of(run, settings)
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            experiment_id = experiment.experiment_id
        else:
            # Of a database MLflow would put the artifacts into the working folder.
            location = None if database is None else (database.parent / ARTIFACTS / metric_name(name)).as_uri()
            experiment_id = self._client.create_experiment(name, artifact_location=location)
        tags = {
            "mlflow.user": _user(),
            "mlflow.source.name": "candy_monai",
            "mlflow.source.type": "LOCAL",
            "mlflow.note.content": run.note,
            "trainer": run.trainer,
            "model": run.model,
            "folder": str(run.folder.resolve()),
        }
        created = self._client.create_run(
            experiment_id, run_name=run.experiment_id, tags={name: value for name, value in tags.items() if value}
        )
        run_id = str(created.info.run_id)
        remember(run.folder / RUN_FILE, {"run_id": run_id, "experiment_id": str(experiment_id)})
        return run_id, 0

    def _log_parameters(self, values: Mapping[str, object]) -> None:
        """Log the parameters; MLflow does not allow changes, so those that differ in a resumed run become tags."""
        texts = {metric_name(name): str(value) for name, value in values.items()}
        logged = self._client.get_run(self._run_id).data.params
        new = [self._entities.Param(name, text) for name, text in texts.items() if name not in logged]
        for some in _batches(new, _MOST_PARAMS):
            self._client.log_batch(self._run_id, params=some)
        for name, text in texts.items():
            if name in logged and logged[name] != text:
                self._client.set_tag(self._run_id, f"resumed/{name}", text)

    def _log_input(self, dataset: Mapping[str, Any]) -> None:
        if dataset.get("name") and dataset.get("digest"):
            about = self._entities.Dataset(
                name=str(dataset["name"]), digest=str(dataset["digest"])[:36], source_type="local", source="{}"
            )
            self._client.log_inputs(self._run_id, [self._entities.DatasetInput(dataset=about)])

    @override
    def _show_epochs(self, epochs: Mapping[int, Mapping[str, float]]) -> None:
        now_ms = int(1000 * time.time())
        metrics = [
            self._entities.Metric(name, value, now_ms, epoch)
            for epoch, values in epochs.items()
            for name, value in values.items()
        ]
        for some in _batches(metrics, _MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=some)

    @override
    def _show_previews(self, pictures: Mapping[str, Path], epoch: int) -> None:
        for path in pictures.values():
            self._client.log_artifact(self._run_id, str(path), "previews")

    @override
    def _show_scores(self, scores: Mapping[str, float], event: RunScored) -> None:
        self._show_epochs({self._num_shown: scores})
        self._client.log_artifact(self._run_id, str(event.file))

    @override
    def _show_end(self, status: str, facts: Mapping[str, str]) -> None:
        for name, text in facts.items():
            self._client.set_tag(self._run_id, name, text)
        self._client.set_terminated(self._run_id, _STATUSES[status])

    @override
    def _close(self) -> None:
        for name in _ENDS_WITH:
            if (file := self._folder / name).is_file():
                self._client.log_artifact(self._run_id, str(file))
        self._client = None


def _required(module: str) -> Any:
    return require(module, extra="mlflow", purpose="report to MLflow")


def _user() -> str:
    """Return the name of the user; empty if the system knows none, as in a container started with a number."""
    try:
        return getpass.getuser()
    except (OSError, LookupError, ImportError):
        return ""


def _check(uri: str, mlflow: Any) -> None:
    """Raise if MLflow does not support such a store, without connecting to it."""
    try:
        mlflow.MlflowClient(tracking_uri=uri)
    except Exception as error:
        first = " ".join(str(error).split())[:300]
        raise SettingsError(
            "MLFLOW_TRACKING_URI is not an address that MLflow can use: expected sqlite:///FILE or https://SERVER "
            f"({first})"
        ) from None


def _uri_of_database(database: Path) -> str:
    """Return the URI of a SQLite database, in which ``%`` and ``?`` of its path are quoted if need be."""
    path, engine = database.as_posix(), _required("sqlalchemy.engine")
    plain = f"sqlite:///{path}"
    # Whether quotes are read as such depends on the version of SQLAlchemy.
    if engine.make_url(plain).database == path:
        return plain
    return str(engine.URL.create("sqlite", database=path).render_as_string())


def _database(uri: str) -> Path | None:
    """Return the file of a SQLite database; None for any other store."""
    if not uri.startswith("sqlite:"):
        return None
    database = Path(_required("sqlalchemy.engine").make_url(uri).database or "").resolve()
    database.parent.mkdir(parents=True, exist_ok=True)
    return database


@contextmanager
def _alone(database: Path | None) -> Iterator[None]:
    """Keep other processes from opening a database that is being created."""
    with nullcontext() if database is None else FileLock(database.with_name(f".{database.name}.lock")):
        yield


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress MLflow's messages about the tables that it creates."""
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
