"""Compare methods on the same cases: paired differences, tests, and a ranking."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.folds import Grouping, resolve_groups
from candy_monai.data.values import join_names
from candy_monai.errors import BadInputError
from candy_monai.evaluation.class_metrics import CLASS_METRICS, metrics_named
from candy_monai.evaluation.comparison_results import Comparison, Difference, MethodScore, MetricComparison
from candy_monai.evaluation.results import EvalResult
from candy_monai.evaluation.statistics import Method, check_method, statistics_of
from candy_monai.evaluation.summaries import SUMMARY, Scores, read_scores, scores_of, summary_in
from candy_monai.experiment.folder import VALIDATION_SCORES
from candy_monai.experiment.runs import names_of_runs
from candy_monai.metrics.interval import CONFIDENCE

Compared: TypeAlias = PathLike | EvalResult
"""Scores of one method: a source for `read_scores`, or the result of an evaluation."""

_Floats = npt.NDArray[np.float64]

_DEFINITIONS = {
    "case": "the mean of a metric over the foreground classes that have a value for every method; with groups, each "
    "class's values are averaged over the cases of a group first, which then stands for a case; what any method lacks "
    "is left out for all, and counted",
    "difference": "first less second of the same case; mean, median and interval of the pairs that are both finite",
    "p_value": "Wilcoxon signed-rank test, two-sided, by SciPy (pairs without a difference left out; exact for few "
    "pairs without ties); an infinite difference is the largest",
    "p_corrected": "by Holm, over all pairs of methods of a metric; by class over all pairs and classes",
    "rank": "rank then aggregate: methods are ranked in each case and class (equal ones share the mean of their ranks, "
    "1 is best), and the ranks are averaged over classes and cases; over all metrics the mean of their mean ranks",
}


def compare_evaluations(
    evaluations: Sequence[Compared] | Mapping[str, Compared],
    *,
    metrics: Sequence[str] | None = None,
    common: bool = False,
    groups: Grouping | None = None,
    method: Method = "t",
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Compare methods that were evaluated on the same cases.

    Args:
        evaluations: At least two: summaries of candy_monai or nnU-Net, folders with a ``summary.json``, experiments
            with a ``validation.json``, cross-validations, or results of `Evaluator`; by name, or named by their paths.
        metrics: The metrics, as for `Evaluator`; None for all that are in every evaluation and have a best direction.
        common: Compare the cases that all have, and list the others in ``left_out``; by default these are an error.
        groups: Which cases belong to one patient, as for folds: an expression, a table or a mapping. A patient's cases
            are averaged and count once.
        method: The method for the intervals: Student's ``t`` or the ``bootstrap``.
        confidence: The confidence level of the intervals.

    Raises:
        BadInputError: If there are fewer than two, one cannot be read, or they differ in cases, classes, references or
            definitions of metrics.
        SettingsError: If the method or the confidence is invalid.
    """
    check_method(method, confidence)
    names, scores = _named(evaluations)
    case_ids, left_out = _shared_cases(names, scores, common=common)
    classes = _shared_classes(names, scores)
    _check_references(names, scores, case_ids)
    chosen = _shared_metrics(names, scores, metrics)
    definitions = _agreed(names, scores, chosen)
    units = [[case_id] for case_id in case_ids]
    if groups is not None:
        group_of = resolve_groups(groups, case_ids)
        members: dict[str, list[str]] = {}
        for case_id in case_ids:
            members.setdefault(group_of[case_id], []).append(case_id)
        units = list(members.values())
    overall: list[MetricComparison] = []
    by_class: list[MetricComparison] = []
    ranks: list[_Floats] = []
    for metric in chosen:
        cube = _cube(scores, metric, case_ids, classes)
        is_lacking = np.isnan(cube)
        partly = np.asarray(is_lacking.any(0) & ~is_lacking.all(0))
        cube[:, is_lacking.any(0)] = np.nan
        grouped = _by_unit(cube, case_ids, units)
        rank = _mean_ranks(grouped, metric)
        ranks.append(rank)
        compared = partial(_compared, metric=metric, names=names, method=method, confidence=confidence)
        means = _mean_of_known(grouped, axis=2)
        overall += _corrected([compared(means, rank, class_index=None, undefined=int(partly.sum()))])
        by_class += _corrected(
            [
                compared(
                    grouped[:, :, i],
                    _mean_ranks(grouped[:, :, [i]], metric),
                    class_index=index,
                    undefined=int(partly[:, i].sum()),
                )
                for i, index in enumerate(classes)
            ]
        )
    mean_ranks = _mean_of_known(np.array(ranks), axis=0).tolist()
    order = sorted(zip(names, mean_ranks, strict=True), key=lambda entry: (math.isnan(entry[1]), entry[1]))
    return Comparison(
        names=names,
        sources=tuple(each.source for each in scores),
        case_ids=tuple(case_ids),
        num_units=len(units),
        has_groups=groups is not None,
        metrics=tuple(overall),
        by_class=tuple(by_class),
        ranking=tuple(order),
        class_names=next((each.class_names for each in scores if each.class_names), {}),
        left_out=left_out,
        method=method,
        confidence=confidence,
        definitions={name: CLASS_METRICS[name].definition for name in chosen} | definitions | _DEFINITIONS,
    )


