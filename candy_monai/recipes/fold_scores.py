"""Complete and summarise the scores of the folds of a cross-validation."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.datasets.nnunet_description import DatasetDescription
from candy_monai.device import find_device
from candy_monai.evaluation.results import EvalCase, EvalResult, interval
from candy_monai.evaluation.scored_classes import scored_classes
from candy_monai.evaluation.statistics import as_json_number
from candy_monai.evaluation.summaries import read_scores, save_validation
from candy_monai.experiment.description import read_description
from candy_monai.experiment.folder import VALIDATION_SCORES
from candy_monai.experiment.runs import CROSS_VALIDATION, summarize
from candy_monai.files import atomic_write_json
from candy_monai.inference.predictor import Predictor
from candy_monai.metrics.interval import mean_of_known
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.predict import load_experiments
from candy_monai.recipes.quality import Judged, in_words

METRIC = "dice"


def score_the_rest(
    experiment: Path | None,
    dataset: NNUNetDataset,
    options: TrainOptions,
    *,
    on_progress: Callable[[str], None],
) -> None:
    """Score all validation cases of a finished fold, if its budget left time for only some of them."""
    number = len(_scored(experiment))
    if experiment is None or not number:
        return
    trained = read_description(experiment).dataset
    left_out = set((trained and trained.validation) or ())
    if number >= len(left_out):
        return
    on_progress(
        f"{experiment}: scoring all {len(left_out)} validation cases, of which its budget left time for {number}"
    )
    trainer = None if options.trainer is None else str(options.trainer)
    predictor = load_experiments(
        [experiment],
        trainer=trainer,
        device=str(find_device(options.device)),
        trust=options.trust,
        on_progress=lambda _: None,
    )
    assert isinstance(predictor, Predictor)
    judged = Judged(predictor)
    result = judged.score(case for case in dataset.cases if case.case_id in left_out)
    save_validation(experiment, result, num_validation_cases=len(left_out))
    if (calibration := judged.save(experiment, result)) is not None:
        on_progress(f"{experiment}: {in_words(calibration)}")


def summary_of_folds(folds: Mapping[int | str, Path | None], description: DatasetDescription) -> dict[str, Any]:
    """Return the summary of the scores of folds, given the experiment of each fold that has one.

    Returns:
        The Dice of each fold and class, with its number of trained ``epochs`` and the ``best_epoch``, whose weights
        were scored; their means over the folds, ``std`` of the folds' Dice, and under ``cases`` the means over all
        cases, each scored once, with the 95 % confidence interval of the foreground mean; None for undefined values.
    """
    results = {number: _scored(experiment) for number, experiment in folds.items()}
    found: list[dict[str, Any]] = [
        {"fold": number, **_run(folds[number]), **_dice(result)} for number, result in results.items()
    ]
    names = dict.fromkeys(name for fold in found for name in fold["classes"])
    known = _known(fold["foreground_mean"] for fold in found)
    pooled = EvalResult(cases=tuple(itertools.chain.from_iterable(results.values())))
    return {
        "foreground_mean": _mean(known),
        "std": statistics.stdev(known) if len(known) > 1 else None,
        "cases": {"num_cases": len(pooled), "interval_95": interval(pooled, METRIC), **_dice(pooled)},
        "classes": {name: _mean(_known(fold["classes"].get(name) for fold in found)) for name in names},
        "class_names": {str(each.index): each.name for each in scored_classes(description)},
        "folds": found,
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> None:
    """Write the summary of a cross-validation into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_json(folder / CROSS_VALIDATION, summary)


def _scored(experiment: Path | None) -> EvalResult:
    """Return the scores of a fold's cases, which are empty if it has none."""
    file = None if experiment is None else experiment / VALIDATION_SCORES
    if file is None or not file.is_file():
        return EvalResult(cases=())
    return EvalResult(
        cases=tuple(
            EvalCase(
                case_id=case_id,
                classes={int(index): metrics for index, metrics in classes.items()},
                counts={},
                values={},
            )
            for case_id, classes in read_scores(file).cases.items()
        )
    )


def _run(experiment: Path | None) -> dict[str, Any]:
    """Return the folder of a fold and how long it was trained, which a budget decides; None if unknown."""
    if experiment is None:
        return {"experiment": None, "epochs": None, "best_epoch": None}
    run = summarize(experiment)
    return {"experiment": str(experiment), "epochs": run.epochs_done, "best_epoch": run.best_epoch}


def _dice(result: EvalResult) -> dict[str, Any]:
    """Return the mean Dice over the classes and that of each class as plain values; None if undefined."""
    return {
        "foreground_mean": as_json_number(result.mean_metrics.get(METRIC, math.nan)),
        "classes": {str(index): as_json_number(metrics[METRIC]) for index, metrics in result.class_means.items()},
    }


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return mean_of_known(values) if values else None
