"""A Notion database as a table: its columns, the row of an experiment, and the encoding of values.

A value is a text, a number, a `Span` of time or uploaded `Files`; it is written if the type of the column can show it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from candy_monai.frontends.notion_client import (
    NotionClient,
    NotionError,
    NotionUnavailableError,
    Object,
    id_of,
)

MAX_TEXT = 2000
MAX_OPTION = 100


@dataclass(frozen=True, kw_only=True)
class Span:
    """A time, or from one time to another."""

    start: datetime
    end: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Files:
    """Uploaded files: name to id."""

    ids: Mapping[str, str]


Value: TypeAlias = str | float | Span | Files

PREVIEWS = "Previews"
RUNNING, COMPLETED, INTERRUPTED = "In Progress", "Completed", "Interrupted"

COLUMNS: Mapping[str, Object] = {
    "Status": {
        "select": {
            "options": [
                {"name": RUNNING, "color": "blue"},
                {"name": COMPLETED, "color": "green"},
                {"name": INTERRUPTED, "color": "red"},
            ]
        }
    },
    "Progress": {"number": {"format": "percent"}},
    "Epoch": {"number": {}},
    "Score": {"number": {}},
    "Final Score": {"number": {}},
    "Final Scores": {"rich_text": {}},
    "Early Stop": {"number": {"format": "percent"}},
    "Metrics": {"rich_text": {}},
    "Time": {"date": {}},
    "Expected End": {"date": {}},
    "Trainer": {"select": {}},
    "Model": {"select": {}},
    "Params (M)": {"number": {}},
    "MACs (G)": {"number": {}},
    "Note": {"rich_text": {}},
    "Observation": {"rich_text": {}},
    PREVIEWS: {"files": {}},
}
"""The columns besides the title, which is the experiment's id, and their types in a new database."""

_SYNONYMS = {
    RUNNING: ("in progress", "running", "training"),
    COMPLETED: ("completed", "complete", "done", "finished"),
    INTERRUPTED: ("interrupted", "failed", "stopped", "canceled", "cancelled", "aborted"),
}


def encoded(column: Object, value: Value) -> Object | None:
    """Return a value encoded for a column as the database describes it; None if its type cannot show it."""
    kind = column.get("type")
    if isinstance(value, Files):
        return {"files": [_attached(name, i) for name, i in value.ids.items()]} if kind == "files" else None
    if kind in ("title", "rich_text"):
        return {str(kind): [{"text": {"content": _as_text(value)[:MAX_TEXT]}}]}
    if kind == "number" and isinstance(value, float):
        return {"number": value}
    if kind == "date" and isinstance(value, Span):
        end = None if value.end is None else value.end.isoformat(timespec="seconds")
        return {"date": {"start": value.start.isoformat(timespec="seconds"), "end": end}}
    if kind == "select" and isinstance(value, str):
        name = value.replace(",", " ")[:MAX_OPTION]  # an option's name has no commas
        return {"select": {"name": name} if name else None}
    if kind == "status" and isinstance(value, str):
        return _status(column, value)
    return None


def _attached(name: str, upload_id: str) -> Object:
    return {"type": "file_upload", "file_upload": {"id": upload_id}, "name": name[:MAX_OPTION]}


def _as_text(value: str | float | Span) -> str:
    if isinstance(value, Span):
        return " to ".join(f"{time:%Y-%m-%d %H:%M}" for time in (value.start, value.end) if time is not None)
    return value if isinstance(value, str) else f"{value:.4g}"


def _status(column: Object, value: str) -> Object | None:
    """Choose among the options that there are: those of a status column can only be made by hand."""
    settings = column.get("status")
    options = settings.get("options") if isinstance(settings, dict) else None
    found = options if isinstance(options, list) else []
    names = {str(option.get("name")).casefold(): option.get("name") for option in found if isinstance(option, dict)}
    words = (value.casefold(), *_SYNONYMS.get(value, ()))
    name = next((names[word] for word in words if word in names), None)
    return None if name is None else {"status": {"name": name}}


