"""The results of an evaluation: values of each case and class, their means, and their output."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

from typing_extensions import override

from candy_monai.aliases import PathLike
from candy_monai.data.values import join_names
from candy_monai.errors import BadInputError, did_you_mean
from candy_monai.evaluation.class_metrics import CLASS_METRICS
from candy_monai.evaluation.statistics import Method, Statistics, as_json_number, interval_over_classes, statistics_of
from candy_monai.files import atomic_write_json, atomic_write_text
from candy_monai.metrics.interval import CONFIDENCE, mean_of_known, number_as_text


@dataclass(frozen=True, kw_only=True)
class EvalCase:
    """The values of one case.

    Attributes:
        case_id: The case.
        classes: The metrics of each class by id; NaN if the class is in neither prediction nor reference.
        counts: Voxel counts of each class by id, as in nnU-Net: ``TP``, ``FP``, ``FN``, ``TN``, ``n_pred``, ``n_ref``.
        values: Custom metrics, which are of the whole case.
        prediction_file: The file of the prediction, if it was read from one.
        reference_file: The file of the reference, if it was read from one.
    """

    case_id: str
    classes: Mapping[int, Mapping[str, float]]
    counts: Mapping[int, Mapping[str, int]]
    values: Mapping[str, float]
    prediction_file: str | None = None
    reference_file: str | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics: those of classes as the mean over the foreground classes that are present, and custom ones."""
        return _foreground_mean(self.classes) | dict(self.values)


