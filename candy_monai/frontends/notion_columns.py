"""What a Notion database shows of a run: its columns, and how a value is written into a column of each type.

Sends nothing. A value is a text, a number or a `Span` of time; a column takes it if its type can show it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from candy_monai.frontends.notion_client import Object

MAX_TEXT = 2000
MAX_OPTION = 100


@dataclass(frozen=True, kw_only=True)
class Span:
    """A time, or from one time to another."""

    start: datetime
    end: datetime | None = None


Value: TypeAlias = str | float | Span

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
}
"""What is shown beside the title, which is the experiment's id, and the type that a new column gets."""

_SYNONYMS = {
    RUNNING: ("in progress", "running", "training"),
    COMPLETED: ("completed", "complete", "done", "finished"),
    INTERRUPTED: ("interrupted", "failed", "stopped", "canceled", "cancelled", "aborted"),
}


def encoded(column: Object, value: Value) -> Object | None:
    """Write a value for a column.

    Args:
        column: The column as the database describes it, with its ``type``.
        value: What to show; numbers are finite.

    Returns:
        The property's value in Notion's form; None if the column's type cannot show it.
    """
    kind = column.get("type")
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


def _as_text(value: Value) -> str:
    if isinstance(value, Span):
        return " to ".join(f"{time:%Y-%m-%d %H:%M}" for time in (value.start, value.end) if time is not None)
    return value if isinstance(value, str) else f"{value:.4g}"


def _status(column: Object, value: str) -> Object | None:
    """Choose among the options that there are: those of a status column can only be made by hand."""
    settings = column.get("status")
    options = settings.get("options") if isinstance(settings, dict) else None
    found = options if isinstance(options, list) else []
    names = [str(option.get("name")) for option in found if isinstance(option, dict)]
    for word in (value.casefold(), *_SYNONYMS.get(value, ())):
        for name in names:
            if name.casefold() == word:
                return {"status": {"name": name}}
    return None
