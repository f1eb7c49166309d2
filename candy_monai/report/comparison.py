"""Compare several runs on one page: their differences, their curves, and their scores case by case."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from candy_monai.aliases import PathLike
from candy_monai.columns import EPOCH_DURATION, better_of
from candy_monai.data.values import join_names
from candy_monai.errors import BadInputError
from candy_monai.experiment.description import as_json
from candy_monai.experiment.runs import names_of_runs
from candy_monai.experiment.score_prediction import duration_as_text
from candy_monai.experiment.summary import Summary
from candy_monai.metrics.interval import half_width, mean_of_known
from candy_monai.report.curves import Figure, Series, figures, hex_color
from candy_monai.report.document import (
    REPORT,
    VERSION,
    Document,
    RunFacts,
    as_plain,
    axes_of,
    cases_of_run,
    read_final,
)
from candy_monai.report.facts import shown
from candy_monai.report.page import write_page
from candy_monai.report.progress import RunProgress, progress_of_folder
from candy_monai.report.script import as_script
from candy_monai.report.tables import Cell, Column, ScoredCase, Table, as_cell, main_metric, texts
from candy_monai.report.viewing import read_kept

COMPARISON = "comparison.html"
MOST_VIEW_BYTES = 6_000_000
_SAME = 1e-6
"""Scores that differ by less than this are treated as equal."""
_MOST_CLASSES = 4  # with curves of their own
_LONGEST_LIST = 12
_ABOUT_THE_RUN = ("format", "id", "settings", "environment", "plan", "dataset", "pipelines", "budget")


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run of a comparison."""

    name: str  # unique
    facts: RunFacts
    progress: RunProgress
    kept: Mapping[str, Any] = field(repr=False)  # of its page: the cases of its last validation
    views: Sequence[Any] = field(repr=False)  # of its page: the cases for viewing
    final: Summary | None = field(repr=False)  # the scores of the best weights; None if there are none
    damaged: str = ""  # a sentence if their file is damaged; otherwise empty

    def cases(self, *, final: bool) -> tuple[list[ScoredCase], Mapping[int, str]]:
        """Return the scored cases, of the best weights or of the last validation, and the names of their classes."""
        cases, names, _ = cases_of_run(self.facts, self.kept, self.final if final else None)
        return cases, names


def write_comparison(folders: Sequence[PathLike], to: PathLike) -> Path:
    """Write a page that compares runs, given their experiment folders, also of earlier versions; return its path.

    Raises:
        BadInputError: If there are fewer than two, or one is given twice.
        ExperimentError: If a folder is no experiment, or ``experiment.json`` is damaged.
    """
    return write_page(document_of_comparison(compared_runs(folders), now=datetime.now()), Path(to))


def compared_runs(folders: Sequence[PathLike], *, names: Sequence[str] | None = None) -> list[ComparedRun]:
    """Read the runs to compare, named by the parts of their paths that differ; see `write_comparison`."""
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2 and names is None:
        raise BadInputError(f"a comparison needs two runs or more, got {len(paths)}")
    twice = [str(path) for path, count in Counter(path.resolve() for path in paths).items() if count > 1]
    if twice:
        raise BadInputError(f"{', '.join(twice)}: given more than once; a run is compared with others")
    facts = [RunFacts.of(path) for path in paths]
    runs = []
    for one, name in zip(facts, names or names_of_runs([path.resolve() for path in paths]), strict=True):
        kept, views = read_kept(one.folder / REPORT)
        progress, (final, damaged) = progress_of_folder(one.folder, one.description), read_final(one.folder)
        run = ComparedRun(name=name, facts=one, progress=progress, kept=kept, views=views, final=final, damaged=damaged)
        runs.append(run)
    return runs