class NotionTable:
    """Writes values into the row of an experiment, which is a page whose title is the experiment's id.

    What cannot be shown is logged once per run.
    """

    def __init__(self, client: NotionClient, database_id: str, log: Callable[[str], None]) -> None:
        self._client = client
        self._database_id = database_id
        self._log = log
        self._source_id = ""
        self._columns: dict[str, Object] = {}
        self._pages: dict[str, str] = {}
        self._unfit: set[str] = set()

    def forget_columns(self) -> None:
        """Read the columns again before the next value is written."""
        self._columns, self._unfit = {}, set()

    def has(self, name: str, kind: str) -> bool:
        """Return whether there is a column of this name (not case-sensitive) and type, as far as columns were read."""
        return any(
            known.casefold() == name.casefold() and column.get("type") == kind
            for known, column in self._columns.items()
        )

    def write(self, title: str, values: Mapping[str, Value]) -> None:
        """Write values by column into the row of this title, which is created if necessary."""
        if not self._columns:
            self._find_columns()
        try:
            self._write(title, values)
        except NotionError as error:
            if error.status not in (400, 404):  # somebody changed a column or removed the page in the meantime
                raise
            self._pages.pop(title, None)
            self._find_columns()
            self._write(title, values)

    def _write(self, title: str, values: Mapping[str, Value]) -> None:
        properties = self._encoded(values)
        if title not in self._pages:
            page_id, is_new = self._client.persist(lambda: self._find_or_create(title, properties))
            self._pages[title] = page_id
            if is_new:
                return
        self._client.request("PATCH", f"/v1/pages/{self._pages[title]}", {"properties": properties})

    def _find_or_create(self, title: str, properties: Object) -> tuple[str, bool]:
        """Return the page, and whether it was just created.

        The page is searched first each time, since a creation may have succeeded although its response was lost.
        """
        name = next(name for name, column in self._columns.items() if column.get("type") == "title")
        query: Object = {"filter": {"property": name, "title": {"equals": title}}, "page_size": 1}
        found = self._client.send("POST", f"/v1/data_sources/{self._source_id}/query", query).get("results")
        if isinstance(found, list) and found:
            return id_of(found[0]), False
        new: Object = {
            "parent": {"type": "data_source_id", "data_source_id": self._source_id},
            "properties": {name: {"title": [{"text": {"content": title}}]}, **properties},
        }
        return id_of(self._client.send("POST", "/v1/pages", new)), True

    def _encoded(self, values: Mapping[str, Value]) -> Object:
        names = {name.casefold(): name for name, column in self._columns.items() if column.get("type") != "title"}
        properties: Object = {}
        for wanted, value in values.items():
            name = names.get(wanted.casefold())
            if name is None or (isinstance(value, float) and not math.isfinite(value)):
                continue
            content = encoded(self._columns[name], value)
            if content is not None:
                properties[name] = content
            elif name not in self._unfit:
                self._unfit.add(name)
                kind = self._columns[name].get("type")
                self._log(f"the Notion database's column {name}, of type {kind}, cannot show {value!r}: left out")
        return properties

    def _find_columns(self) -> None:
        self._source_id, others = self._find_source()
        path = f"/v1/data_sources/{self._source_id}"
        columns = _columns(self._client.request("GET", path))
        if len(columns) == 1:  # a fresh database, with nothing but its title
            try:
                columns = _columns(self._client.request("PATCH", path, {"properties": dict(COLUMNS)}))
            except NotionError as error:
                self._log(f"the columns of the Notion database cannot be created: {error}")
        have = {name.casefold() for name in columns}
        if missing := [name for name in COLUMNS if name.casefold() not in have]:
            self._log(f"the Notion database has no column {', '.join(missing)}: left out")
        if others:
            self._log(f"the Notion database has {others + 1} data sources: the runs go into the first")
        self._columns = columns

    def _find_source(self) -> tuple[str, int]:
        """Return the id of the database's first data source, and how many others there are."""
        sources = self._client.request("GET", f"/v1/databases/{self._database_id}").get("data_sources")
        if not isinstance(sources, list) or not sources:
            raise NotionError("the Notion database has no data source that this integration may see", status=404)
        return id_of(sources[0]), len(sources) - 1


def _columns(source: Object) -> dict[str, Object]:
    properties = source.get("properties")
    if not isinstance(properties, dict) or not properties:
        raise NotionUnavailableError("Notion's answer has no columns")
    return {name: column for name, column in properties.items() if isinstance(column, dict)}
