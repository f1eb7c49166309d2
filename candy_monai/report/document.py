"""Collect the content of the report page of a run from its folder and, during the run, from its last event."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from candy_monai.columns import EPOCH_DURATION
from candy_monai.errors import BadInputError
from candy_monai.experiment.description import ExperimentDescription, read_description
from candy_monai.experiment.folder import VALIDATION_SCORES
from candy_monai.experiment.summary import Summary, read_summary
from candy_monai.report.curves import figures
from candy_monai.report.facts import (
    FINDINGS,
    budget_of,
    class_names_of,
    commands_of,
    data_of,
    environment_of,
    log_of,
    parts_of,
    plan_of,
    read_findings,
    settings_of,
)
from candy_monai.report.progress import RunProgress, forecast_of, progress_of_folder, status_of, tiles_of, with_kept
from candy_monai.report.script import as_script
from candy_monai.report.tables import ScoredCase, Table, scored_cases, tables_of_cases
from candy_monai.report.viewing import read_kept, validated_cases

REPORT = "report.html"
"""The report page, in the experiment folder."""
VERSION = 1
_LONGEST_REASON = 200
_LOST = (
    f"An earlier {REPORT} of this run was damaged, and with it the cases and images of its last validation are lost, "
    "which no other file holds."
)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A page in plain values."""

    title: str
    status: str  # one line below the title
    content: Mapping[str, Any] = field(repr=False)  # drawn in the browser
    kept: Mapping[str, Any] = field(default_factory=dict, repr=False)  # cases that cannot be read from the folder again
    views: str = field(default="[]", repr=False)  # written by `as_script`


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The content of a run's folder that does not change during the run."""

    folder: Path
    description: ExperimentDescription
    class_names: Mapping[int, str]
    findings: Mapping[str, Any] | None  # None without ``findings.json``
    damaged: str = ""  # a sentence if the findings cannot be read

    @classmethod
    def of(cls, folder: Path) -> RunFacts:
        """Read them; raise if the folder is no experiment, or ``experiment.json`` is damaged."""
        description = read_description(folder)
        names, findings, damaged = class_names_of(description), None, ""
        try:
            findings = read_findings(folder)
        except BadInputError as error:
            damaged = (
                f"What the check of the dataset found and the reasons of the plan are not shown, since {FINDINGS} is "
                f"damaged: {_in_short(error)}."
            )
        return cls(folder=folder, description=description, class_names=names, findings=findings, damaged=damaged)


def document_of_run(
    facts: RunFacts, progress: RunProgress, kept: Mapping[str, Any], views: str, *, now: datetime
) -> Document:
    """Return what the page of a run says."""
    description, folder = facts.description, facts.folder
    final, is_damaged = read_final(folder) if progress.state == "finished" else (None, "")
    name = description.dataset.name if description.dataset is not None else None
    title = " · ".join(filter(None, (name, description.trainer, description.id or folder.name)))
    status = status_of(progress)
    content = {
        "version": VERSION,
        "kind": "run",
        "title": title,
        "note": str(description.setting("note") or ""),
        "written": now.timestamp(),
        "status": status,
        "damaged": [sentence for sentence in (is_damaged, facts.damaged, _LOST * bool(kept.get("lost"))) if sentence],
        "tiles": tiles_of(progress, final, now=now),
        "curves": curves_of(facts, progress),
        "channels": list((description.dataset.channel_names if description.dataset is not None else None) or ()),
        "tables": [as_plain(table) for table in tables_of(facts, kept, final)],
        "data": data_of(description, facts.findings),
        "plan": plan_of(description, facts.findings),
        "settings": settings_of(description),
        "parts": parts_of(description),
        "environment": environment_of(description),
        "budget": budget_of(description),
        "log": log_of(folder),
        "commands": as_plain(
            commands_of(folder, description, is_complete=progress.state == "finished", can_go_on=progress.can_go_on)
        ),
    }
    reason = f": {status['reason']}" if status["reason"] else ""
    return Document(title=title, status=f"This run {status['words']}{reason}", content=content, kept=kept, views=views)


