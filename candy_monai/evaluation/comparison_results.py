"""The results of a comparison of methods: by metric and by class, as records, as a table and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from candy_monai.aliases import PathLike
from candy_monai.data.values import join_names
from candy_monai.evaluation.class_metrics import CLASS_METRICS
from candy_monai.evaluation.results import aligned_rows, in_brackets, meaning_of_brackets
from candy_monai.evaluation.statistics import Method, Statistics, as_json_number
from candy_monai.files import atomic_write_json
from candy_monai.metrics.interval import CONFIDENCE, number_as_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from candy_monai.plotting.charts.comparisons import ComparedMetric

_FEWEST_PAIRS = 6
"""With five pairs the smallest two-sided p-value is 1/16, which is above 5 %."""


@dataclass(frozen=True, kw_only=True)
class MethodScore:
    """The values of one method for one metric.

    Attributes:
        name: The method.
        statistics: Statistics of its values over the cases.
        mean_rank: The mean rank over cases and classes, 1 is best; NaN if no case has a value of every method.
        values: The values of the cases (groups) that have one of every method, in the same order for all methods.
    """

    name: str
    statistics: Statistics
    mean_rank: float
    values: tuple[float, ...] = field(default=(), repr=False)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Paired differences of two methods for one metric.

    Attributes:
        first: The method that the other one is subtracted from.
        second: The other method.
        statistics: Statistics of the differences, for pairs of finite values.
        infinite: The number of pairs with one or two infinite values.
        first_better: The number of cases in which the first is better.
        equal: The number of cases in which they are equal.
        second_better: The number of cases in which the second is better.
        p_value: The p-value of the two-sided Wilcoxon signed-rank test; 1 if no pair differs.
        p_corrected: The p-value corrected by Holm's method.
    """

    first: str
    second: str
    statistics: Statistics
    infinite: int
    first_better: int
    equal: int
    second_better: int
    p_value: float
    p_corrected: float


