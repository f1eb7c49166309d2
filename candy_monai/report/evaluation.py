"""The pages of an evaluation and of a cross-validation, with the cases of all its folds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError
from candy_monai.experiment.runs import folds_below
from candy_monai.experiment.summary import summary_of
from candy_monai.report.comparison import ComparedRun, compared_runs, content_of_runs, overlaid
from candy_monai.report.document import VERSION, Document, as_plain
from candy_monai.report.page import write_page
from candy_monai.report.tables import Cell, Column, ScoredCase, Table, as_cell, scored_cases, tables_of_cases, texts

CROSS_VALIDATION_PAGE = "crossval.html"


def write_evaluation(
    summary: Mapping[str, Any], to: PathLike, *, title: str, notes: Sequence[str] = (), names: Mapping[int, str]
) -> Path:
    """Write the page of an evaluation, and return its path.

    The summary is that of `EvalResult.to_dict`; the notes are sentences about omitted cases.
    """
    cases = scored_cases(summary_of(summary, source=title))
    note = " ".join(f"{sentence.rstrip('.')}." for sentence in notes)
    content = {
        **_common("evaluation"),
        "tiles": _tiles(cases, {**(summary.get("foreground_mean") or {}), **summary.get("mean_values", {})}),
        "tables": as_plain(tables_of_cases(cases, names, note=note)),
    }
    count = "1 case" if len(cases) == 1 else f"{len(cases)} cases"
    return write_page(
        Document(title=title, status=f"{count} compared with their references", content=content), Path(to)
    )


def write_cross_validation(folder: PathLike, *, to: PathLike | None = None) -> Path:
    """Write the page of a cross-validation: its folds, their curves, and the cases of all of them; return its path.

    It is ``crossval.html`` in the folder unless another file is given. One of the folds must have an experiment.
    """
    folder = Path(folder)
    found = {fold: run for fold, run in folds_below(folder).items() if run is not None}
    if not found:
        raise BadInputError(f"{folder}: no cross-validation with an experiment in its folds")
    runs = compared_runs(list(found.values()), names=[f"fold {fold}" for fold in found])
    is_final = any(run.final is not None for run in runs)
    # Scores of the best weights are not mixed with those of a validation on the way.
    by_run = [run.cases(final=is_final) if not is_final or run.final is not None else ([], {}) for run in runs]
    cases = [case for own, _ in by_run for case in own]
    names = next((labels for _, labels in by_run if labels), {})
    fold_of = {case.case_id: run.name for run, (own, _) in zip(runs, by_run, strict=True) for case in own}
    note = (
        "The best weights of each fold on the cases that it left out." if is_final else "Each fold's last validation."
    )
    if is_final and (lacking := [run.name for run in runs if run.final is None]):
        note += f" Those of {', '.join(lacking)} are not scored yet."
    note += "".join(f" {run.name}: {run.damaged}" for run in runs if run.damaged)
    tables = as_plain(tables_of_cases(cases, names, note=note))
    if tables:
        tables[0]["columns"].insert(1, *as_plain(texts("fold")))
        for row in tables[0]["rows"]:
            row.insert(1, fold_of[row[0]])
    content = {
        **_common("crossval"),
        "tiles": _tiles(cases),
        "runs": content_of_runs(runs),
        "folds": as_plain(_table_of_folds(runs, by_run)),
        "figures": as_plain(overlaid(runs)),
        "tables": tables,
    }
    status = f"{len(runs)} folds with {len(cases)} scored cases"
    return write_page(
        Document(title=folder.resolve().name, status=status, content=content),
        Path(to or folder / CROSS_VALIDATION_PAGE),
    )


def _common(kind: str) -> dict[str, Any]:
    now = datetime.now().timestamp()
    return {"version": VERSION, "kind": kind, "note": "", "written": now, "status": {"state": "finished"}}


def _table_of_folds(
    runs: Sequence[ComparedRun], by_run: Sequence[tuple[Sequence[ScoredCase], Mapping[int, str]]]
) -> Table:
    columns = [*texts("fold", "state"), Column(name="epochs"), Column(name="cases")]
    columns += [Column(name="final Dice", better="higher"), *texts("run")]
    rows: list[list[Cell]] = []
    for run, (cases, _) in zip(runs, by_run, strict=True):
        score = None if run.final is None or run.final.dice is None else as_cell(run.final.dice)
        rows.append(
            [run.name, run.progress.state, float(run.progress.epoch), float(len(cases)), score, str(run.facts.folder)]
        )
    return Table(title="Folds", columns=columns, rows=rows)


def _tiles(cases: Sequence[ScoredCase], means: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the mean of each metric, that of the summary or else of the cases, with the spread of the cases."""
    tiles = []
    for name in dict.fromkeys(name for case in cases for name in case.metrics):
        known = [value for case in cases if not math.isnan(value := case.metrics.get(name, math.nan))]
        values = [value for value in known if math.isfinite(value)]
        mean = (means or {}).get(name, statistics.fmean(values) if values else None)
        if mean is None:
            continue
        detail = "mean of the cases" if means is None or name not in means else "mean of the classes' means"
        if values:
            detail += f"; {len(values)} cases, {min(values):.4f} to {max(values):.4f}"
        if len(values) > 1:
            detail += f", standard deviation {statistics.stdev(values):.4f}"
        if len(values) < len(known):
            detail += f"; {len(known) - len(values)} infinite"
        tiles.append({"label": name, "value": mean if isinstance(mean, str) else f"{mean:.4f}", "detail": detail})
    return tiles
