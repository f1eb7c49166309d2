"""The scores of a cross-validation's folds: completed where a budget ended first, and what they say together."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.datasets.nnunet_description import DatasetDescription
from candy_monai.device import find_device
from candy_monai.evaluation.evaluator import Evaluator
from candy_monai.evaluation.interval import interval
from candy_monai.evaluation.results import EvalCase, EvalResult, mean_of_known
from candy_monai.evaluation.summaries import read_scores, save_validation
from candy_monai.experiment.description import read_description
from candy_monai.experiment.folder import VALIDATION_SCORES
from candy_monai.experiment.runs import CROSS_VALIDATION
from candy_monai.files import atomic_write_text
from candy_monai.inference.inputs import CaseFiles
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.predict import load_experiments

METRIC = "dice"


def score_the_rest(
    experiment: Path | None,
    dataset: NNUNetDataset,
    options: TrainOptions,
    *,
    on_progress: Callable[[str], None],
) -> None:
    """Score all validation cases of a finished fold, where its budget left time for some of them alone.

    Args:
        experiment: The fold's; None where it has none.
        dataset: What it was trained on.
        options: How: ``device``, ``trainer`` and ``trust``.
        on_progress: Told of it.
    """
    file = None if experiment is None else experiment / VALIDATION_SCORES
    if experiment is None or file is None or not file.is_file():
        return
    scores = json.loads(file.read_text(encoding="utf-8"))
    number, count = scores.get("num_cases"), scores.get("num_validation_cases")
    if number == count:
        return
    on_progress(f"{experiment}: scoring all {count} validation cases, of which its budget left time for {number}")
    trainer = None if options.trainer is None else str(options.trainer)
    predictor = load_experiments(
        [experiment], trainer=trainer, device=str(find_device(options.device)), trust=options.trust, on_progress=_silent
    )
    assert isinstance(predictor, NetworkPredictor)
    trained = read_description(experiment).dataset
    left_out = set((trained and trained.validation) or ())
    cases = [case for case in dataset.cases if case.case_id in left_out and case.label is not None]
    images = {case.case_id: CaseFiles(case.images) for case in cases}
    result = Evaluator().predict_and_evaluate(images, {case.case_id: case.label for case in cases}, predictor)
    save_validation(experiment, result, num_validation_cases=len(left_out))


def summary_of_folds(folds: Mapping[int | str, Path | None], description: DatasetDescription) -> dict[str, Any]:
    """Return what the scores of folds say together.

    Args:
        folds: The experiment of each; None where there is none.
        description: The dataset's.

    Returns:
        The Dice of each fold and class, their means over the folds, ``std`` of the folds' Dice, and under ``cases`` the
        means over all cases, each scored once, with the 95 % interval of the foreground's; None where there is none.
    """
    found: list[dict[str, Any]] = []
    files = {number: _scores_file(experiment) for number, experiment in folds.items()}
    for number, file in files.items():
        scores = None if file is None else json.loads(file.read_text(encoding="utf-8"))
        found.append(
            {
                "fold": number,
                "experiment": None if folds[number] is None else str(folds[number]),
                "foreground_mean": None if scores is None else scores["foreground_mean"]["Dice"],
                "classes": {} if scores is None else {name: mean["Dice"] for name, mean in scores["mean"].items()},
            }
        )
    names = dict.fromkeys(name for fold in found for name in fold["classes"])
    known = _known(fold["foreground_mean"] for fold in found)
    pooled = _pooled([file for file in files.values() if file is not None])
    mean = math.nan if pooled is None else pooled.mean_metrics.get(METRIC, math.nan)
    return {
        "foreground_mean": _mean(known),
        "std": statistics.stdev(known) if len(known) > 1 else None,
        "cases": {
            "num_cases": 0 if pooled is None else len(pooled),
            "foreground_mean": None if math.isnan(mean) else mean,
            "interval_95": None if pooled is None else interval(pooled, METRIC),
            "classes": {} if pooled is None else _by_class(pooled),
        },
        "classes": {name: _mean(_known(fold["classes"].get(name) for fold in found)) for name in names},
        "class_names": {
            str(place if description.has_regions else label_id): name  # regions are scored by their place
            for place, (name, label_id) in enumerate(description.labels.items())
            if label_id != 0
        },
        "folds": found,
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary of a cross-validation into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / CROSS_VALIDATION, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def _scores_file(experiment: Path | None) -> Path | None:
    file = None if experiment is None else experiment / VALIDATION_SCORES
    return file if file is not None and file.is_file() else None


def _pooled(files: Sequence[Path]) -> EvalResult | None:
    """Return the cases of all folds as one evaluation; None without any."""
    if not files:
        return None
    cases = tuple(
        EvalCase(
            case_id=case_id, classes={int(index): metrics for index, metrics in classes.items()}, counts={}, values={}
        )
        for file in files
        for case_id, classes in read_scores(file).cases.items()
    )
    return EvalResult(cases=cases)


def _by_class(result: EvalResult) -> dict[str, float | None]:
    means = {str(index): metrics[METRIC] for index, metrics in result.class_means.items()}
    return {index: None if math.isnan(mean) else mean for index, mean in means.items()}


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return mean_of_known(values) if values else None


def _silent(_: str) -> None:
    """Print nothing."""