def document_of_comparison(runs: Sequence[ComparedRun], *, now: datetime) -> Document:
    """Return the document of the page that compares runs."""
    final = all(run.final is not None for run in runs)
    scored = [run.cases(final=final) for run in runs]
    views, note = _views(runs)
    title = f"{len(runs)} runs compared"
    content = {
        "version": VERSION,
        "kind": "comparison",
        "title": title,
        "written": now.timestamp(),
        "runs": content_of_runs(runs),
        "overview": as_plain(_overview(runs)),
        "differences": differences_of(runs),
        "figures": as_plain(overlaid(runs)),
        "notes": _notes(runs, scored, final=final),
        "tables": as_plain(tables_of_comparison([run.name for run in runs], scored)),
        "view_note": note,
        "channels": list(getattr(runs[0].facts.description.dataset, "channel_names", None) or ()),
    }
    names = ", ".join(run.name for run in runs)
    return Document(title=title, status=names, content=content, views=as_script(views))


def content_of_runs(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Return the name, colour, folder and curve axes of each run."""
    return [
        {
            "name": run.name,
            "color": hex_color(index + 1),
            "folder": str(run.facts.folder),
            **axes_of(run.facts, run.progress),
        }
        for index, run in enumerate(runs)
    ]


def differences_of(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Return the differences between runs: groups with rows of a name and a text for each run.

    Of long lists, such as the cases, only the entries that not all runs have are shown.
    """
    groups = []
    for title in ("settings", "plan", "dataset", "network and trainer", "environment"):
        flat = [_flattened(_part(run, title)) for run in runs]
        rows = []
        for name in dict.fromkeys(name for one in flat for name in one):
            values = [one.get(name) for one in flat]
            if any(value != values[0] for value in values[1:]):
                rows.append([name, *_shown_apart(values)])
        groups.append({"title": title, "rows": rows})
    return groups


def overlaid(runs: Sequence[ComparedRun]) -> list[dict[str, Any]]:
    """Return figures of the metrics that at least two runs have, a curve for each run."""
    by_curve: dict[tuple[str, str], dict[int, Series]] = {}
    about: dict[str, Figure] = {}
    for index, run in enumerate(runs):
        for figure in figures(run.progress.metrics, run.facts.class_names):
            if figure.key.startswith("classes:") and len(figure.series) > _MOST_CLASSES:
                continue
            about.setdefault(figure.key, figure)
            for series in figure.series:
                by_curve.setdefault((figure.key, series.name), {})[index] = series
    num_curves = Counter(key for key, _ in by_curve)
    drawn: list[dict[str, Any]] = []
    for (key, name), curves in by_curve.items():
        if len(curves) < 2:
            continue
        figure, side = about[key], name if num_curves[key] > 1 else ""
        lines = [
            {"name": runs[i].name, "color": hex_color(i + 1), "x": curve.x, "y": curve.y, "run": i}
            for i, curve in curves.items()
        ]
        title = f"{figure.title}: {side}" if side else figure.title
        drawn.append({"key": f"{key}/{side}", "title": title, "better": figure.better, "series": lines, "note": ""})
    return drawn


def tables_of_comparison(
    names: Sequence[str], scored: Sequence[tuple[Sequence[ScoredCase], Mapping[int, str]]]
) -> list[Table]:
    """Return tables of the runs' scores on common cases: overall, by class and by case."""
    by_case = [{case.case_id: case for case in cases} for cases, _ in scored]
    common = [case_id for case_id in by_case[0] if all(case_id in one for one in by_case[1:])]
    known = [i for i in common if all(math.isfinite(one[i].score) for one in by_case)]
    if not known:
        return []
    scores = [[one[case_id].score for case_id in known] for one in by_case]
    return [
        _table_of_runs(names, scores),
        *_table_of_classes(names, [[one[i] for i in known] for one in by_case], scored),
        _table_of_cases(names, known, scores),
    ]


def paired(first: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Return the mean of the differences of pairs, and half of its 95 % interval; NaN for fewer than two pairs."""
    apart = [b - a for a, b in zip(first, other, strict=True)]
    if len(apart) < 2:
        return statistics.fmean(apart), math.nan
    return statistics.fmean(apart), half_width(statistics.stdev(apart) / math.sqrt(len(apart)), len(apart))


def _table_of_runs(names: Sequence[str], scores: Sequence[Sequence[float]]) -> Table:
    best = [max(column) for column in zip(*scores, strict=True)]
    columns = [*texts("run"), Column(name="mean score", better="higher"), Column(name=f"better than {names[0]} by")]
    columns += [*texts("95 % interval"), Column(name="cases won"), Column(name="shared")]
    rows: list[list[Cell]] = []
    for index, (name, own) in enumerate(zip(names, scores, strict=True)):
        mean, half = paired(scores[0], own)
        shows = "" if not index else "one case" if math.isnan(half) else f"{mean - half:+.4f} to {mean + half:+.4f}"
        won = shared = 0
        for place, score in enumerate(own):
            if score > best[place] - _SAME:
                alone = sum(other[place] > best[place] - _SAME for other in scores) == 1
                won, shared = won + alone, shared + (not alone)
        by = as_cell(mean) if index else None
        rows.append([name, as_cell(statistics.fmean(own)), by, shows or None, float(won), float(shared)])
    count = f"{len(best)} cases" if len(best) > 1 else "one case"
    note = f"On the {count} that all runs have scored; differences and their intervals are computed case by case."
    return Table(title="Scores", note=note, columns=columns, rows=rows)


def _table_of_cases(names: Sequence[str], known: Sequence[str], scores: Sequence[Sequence[float]]) -> Table:
    columns = [*texts("case"), *(Column(name=name, better="higher") for name in names), *texts("best")]
    columns.append(Column(name="apart"))
    rows: list[list[Cell]] = []
    for place, case_id in enumerate(known):
        own = [one[place] for one in scores]
        best = [name for name, score in zip(names, own, strict=True) if score > max(own) - _SAME]
        winner = "the same" if len(best) == len(names) else ", ".join(best)
        rows.append([case_id, *map(as_cell, own), winner, as_cell(max(own) - min(own))])
    return Table(title="Cases", note="By the score of the whole case.", columns=columns, rows=rows)


def _table_of_classes(
    names: Sequence[str],
    cases: Sequence[Sequence[ScoredCase]],
    scored: Sequence[tuple[Sequence[ScoredCase], Mapping[int, str]]],
) -> list[Table]:
    metric = main_metric(cases[0])
    # By name, since an id may be another class in another run; a run without names has those of the first with any.
    named = {i: name for _, labels in reversed(scored) for i, name in labels.items()}
    ids: dict[str, dict[int, int]] = {}
    for run, (own, (_, labels)) in enumerate(zip(cases, scored, strict=True)):
        for i in sorted({i for case in own for i in case.classes.get(metric, {})}):
            ids.setdefault(labels.get(i) or named.get(i, f"class {i}"), {})[run] = i
    if not metric or not ids:
        return []
    better = better_of(metric)
    columns = [*texts("class"), *(Column(name=name, better=better) for name in names), Column(name="apart")]
    rows: list[list[Cell]] = []
    for name, by_run in ids.items():
        means = [
            mean_of_known(case.classes.get(metric, {}).get(by_run.get(run, -1), math.nan) for case in own)
            for run, own in enumerate(cases)
        ]
        known = [mean for mean in means if not math.isnan(mean)]
        rows.append([name, *map(as_cell, means), as_cell(max(known) - min(known)) if len(known) > 1 else None])
    note = f"Mean {metric} over the same cases.{_names_of_other_case(ids)}"
    return [Table(title="Classes", note=note, columns=columns, rows=rows)]


def _names_of_other_case(ids: Mapping[str, Mapping[int, int]]) -> str:
    """Return a sentence about classes of different runs whose names differ only in case; empty without any."""
    pairs = [
        f"{name} and {other}"
        for name, other in itertools.combinations(ids, 2)
        if name.casefold() == other.casefold() and not ids[name].keys() & ids[other].keys()
    ]
    if not pairs:
        return ""
    return f" Attention: {join_names(pairs)} differ only in case and count as different classes."


def _overview(runs: Sequence[ComparedRun]) -> Table:
    columns = [*texts("run", "dataset", "trainer", "state"), Column(name="epochs"), *texts("time")]
    columns += [Column(name="best score", better="higher"), Column(name="final Dice", better="higher"), *texts("note")]
    rows: list[list[Cell]] = []
    for run in runs:
        description, progress = run.facts.description, run.progress
        seconds = [value for value in progress.metrics.get(EPOCH_DURATION, ()) if math.isfinite(value)]
        dice = None if run.final is None else run.final.dice
        rows.append(
            [
                run.name,
                None if description.dataset is None else description.dataset.name,
                description.trainer,
                progress.state,
                float(progress.epoch),
                duration_as_text(math.fsum(seconds)) if seconds else None,
                None if progress.best_score is None else as_cell(progress.best_score),
                None if dice is None else as_cell(dice),
                str(description.setting("note") or "") or None,
            ]
        )
    return Table(title="Runs", columns=columns, rows=rows)


def _notes(
    runs: Sequence[ComparedRun], scored: Sequence[tuple[Sequence[ScoredCase], Mapping[int, str]]], *, final: bool
) -> list[str]:
    """Return notes about the comparability of the scores."""
    notes = ["Scores of the best weights on whole cases." if final else "Scores of each run's last validation."]
    if not final and any(run.final is not None for run in runs):
        lacking = ", ".join(run.name for run in runs if run.final is None)
        notes.append(
            f"The best weights of {lacking} were not scored at the end, so the last validations of all runs are "
            "compared."
        )
    notes += [f"{run.name}: {run.damaged}" for run in runs if run.damaged]
    without = [run.name for run, (cases, _) in zip(runs, scored, strict=True) if not cases]
    if without:
        notes.append(f"No scores of single cases are known of {', '.join(without)}.")
    datasets = [run.facts.description.dataset for run in runs]
    digests = {None if dataset is None else dataset.digest for dataset in datasets}
    if len(digests) > 1:
        notes.append(
            "Attention: the runs were trained on different data, or different versions of it; cases of the same name "
            "may differ."
        )
    training = [set(dataset.training or ()) for dataset in datasets if dataset is not None]
    ids = [{case.case_id for case in cases} for cases, _ in scored]
    if any(one & other for one in ids for other in training):
        notes.append("Attention: cases that one run is scored on are among those that another was trained on.")
    if len({frozenset(one) for one in ids if one}) > 1:
        notes.append("The runs are scored on different cases; only the cases that all have are compared.")
    return notes


def _views(runs: Sequence[ComparedRun]) -> tuple[list[list[Any]], str]:
    """Return the cases of each run for viewing, starting with those that most runs have, up to the limit of a page."""
    count = Counter(view["id"] for run in runs for view in run.views)
    chosen: list[str] = []
    total, left_out = 0, 0
    for case_id, _ in count.most_common():
        size = sum(len(part) for run in runs for view in run.views if view["id"] == case_id for part in view["image"])
        if chosen and total + size > MOST_VIEW_BYTES:
            left_out += 1
            continue
        chosen.append(case_id)
        total += size
    views = [[view for view in run.views if view["id"] in chosen] for run in runs]
    note = f"{left_out} more cases are in the runs' own pages." if left_out else ""
    return views, note


def _part(run: ComparedRun, title: str) -> Mapping[str, Any]:
    description = run.facts.description
    content: dict[str, Any] = description.to_dict()
    match title:
        case "settings":
            return description.settings or {}
        case "plan":
            return description.plan or {}
        case "environment":
            return content["environment"] if isinstance(content["environment"], Mapping) else {}
        case "dataset":
            dataset = content["dataset"] or {}
            return {name: value for name, value in dataset.items() if name not in ("store", "folder")}
        case _:
            return {name: value for name, value in content.items() if name not in _ABOUT_THE_RUN}


def _flattened(content: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in content.items():
        path = f"{where}.{name}" if where else str(name)
        found |= _flattened(value, path) if isinstance(value, Mapping) else {path: as_json(value)}
    return found


def _shown_apart(values: Sequence[Any]) -> list[str]:
    """Return different values as texts; if some are long lists, only what not all of them hold."""
    if all(not isinstance(value, list) or len(value) <= _LONGEST_LIST for value in values):
        return ["–" if value is None else shown(value) for value in values]
    lists = [list(map(shown, value)) if isinstance(value, list) else [] for value in values]
    everywhere = set.intersection(*map(set, lists))
    texts = []
    for value, entries in zip(values, lists, strict=True):
        own = [entry for entry in entries if entry not in everywhere]
        apart = f"not in all: {join_names(own, limit=6)}" if own else "all of them in every run"
        texts.append(("–" if value is None else shown(value)) if not entries else f"{len(entries)} entries, {apart}")
    return texts