def _named(evaluations: Sequence[Compared] | Mapping[str, Compared]) -> tuple[tuple[str, ...], list[Scores]]:
    if isinstance(evaluations, str) or len(evaluations) < 2:
        raise BadInputError("expected two evaluations or more to compare")
    given = list(evaluations.values()) if isinstance(evaluations, Mapping) else list(evaluations)
    scores = [
        scores_of(each.to_dict(), source=f"evaluation {place}") if isinstance(each, EvalResult) else read_scores(each)
        for place, each in enumerate(given, start=1)
    ]
    paths = [
        Path(f"evaluation {i}" if isinstance(e, EvalResult) else e).resolve() for i, e in enumerate(given, start=1)
    ]
    files = [summary_in(path) or path for path in paths]
    if len(set(files)) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise BadInputError(f"{twice} is given twice; an evaluation cannot be compared with itself")
    if isinstance(evaluations, Mapping):
        return tuple(evaluations), scores
    folders = [file.parent if file.name in (SUMMARY, VALIDATION_SCORES) else file for file in files]
    named = folders if len(set(folders)) == len(folders) else files
    stems = [path.with_suffix("") if path.suffix == ".json" else path for path in named]
    return tuple(names_of_runs(stems if len(set(stems)) == len(stems) else named)), scores


def _shared_cases(names: Sequence[str], scores: Sequence[Scores], *, common: bool) -> tuple[list[str], tuple[str, ...]]:
    everywhere = set.intersection(*(set(each.cases) for each in scores))
    anywhere = set.union(*(set(each.cases) for each in scores))
    left_out = tuple(sorted(anywhere - everywhere))
    if not everywhere:
        examples = "; ".join(f"{name} has {next(iter(each.cases))}" for name, each in zip(names, scores, strict=True))
        raise BadInputError(f"there is no case that all evaluations have: {examples}")
    if left_out and not common:
        lacking = "\n  - ".join(
            f"{name} ({each.source}) lacks {len(missing)} case{'s' * (len(missing) > 1)}: {join_names(missing)}"
            for name, each in zip(names, scores, strict=True)
            if (missing := sorted(anywhere - set(each.cases)))
        )
        raise BadInputError(
            f"the evaluations have different cases:\n  - {lacking}\n  - --common (common=True) compares the "
            f"{len(everywhere)} that all have"
        )
    return sorted(everywhere), left_out


