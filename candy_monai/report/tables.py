"""Tables of a page: cases and classes with their scores, from a validation in a run or from nnU-Net's summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from candy_monai.columns import better_of
from candy_monai.errors import BadInputError
from candy_monai.experiment.summary import Summary
from candy_monai.metrics.interval import mean_of_known

MOST_CLASS_COLUMNS = 12
"""Maximum number of classes with a column in a table of cases; with more, it names the worst class of each case."""

Cell = str | float | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column."""

    name: str
    better: str | None = None  # ``higher``, ``lower``, or None for neither
    is_number: bool = True


def texts(*names: str) -> list[Column]:
    """Return columns of text."""
    return [Column(name=name, is_number=False) for name in names]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells."""

    title: str
    note: str = ""  # a sentence above
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]] = field(repr=False)  # a cell for each column; None for no value


@dataclass(frozen=True, kw_only=True)
class ScoredCase:
    """The scores of one case."""

    case_id: str
    score: float  # by which cases are ranked; NaN for none
    metrics: Mapping[str, float] = field(default_factory=dict)  # further values of the whole case
    classes: Mapping[str, Mapping[int, float]] = field(default_factory=dict)  # of each metric by class id


def scored_cases(summary: Summary) -> list[ScoredCase]:
    """Return the cases of a summary, whose classes must be ids, ranked by their mean Dice."""
    cases = []
    for case in summary.cases:
        classes: dict[str, dict[int, float]] = {}
        for label, values in case.classes.items():
            if not label.isdecimal():
                raise BadInputError(f"the case {case.case_id} has scores of the class {label!r}, expected its id")
            for name, value in values.items():
                classes.setdefault(name, {})[int(label)] = value
        means = {name: mean_of_known(v for i, v in by_class.items() if i != 0) for name, by_class in classes.items()}
        metrics = {**means, **case.values}
        score = means.get("Dice", next(iter(metrics.values()), math.nan))
        cases.append(ScoredCase(case_id=case.case_id, score=score, metrics=metrics, classes=classes))
    return cases


def tables_of_cases(cases: Sequence[ScoredCase], class_names: Mapping[int, str], *, note: str = "") -> list[Table]:
    """Return the table of cases and that of classes, if there are any."""
    if not cases:
        return []
    by_class = table_of_classes(cases, class_names)
    return [table_of_cases(cases, class_names, note=note), *([] if by_class is None else [by_class])]


def table_of_cases(cases: Sequence[ScoredCase], class_names: Mapping[int, str], *, note: str = "") -> Table:
    """Return a table of cases with the mean of each metric, and the first metric of each class."""
    names = list(dict.fromkeys(name for case in cases for name in case.metrics))
    metric = main_metric(cases)
    ids = sorted({i for case in cases for i in case.classes.get(metric, {}) if i != 0})
    with_score = not names or _differs(cases)
    columns = [*texts("case"), *([Column(name="score", better="higher")] if with_score else [])]
    columns += [Column(name=_heading(name, cases), better=better_of(name)) for name in names]
    by_class = 1 < len(ids) <= MOST_CLASS_COLUMNS
    if by_class:
        columns += [Column(name=class_names.get(i, f"class {i}"), better=better_of(metric)) for i in ids]
    elif len(ids) > 1:
        columns += [*texts("worst class"), Column(name=f"its {metric}", better=better_of(metric))]
    rows: list[list[Cell]] = []
    for case in cases:
        values = case.classes.get(metric, {})
        row: list[Cell] = [case.case_id, *([as_cell(case.score)] if with_score else [])]
        row += [as_cell(case.metrics.get(name, math.nan)) for name in names]
        if by_class:
            row += [as_cell(values.get(i, math.nan)) for i in ids]
        elif len(ids) > 1:
            row += _worst_class(values, class_names, better_of(metric))
        rows.append(row)
    return Table(title="Cases", note=note, columns=columns, rows=rows)


def table_of_classes(cases: Sequence[ScoredCase], class_names: Mapping[int, str]) -> Table | None:
    """Return a table of classes with the mean of each metric and the worst case of the first; None without classes."""
    metrics = list(dict.fromkeys(name for case in cases for name in case.classes))
    ids = sorted({i for case in cases for values in case.classes.values() for i in values})
    if not metrics or not ids:
        return None
    metric = main_metric(cases)
    better = better_of(metric)
    columns = [*texts("class"), Column(name="cases"), *(Column(name=name, better=better_of(name)) for name in metrics)]
    columns.append(Column(name=f"least {metric}" if better != "lower" else f"largest {metric}", better=better))
    columns += texts("in case")
    rows: list[list[Cell]] = []
    for i in ids:
        known = {
            case.case_id: v for case in cases if not math.isnan(v := case.classes.get(metric, {}).get(i, math.nan))
        }
        means = [
            as_cell(mean_of_known(case.classes.get(name, {}).get(i, math.nan) for case in cases)) for name in metrics
        ]
        worst = (max if better == "lower" else min)(known, key=lambda case_id: known[case_id], default=None)
        ends: list[Cell] = [None, None] if worst is None else [as_cell(known[worst]), worst]
        rows.append([class_names.get(i, f"class {i}"), float(len(known)), *means, *ends])
    return Table(title="Classes", columns=columns, rows=rows)


def main_metric(cases: Sequence[ScoredCase]) -> str:
    """Return the metric for comparing cases and classes: the Dice, or else the first; empty without any."""
    names = list(dict.fromkeys(name for case in cases for name in case.classes))
    return next((name for name in names if name.lower() == "dice"), names[0] if names else "")


def _differs(cases: Sequence[ScoredCase]) -> bool:
    """Return whether the score of any case differs from all of its metrics."""
    return any(
        not math.isnan(case.score)
        and all(abs(case.score - value) > 1e-6 for value in case.metrics.values() if value == value)
        for case in cases
    )


def _worst_class(values: Mapping[int, float], class_names: Mapping[int, str], better: str | None) -> list[Cell]:
    known = {i: value for i, value in values.items() if i != 0 and not math.isnan(value)}
    if not known:
        return [None, None]
    worst = (max if better == "lower" else min)(known, key=lambda i: known[i])
    return [class_names.get(worst, f"class {worst}"), as_cell(known[worst])]


def _heading(name: str, cases: Sequence[ScoredCase]) -> str:
    return f"mean {name}" if any(name in case.classes for case in cases) else name


def as_cell(value: float) -> Cell:
    """Return a value for a table: rounded, None for NaN."""
    if math.isnan(value):
        return None
    return float(f"{value:.5g}") if math.isfinite(value) else ("∞" if value > 0 else "-∞")