@dataclass(frozen=True, kw_only=True)
class MetricComparison:
    """The comparison of the methods by one metric.

    Attributes:
        metric: Its name.
        class_index: The class; None for the mean over the classes.
        num_cases: The number of cases (groups) with a value of every method.
        undefined: The number of cases with values of a class from only some of the methods: left out for all.
        methods: The scores of the methods, in the order in which they were given.
        differences: The differences of every pair.
    """

    metric: str
    class_index: str | None
    num_cases: int
    undefined: int
    methods: tuple[MethodScore, ...]
    differences: tuple[Difference, ...]

    def to_dict(self) -> dict[str, object]:
        """Return the comparison as plain values for JSON."""
        return {
            "metric": self.metric,
            "class": self.class_index,
            "num_cases": self.num_cases,
            "undefined": self.undefined,
            "methods": [_plain(method) for method in self.methods],
            "differences": [_plain(difference) for difference in self.differences],
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of methods on the same cases.

    Attributes:
        names: The methods.
        sources: The source of each.
        case_ids: The cases that were compared.
        num_units: The number of paired units: cases, or groups of them.
        has_groups: Whether the units are groups.
        metrics: The comparison by each metric, over the classes.
        by_class: The comparison by each metric and class.
        ranking: The methods with the mean of their mean ranks over the metrics, best first; those without a rank last.
        class_names: Class to name.
        left_out: Cases that are missing in some of the evaluations.
        method: The method for the intervals.
        confidence: The confidence level of the intervals.
        definitions: The definitions of the metrics.
    """

    names: tuple[str, ...]
    sources: tuple[str, ...]
    case_ids: tuple[str, ...]
    num_units: int
    has_groups: bool
    metrics: tuple[MetricComparison, ...]
    by_class: tuple[MetricComparison, ...]
    ranking: tuple[tuple[str, float], ...]
    class_names: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    method: Method = "t"
    confidence: float = CONFIDENCE
    definitions: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return the comparison for JSON: None for NaN, the text ``inf`` for infinity."""
        return {
            "methods": dict(zip(self.names, self.sources, strict=True)),
            "num_cases": len(self.case_ids),
            "num_groups": self.num_units if self.has_groups else None,
            "cases": list(self.case_ids),
            "left_out": list(self.left_out),
            "interval": {"method": self.method, "confidence": self.confidence},
            "definitions": dict(self.definitions),
            "class_names": dict(self.class_names),
            "ranking": [{"name": name, "mean_rank": as_json_number(rank)} for name, rank in self.ranking],
            "metrics": [each.to_dict() for each in self.metrics],
            "by_class": [each.to_dict() for each in self.by_class],
        }

    def save(self, path: PathLike) -> None:
        """Write `to_dict` as JSON; missing folders are created."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(Path(path), self.to_dict())

    def figure(self, *, classes: bool = False) -> Figure:
        """Draw box plots of the values of each method, and the paired differences with the intervals of their means.

        Args:
            classes: Whether to also draw charts for each class.
        """
        from candy_monai.plotting.charts.comparisons import comparison_figure

        shown = (*self.metrics, *(self.by_class if classes else ()))
        return comparison_figure([self._chart_of(each) for each in shown])

    def save_figure(self, path: PathLike, *, classes: bool = False) -> None:
        """Write `figure` as PNG; missing folders are created."""
        from candy_monai.plotting.canvas.figures import save_figure

        save_figure(self.figure(classes=classes), path)

    def table(self, *, classes: bool = False) -> str:
        """Return the comparison as text.

        Args:
            classes: Whether to also include tables for each class.
        """
        unit = "groups" if self.has_groups else "cases"
        lines: list[str] = []
        for each in (*self.metrics, *(self.by_class if classes else ())):
            lines += [*self._lines_of(each, unit), ""]
        ranked = ", ".join(f"{name} {number_as_text(rank, 2)}" for name, rank in self.ranking)
        lines.append(f"ranking (mean rank over {len(self.metrics)} metric{'s' * (len(self.metrics) > 1)}): {ranked}")
        lines += [
            meaning_of_brackets(self.method, self.confidence, unit),
            f"rank: among the methods, in each {unit.removesuffix('s')} and class; 1 is best",
            "p: Wilcoxon signed-rank test, two-sided; p (Holm): corrected by Holm",
        ]
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """Return notes that the table does not show: what was left out, and what cannot be concluded."""
        lines = []
        for each in self.metrics:
            if each.undefined:
                what = "1 value of a case and class is" if each.undefined == 1 else f"{each.undefined} values are"
                lines.append(
                    f"{each.metric}: {what} left out, since some methods have one and others have none there (as for a "
                    "class that a method rightly does not predict)"
                )
            infinite = sum(method.statistics.infinite for method in each.methods)
            if infinite:
                what = "1 value is" if infinite == 1 else f"{infinite} values are"
                lines.append(f"{each.metric}: {what} infinite; differences are of the finite pairs")
        if self.left_out:
            lines.append(f"left out, not in all evaluations: {join_names(self.left_out)}")
        few = {each.metric: each.num_cases for each in self.metrics if each.num_cases < _FEWEST_PAIRS}
        for count in sorted(set(few.values())):
            of_which = join_names([metric for metric, pairs in few.items() if pairs == count])
            pairs = "1 pair" if count == 1 else f"{count} pairs"
            lines.append(f"{of_which}: with {pairs} the test cannot be significant at 5 %, whatever the values are")
        return lines

    def _chart_of(self, each: MetricComparison) -> ComparedMetric:
        from candy_monai.plotting.charts.comparisons import ComparedMetric, PairedDifferences

        values = {method.name: method.values for method in each.methods}
        return ComparedMetric(
            title=self._title_of(each),
            values=values,
            pairs=[
                PairedDifferences(
                    name=f"{d.first} - {d.second}",
                    values=[
                        one - other if math.isfinite(one) and math.isfinite(other) else math.inf
                        for one, other in zip(values[d.first], values[d.second], strict=True)
                    ],
                    mean=d.statistics.mean,
                    interval=d.statistics.interval,
                )
                for d in each.differences
            ],
        )

    def _title_of(self, each: MetricComparison) -> str:
        """Return the metric, its unit and direction, and the class."""
        of = "mean over the classes"
        if each.class_index is not None:
            of = f"class {each.class_index} {self.class_names.get(each.class_index, '')}".rstrip()
        facts = CLASS_METRICS[each.metric]
        suffix = f" in {facts.unit}" if facts.unit else ""
        return f"{each.metric}{suffix} ({facts.better} is better), {of}"

    def _lines_of(self, each: MetricComparison, unit: str) -> list[str]:
        methods = [["method", "mean", "median", "mean rank"]]
        for found in each.methods:
            stats = found.statistics
            mean = f"{number_as_text(stats.mean)} {in_brackets(stats.interval)}"
            methods.append([found.name, mean, number_as_text(stats.median), number_as_text(found.mean_rank, 2)])
        pairs = [["difference", "mean", "median", "better / equal / worse", "p", "p (Holm)"]]
        for d in each.differences:
            counts = f"{d.first_better} / {d.equal} / {d.second_better}"
            mean = f"{number_as_text(d.statistics.mean)} {in_brackets(d.statistics.interval)}"
            row = [f"{d.first} - {d.second}", mean, number_as_text(d.statistics.median), counts]
            pairs.append([*row, _as_p(d.p_value), _as_p(d.p_corrected)])
        title = f"{self._title_of(each)}, {each.num_cases} {unit}"
        return [title, *aligned_rows(methods), *aligned_rows(pairs)]

    def __str__(self) -> str:
        return self.table()


def _plain(record: MethodScore | Difference) -> dict[str, object]:
    """Return the fields of a record for JSON, those of its statistics among them, without the values of the cases."""
    found: dict[str, object] = {}
    for name, value in vars(record).items():
        if isinstance(value, Statistics):
            found |= value.to_dict()
        elif name != "values":
            found[name] = as_json_number(value) if isinstance(value, float) else value
    return found


def _as_p(value: float) -> str:
    return "-" if math.isnan(value) else "<0.0001" if value < 1e-4 else f"{value:.4f}"