@dataclass(frozen=True, kw_only=True)
class EvalResult(Sequence[EvalCase]):
    """The cases of an evaluation, in order, and their means and statistics.

    Attributes:
        cases: The cases; all have the same classes and metrics.
        class_names: Names of classes by id, or of regions by number, if there are any.
        definitions: The definition of each metric by its name in the summary, and of policies for several metrics.
        left_out: Cases that only the predictions or only the references have, if the common ones were requested.
        passed_over: Files among the predictions that are not predictions of any case.
    """

    cases: tuple[EvalCase, ...]
    class_names: Mapping[int, str] = field(default_factory=dict)
    definitions: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    _statistics: dict[tuple[Method, float], dict[int | None, dict[str, Statistics]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @override
    def __len__(self) -> int:
        return len(self.cases)

    @overload
    def __getitem__(self, index: int) -> EvalCase: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[EvalCase, ...]: ...

    @override
    def __getitem__(self, index: int | slice) -> EvalCase | tuple[EvalCase, ...]:
        return self.cases[index]

    @property
    def metrics(self) -> dict[str, list[float]]:
        """Each metric of every case, in order."""
        by_case = [case.metrics for case in self.cases]
        return {name: [metrics[name] for metrics in by_case] for name in next(iter(by_case), {})}

    @property
    def class_means(self) -> dict[int, dict[str, float]]:
        """The mean of each metric over the cases that contain a class, by class id."""
        return _means_by_class([case.classes for case in self.cases])

    @property
    def mean_metrics(self) -> dict[str, float]:
        """The mean of each metric: of classes over the foreground classes' means, as in nnU-Net; else over cases."""
        return _foreground_mean(self.class_means) | self._own_means

    @property
    def named_means(self) -> dict[str, float]:
        """The `mean_metrics`, and the mean of each class under metric and class, such as ``dice/liver``."""
        of_classes = {
            f"{metric}/{self.class_names.get(index, index)}": value
            for index, metrics in self.class_means.items()
            for metric, value in metrics.items()
        }
        return {**self.mean_metrics, **of_classes}

    @property
    def _own_means(self) -> dict[str, float]:
        names = self.cases[0].values if self.cases else ()
        return {name: mean_of_known(case.values[name] for case in self.cases) for name in names}

    @property
    def undefined(self) -> dict[str, int]:
        """The number of undefined values per metric: of classes in neither map, and ratios with a denominator of 0."""
        return self._counted(math.isnan)

    @property
    def infinite(self) -> dict[str, int]:
        """The number of infinite values of each metric: distances of a class that is in only one of the maps."""
        return self._counted(math.isinf)

    def statistics(
        self, *, method: Method = "t", confidence: float = CONFIDENCE
    ) -> dict[int | None, dict[str, Statistics]]:
        """Return mean with its interval, median, spread and counts of each metric of each class, and over the classes.

        Args:
            method: The method for the intervals: Student's ``t``, or the ``bootstrap`` over cases.
            confidence: The confidence level of the intervals.

        Returns:
            By class, then by metric; under ``None`` those of the mean over the foreground classes: mean and interval
            are those of `mean_metrics`, the others are of the cases' own means.

        Raises:
            SettingsError: If the method is unknown, or the confidence is out of range.
        """
        if (method, confidence) not in self._statistics:
            self._statistics[method, confidence] = self._computed_statistics(method, confidence)
        return dict(self._statistics[method, confidence])

    def _computed_statistics(self, method: Method, confidence: float) -> dict[int | None, dict[str, Statistics]]:
        found: dict[int | None, dict[str, Statistics]] = {}
        for index in self.cases[0].classes if self.cases else ():
            found[index] = {
                name: statistics_of(
                    [case.classes[index][name] for case in self.cases],
                    method=method,
                    confidence=confidence,
                    bounds=CLASS_METRICS[name].bounds,
                )
                for name in self.cases[0].classes[index]
            }
        overall: dict[str, Statistics] = {}
        of_each_case = [case.metrics for case in self.cases]
        for name, mean in _foreground_mean(self.class_means).items():
            of_cases = [metrics[name] for metrics in of_each_case]
            ends = interval(self, name, method=method, confidence=confidence) if math.isfinite(mean) else None
            overall[name] = replace(statistics_of(of_cases), mean=mean, interval=ends)
        return found | ({None: overall} if overall else {})

    def rows(self) -> list[dict[str, object]]:
        """Return a row per case and class: case, class, its name, each metric, and voxel counts with nnU-Net's names.

        Custom metrics have a row for each case, whose class is None.
        """
        rows: list[dict[str, object]] = []
        for case in self.cases:
            for index, metrics in case.classes.items():
                names = {"case": case.case_id, "class": index, "name": self.class_names.get(index, "")}
                rows.append({**names, **metrics, **case.counts[index]})
            if case.values:
                rows.append({"case": case.case_id, "class": None, "name": "", **case.values})
        return rows

    def save_csv(self, path: PathLike) -> None:
        """Write `rows` as CSV: empty for NaN, ``inf`` for infinity; missing folders are created."""
        rows = self.rows()
        text = io.StringIO()
        columns = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(
            {name: "" if value is None or value != value else value for name, value in row.items()} for row in rows
        )
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(Path(path), text.getvalue())

    def _counted(self, is_one: Callable[[float], bool]) -> dict[str, int]:
        return {name: sum(map(is_one, values)) for name, values in self._values().items()}

    def _values(self) -> dict[str, list[float]]:
        """Return the values of all classes and cases by metric."""
        classes = [of_class for case in self.cases for of_class in case.classes.values()]
        return {name: [of_class[name] for of_class in classes] for name in next(iter(classes), {})}

    def _classes_with(self, voxels: str) -> list[str]:
        """Return the foreground classes present in any case, in predictions (``n_pred``) or references (``n_ref``)."""
        counts = (entry for case in self.cases for entry in case.counts.items())
        return [str(index) for index in sorted({index for index, count in counts if index and count[voxels]})]

    def notes(self) -> list[str]:
        """Return notes on the means: how many values are infinite or undefined, and what was left out."""
        lines = []
        for name in self._values():
            present = [
                case.classes[index][name]
                for case in self.cases
                for index, counts in case.counts.items()
                if counts["n_pred"] or counts["n_ref"]
            ]
            if undefined := sum(map(math.isnan, present)):
                lines.append(
                    f"{name}: {undefined} of {len(present)} values are undefined though one of the two maps contains "
                    "the class, and are left out of the mean"
                )
        predicted, referenced = self._classes_with("n_pred"), self._classes_with("n_ref")
        if predicted and referenced and not set(predicted) & set(referenced):
            lines.append(
                f"no class is in both: the predictions hold {join_names(predicted)}, the references "
                f"{join_names(referenced)}; do they have the same ids?"
            )
        for name, values in self._values().items():
            known = [value for value in values if not math.isnan(value)]
            finite = [value for value in known if math.isfinite(value)]
            if len(finite) < len(known):
                lines.append(
                    f"{name}: {len(known) - len(finite)} of {len(known)} values are infinite, of classes that only one "
                    f"of the two maps contains; the mean of the others is {number_as_text(mean_of_known(finite))}"
                )
        if self.left_out:
            lines.append(f"left out, without a partner: {join_names(self.left_out)}")
        if self.passed_over:
            lines.append(f"ignored, not predictions of a case: {join_names(self.passed_over)}")
        return lines

    def min_n(self, metric: str, n: int) -> tuple[EvalCase, ...]:
        """Return the ``n`` cases with the lowest values, lowest first, each at most once; undefined values are skipped.

        Raises:
            BadInputError: If the metric was not measured.
        """
        return self._ranked(metric, 1)[:n]

    def max_n(self, metric: str, n: int) -> tuple[EvalCase, ...]:
        """Return the ``n`` cases with the highest values of a metric, highest first; errors are those of `min_n`."""
        return self._ranked(metric, -1)[:n]

    def min(self, metric: str) -> EvalCase:
        """Return the case with the lowest value of a metric.

        Raises:
            BadInputError: If the metric was not measured, or no case has a value.
        """
        return self._first(metric, 1)

    def max(self, metric: str) -> EvalCase:
        """Return the case with the highest value of a metric; errors are those of `min`."""
        return self._first(metric, -1)

    def to_dict(self, *, method: Method = "t", confidence: float = CONFIDENCE) -> dict[str, object]:
        """Return nnU-Net's summary: ``foreground_mean``, ``mean`` by class and ``metric_per_case``.

        Undefined values are None and infinite ones the text ``inf``, since JSON has neither. Custom metrics are under
        ``values`` of each case, and their means under ``mean_values``. In addition to nnU-Net's entries there are
        ``definitions``, and ``statistics`` with the intervals of the means.

        Args:
            method: The method for the intervals, as for `statistics`.
            confidence: The confidence level of the intervals.
        """
        together = [
            {index: {**case.classes[index], **case.counts[index]} for index in case.classes} for case in self.cases
        ]
        means = _means_by_class(together)
        summary: dict[str, object] = {
            "foreground_mean": _summarized(_foreground_mean(means)),
            "mean": {str(index): _summarized(metrics) for index, metrics in means.items()},
        }
        if self.definitions:
            summary["definitions"] = dict(self.definitions)
        if statistics := self.statistics(method=method, confidence=confidence):
            summary["statistics"] = {
                "interval": {"method": method, "confidence": confidence},
                "foreground_mean": _described(statistics.pop(None, {})),
                "mean": {str(index): _described(of_class) for index, of_class in statistics.items()},
            }
        if self.class_names:
            summary["class_names"] = {str(index): name for index, name in self.class_names.items()}
        if self._own_means:
            summary["mean_values"] = _summarized(self._own_means)
        summary["metric_per_case"] = [
            {
                "case": case.case_id,
                "prediction_file": case.prediction_file,
                "reference_file": case.reference_file,
                "metrics": {str(index): _summarized(metrics) for index, metrics in classes.items()},
                **({"values": _summarized(case.values)} if case.values else {}),
            }
            for case, classes in zip(self.cases, together, strict=True)
        ]
        return summary

    def save(self, path: PathLike, *, method: Method = "t", confidence: float = CONFIDENCE) -> None:
        """Write the summary of `to_dict`, which has the same arguments, as JSON; missing folders are created."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        summary = self.to_dict(method=method, confidence=confidence)
        atomic_write_json(Path(path), summary)

    def table(
        self,
        class_names: Mapping[int, str] | None = None,
        *,
        intervals: Method | None = None,
        confidence: float = CONFIDENCE,
    ) -> str:
        """Return the means as a text table, with a line for each class.

        Args:
            class_names: Class id to name; by default those of the evaluation.
            intervals: The method for the means' intervals, shown beside them; None for no intervals.
            confidence: The confidence level of the intervals.
        """
        names = self.class_names if class_names is None else class_names
        overall = self.mean_metrics
        columns = [name for name in overall if name in CLASS_METRICS]
        statistics = self.statistics(method=intervals, confidence=confidence) if intervals else {}

        def cell(index: int | None, name: str, mean: float) -> str:
            found = statistics[index].get(name) if index in statistics else None
            ends = "" if found is None else " " + in_brackets(found.interval)
            return number_as_text(mean) + ends

        rows = [["class", "cases", *columns]]
        for index, means in self.class_means.items():
            seen = sum(bool(case.counts[index]["n_pred"] + case.counts[index]["n_ref"]) for case in self.cases)
            label = f"{index} {names[index]}" if index in names else str(index)
            rows.append([label, str(seen), *(cell(index, column, means[column]) for column in columns)])
        rows.append(["mean", str(len(self)), *(cell(None, column, overall[column]) for column in columns)])
        lines = aligned_rows(rows) if columns else []
        if columns and intervals:
            lines.append(meaning_of_brackets(intervals, confidence, "cases"))
        lines += [f"{name}: mean {number_as_text(mean)} of {len(self)} cases" for name, mean in self._own_means.items()]
        return "\n".join(lines)

    @override
    def __str__(self) -> str:
        return self.table()

    def _first(self, metric: str, sign: int) -> EvalCase:
        ranked = self._ranked(metric, sign)
        if not ranked:
            raise BadInputError(f"no case has a value of {metric!r}: its classes are in no prediction and no reference")
        return ranked[0]

    def _ranked(self, metric: str, sign: int) -> tuple[EvalCase, ...]:
        metrics = self.metrics
        if metric not in metrics:
            hint = did_you_mean(metric, metrics)
            raise BadInputError(f"{metric!r} was not measured; there are {', '.join(metrics)}.{hint}")
        valued = [(value, case) for value, case in zip(metrics[metric], self.cases, strict=True) if value == value]
        return tuple(case for _, case in sorted(valued, key=lambda entry: sign * entry[0]))


def interval(
    result: EvalResult, metric: str = "dice", *, method: Method = "t", confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Return the confidence interval of a metric's mean over the foreground classes' means; None if undefined.

    See `interval_over_classes`.
    """
    classes = [index for index in (result.cases[0].classes if result.cases else ()) if index != 0]
    values = [[case.classes[index][metric] for index in classes] for case in result.cases]
    return interval_over_classes(values, method=method, confidence=confidence, bounds=CLASS_METRICS[metric].bounds)


def _means_by_class(cases: Sequence[Mapping[int, Mapping[str, float]]]) -> dict[int, dict[str, float]]:
    return {
        index: {name: mean_of_known(case[index][name] for case in cases) for name in metrics}
        for index, metrics in next(iter(cases), {}).items()
    }


def _foreground_mean(means: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    foreground = [metrics for index, metrics in means.items() if index != 0]
    return {name: mean_of_known(metrics[name] for metrics in foreground) for name in next(iter(foreground), {})}


def _summarized(metrics: Mapping[str, float]) -> dict[str, float | str | None]:
    """Return values under nnU-Net's names, as plain values for JSON."""
    names = {name: metric.summary_name for name, metric in CLASS_METRICS.items()}
    return {
        names.get(name, name): value if isinstance(value, int) else as_json_number(value)
        for name, value in metrics.items()
    }


def _described(statistics: Mapping[str, Statistics]) -> dict[str, object]:
    return {CLASS_METRICS[name].summary_name: found.to_dict() for name, found in statistics.items()}


def in_brackets(interval: tuple[float, float] | None) -> str:
    """Return an interval in the format of the tables of evaluations."""
    return "[-]" if interval is None else f"[{interval[0]:.4f}, {interval[1]:.4f}]"


def meaning_of_brackets(method: Method, confidence: float, unit: str) -> str:
    """Return the line below a table that says what the intervals in brackets are."""
    by = "Student's t" if method == "t" else "the bootstrap (BCa)"
    return f"[ ]: {100 * confidence:g} % interval of the mean over {unit}, by {by}"


def aligned_rows(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of text as lines, with the first column left-aligned and the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