def _shared_classes(names: Sequence[str], scores: Sequence[Scores]) -> tuple[str, ...]:
    first = scores[0]
    for name, each in zip(names[1:], scores[1:], strict=True):
        if each.classes != first.classes:
            raise BadInputError(
                f"the evaluations have different classes: {names[0]} has {', '.join(first.classes) or 'none'}, {name} "
                f"has {', '.join(each.classes) or 'none'}; evaluate both with candy-monai evaluate, which names "
                "classes and regions alike"
            )
        for index in first.class_names.keys() & each.class_names.keys():
            if first.class_names[index] != each.class_names[index]:
                raise BadInputError(
                    f"class {index} is {first.class_names[index]!r} for {names[0]} and {each.class_names[index]!r} "
                    f"for {name}; the evaluations have different classes"
                )
    return first.classes


def _check_references(names: Sequence[str], scores: Sequence[Scores], case_ids: Sequence[str]) -> None:
    """Raise if the references differ, by the number of voxels of a class in them."""
    for case_id in case_ids:
        known = [(name, each.voxels.get(case_id, {})) for name, each in zip(names, scores, strict=True)]
        for (first, counts), (second, others) in itertools.combinations(known, 2):
            for index in counts.keys() & others.keys():
                if counts[index] != others[index]:
                    raise BadInputError(
                        f"{case_id}: class {index} has {counts[index]:g} voxels in the reference of {first} and "
                        f"{others[index]:g} in that of {second}; evaluate both against the same references"
                    )


def _shared_metrics(names: Sequence[str], scores: Sequence[Scores], metrics: Sequence[str] | None) -> tuple[str, ...]:
    shared = [name for name in scores[0].metrics if all(name in each.metrics for each in scores)]
    ranked = tuple(name for name in shared if CLASS_METRICS[name].better is not None)
    has = "; ".join(f"{name} has {', '.join(each.metrics) or 'none'}" for name, each in zip(names, scores, strict=True))
    chosen = ranked if metrics is None else metrics_named(metrics)
    if metrics is not None:
        for name in chosen:
            if name not in shared:
                raise BadInputError(f"{name} was not measured by all: {has}")
            if CLASS_METRICS[name].better is None:
                raise BadInputError(
                    f"{name} cannot be ranked, since neither higher nor lower is better; choose from "
                    f"{', '.join(ranked)}"
                )
    if not chosen:
        raise BadInputError(f"there is no metric that all evaluations have: {has}")
    return chosen


def _agreed(names: Sequence[str], scores: Sequence[Scores], metrics: Sequence[str]) -> dict[str, str]:
    """Return the definitions of the metrics in the evaluations; raise if one has several definitions."""
    kinds = {CLASS_METRICS[name].kind for name in metrics}
    keys = [*metrics, "ignored"]
    keys += ["surfaces", "distances"] if "surfaces" in kinds else []
    keys += ["lesions"] if "lesions" in kinds else []
    found: dict[str, str] = {}
    origin: dict[str, str] = {}
    for name, each in zip(names, scores, strict=True):
        if not each.definitions:
            continue  # from nnU-Net, or an earlier version
        for key in keys:
            text = each.definitions.get(key, "none")
            if found.setdefault(key, text) != text:
                raise BadInputError(
                    f"{key} is not the same for {origin[key]} and {name}: '{found[key]}' and '{text}'; evaluate both "
                    "with the same options"
                )
            origin.setdefault(key, name)
    return {key: text for key, text in found.items() if text != "none"}


def _cube(scores: Sequence[Scores], metric: str, case_ids: Sequence[str], classes: Sequence[str]) -> _Floats:
    """Return the values ``(methods, cases, classes)``; NaN where a value is missing."""
    return np.array(
        [
            [[each.cases[c].get(index, {}).get(metric, math.nan) for index in classes] for c in case_ids]
            for each in scores
        ],
        dtype=np.float64,
    )