def document_of_folder(folder: Path, *, now: datetime) -> Document:
    """Return the document of the page of a run from its folder, also for runs of earlier versions."""
    facts = RunFacts.of(folder)
    kept, views = read_kept(folder / REPORT)
    progress = with_kept(progress_of_folder(folder, facts.description), kept)
    return document_of_run(facts, progress, kept, as_script(views), now=now)


def curves_of(facts: RunFacts, progress: RunProgress) -> dict[str, Any]:
    """Return the curves of a run, and their axes."""
    return {
        **axes_of(facts, progress),
        "figures": [as_plain(figure) for figure in figures(progress.metrics, facts.class_names)],
        "forecast": forecast_of(progress),
    }


def axes_of(facts: RunFacts, progress: RunProgress) -> dict[str, Any]:
    """Return the axes for the curves of a run: epochs, and the seconds and steps after each epoch."""
    durations = [value if math.isfinite(value) else 0.0 for value in progress.metrics.get(EPOCH_DURATION, ())]
    seconds, total = [], 0.0
    for duration in durations:
        total += duration
        seconds.append(round(total, 1 if total > 100 else 3))
    return {"epochs": progress.epoch, "seconds": seconds, "steps_per_epoch": steps_per_epoch(facts.description)}


def steps_per_epoch(description: ExperimentDescription) -> int | None:
    """Return the number of optimizer steps of an epoch; None if unknown."""
    found = (description.plan or {}).get("iterations_per_epoch")
    accumulate = description.setting("accumulate")
    accumulate = accumulate if isinstance(accumulate, int) and accumulate > 0 else 1
    if not isinstance(found, int):
        data = description.data if isinstance(description.data, Mapping) else {}
        loader = data.get("training")
        samples, batch = (loader.get("samples"), loader.get("batch_size")) if isinstance(loader, Mapping) else (0, 0)
        if not (isinstance(samples, int) and isinstance(batch, int) and samples > 0 and batch > 0):
            return None
        found = -(-samples // batch)
    return -(-found // accumulate)


def read_final(folder: Path) -> tuple[Summary | None, str]:
    """Return the scores of the best weights, ``validation.json``, and a sentence if they are damaged, else empty."""
    path = folder / VALIDATION_SCORES
    if not os.path.lexists(path):
        return None, ""
    try:
        found = read_summary(path)
        scored_cases(found)
    except BadInputError as error:
        return None, (
            f"The scores of the best weights are not shown, since {VALIDATION_SCORES} is damaged: {_in_short(error)}. "
            "Once it is removed, “candy-monai resume” scores them again."
        )
    return found, ""


def _in_short(error: BaseException) -> str:
    """Return the problem of a file, without its path."""
    text = " ".join(str(error).split())
    text = text.partition(".json: ")[2] or text
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 3]}..."


def cases_of_run(
    facts: RunFacts, kept: Mapping[str, Any], final: Summary | None
) -> tuple[list[ScoredCase], Mapping[int, str], str]:
    """Return the scored cases of a run, the names of its classes, and a sentence on the origin of the scores."""
    if final is not None:
        names = {int(i): name for i, name in final.class_names.items() if i.isdecimal()}
        note = "The best weights on whole cases, in the geometry of the files."
        return scored_cases(final), names or facts.class_names, note
    cases = validated_cases(kept, facts.class_names)
    at = f" of epoch {kept['epoch']}" if kept.get("epoch") else ""
    return cases, facts.class_names, f"The last validation{at}."


def tables_of(facts: RunFacts, kept: Mapping[str, Any], final: Summary | None) -> list[Table]:
    """Return the tables of cases and of classes."""
    cases, names, note = cases_of_run(facts, kept, final)
    return tables_of_cases(cases, names, note=note)


def as_plain(value: Any) -> Any:
    """Return records and sequences of them as plain values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: as_plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        if value and isinstance(value[0], float | int):
            return list(value)
        return [as_plain(entry) for entry in value]
    return value