def _by_unit(cube: _Floats, case_ids: Sequence[str], units: Sequence[Sequence[str]]) -> _Floats:
    place = {case_id: index for index, case_id in enumerate(case_ids)}
    return np.stack([_mean_of_known(cube[:, [place[c] for c in unit]], axis=1) for unit in units], axis=1)


def _mean_of_known(values: _Floats, *, axis: int) -> _Floats:
    """Return the mean of the values other than NaN; NaN if there are none."""
    is_known = ~np.isnan(values)
    count = is_known.sum(axis)
    total = np.where(is_known, values, 0.0).sum(axis)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), math.nan))


def _mean_ranks(values: _Floats, metric: str) -> _Floats:
    """Return each method's mean rank over cases and classes of values ``(methods, cases, classes)``, 1 for the best."""
    from scipy.stats import rankdata

    cells = values.reshape(len(values), -1)
    cells = cells[:, ~np.isnan(cells).any(0)]
    if not cells.shape[1]:
        return np.full(len(values), math.nan)
    sign = 1 if CLASS_METRICS[metric].lower_is_better else -1
    return np.asarray(rankdata(sign * cells, axis=0).mean(1))


def _compared(
    values: _Floats,
    ranks: _Floats,
    *,
    metric: str,
    class_index: str | None,
    undefined: int,
    names: Sequence[str],
    method: Method,
    confidence: float,
) -> MetricComparison:
    """Compare values ``(methods, cases)`` of methods with these mean ranks; the same cases are missing for all."""
    known = values[:, ~np.isnan(values).any(0)]
    facts = CLASS_METRICS[metric]
    methods = tuple(
        MethodScore(
            name=name,
            statistics=statistics_of(row, method=method, confidence=confidence, bounds=facts.bounds),
            mean_rank=float(rank),
            values=tuple(row.tolist()),
        )
        for name, row, rank in zip(names, known, ranks, strict=True)
    )
    differences = []
    for one, other in itertools.combinations(range(len(names)), 2):
        first, second = known[one], known[other]
        is_finite = np.isfinite(first) & np.isfinite(second)
        better, worse = (first < second, first > second) if facts.lower_is_better else (first > second, first < second)
        differences.append(
            Difference(
                first=names[one],
                second=names[other],
                statistics=statistics_of(first[is_finite] - second[is_finite], method=method, confidence=confidence),
                infinite=int((~is_finite).sum()),
                first_better=int(better.sum()),
                equal=int((first == second).sum()),
                second_better=int(worse.sum()),
                p_value=_wilcoxon(first, second),
                p_corrected=math.nan,
            )
        )
    return MetricComparison(
        metric=metric,
        class_index=class_index,
        num_cases=known.shape[1],
        undefined=undefined,
        methods=methods,
        differences=tuple(differences),
    )


def _wilcoxon(first: _Floats, second: _Floats) -> float:
    """Return the p-value of the signed-rank test; 1 if no pair differs, NaN without pairs."""
    from scipy.stats import wilcoxon

    if not first.size:
        return math.nan
    with np.errstate(invalid="ignore"):
        differences = np.where(first == second, 0.0, first - second)  # also 0 for two infinite values
    if not differences.any():
        return 1.0
    finite = np.abs(differences[np.isfinite(differences)])
    largest = 2 * float(finite.max(initial=0.0)) + 1
    return float(wilcoxon(np.clip(differences, -largest, largest)).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values after Holm's step-down correction for their number; NaN is kept and not counted.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    highest = 0.0
    for done, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - done) * p))
        corrected[place] = highest
    return corrected


def _corrected(compared: Sequence[MetricComparison]) -> list[MetricComparison]:
    """Return comparisons with p-values corrected jointly for all of their pairs."""
    corrected = iter(holm([d.p_value for each in compared for d in each.differences]))
    return [
        replace(each, differences=tuple(replace(d, p_corrected=next(corrected)) for d in each.differences))
        for each in compared
    ]
