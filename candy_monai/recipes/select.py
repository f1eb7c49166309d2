"""Select the best model of a cross-validation by out-of-fold predictions.

The configuration or the ensemble of configurations with the greatest mean Dice, then thresholds of regions and steps of
postprocessing as far as they help.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from candy_monai.aliases import PathLike
from candy_monai.data.workers import measuring_workers
from candy_monai.device import find_device
from candy_monai.errors import BadInputError
from candy_monai.evaluation.cleaning import Cleaner, Trial
from candy_monai.evaluation.results import EvalResult, interval
from candy_monai.evaluation.scored_classes import dataset_evaluator, scored_classes
from candy_monai.evaluation.statistics import as_json_number
from candy_monai.evaluation.summaries import SUMMARY
from candy_monai.experiment.checkpoints import BEST
from candy_monai.experiment.state import weight_file
from candy_monai.files import check_writable, digest_of_file
from candy_monai.recipes.out_of_fold import PLACE, THRESHOLDS, CrossValidation, OutOfFold
from candy_monai.recipes.selection import INFERENCE, Member, Selection


def select(
    crossval: PathLike,
    *,
    dataset: PathLike | None = None,
    device: str = "auto",
    memory: int | None = None,
    jobs: int | None = None,
    trainer: str | None = None,
    trust: bool = False,
    on_progress: Callable[[str], None] = print,
) -> Selection:
    """Choose configuration or ensemble, and postprocessing, by predictions of every case out of fold.

    Each case is predicted by the models of the fold that left it out, once; the predictions stay in ``out_of_fold`` in
    the cross-validation's folder, so that the same call after an interruption goes on. The choice is written to
    ``inference.json`` there, which ``load_experiments``, ``candy-monai predict`` and ``export`` follow.

    Args:
        crossval: The folder written by ``candy-monai crossval``, with all folds finished.
        dataset: The dataset's folder; None for its original path.
        device: Where to predict.
        memory: Memory limit for predicting a case, in bytes; None for no limit. See `Predictor`.
        jobs: Number of cases scored at the same time; None for one per processor, fewer if memory is short.
        trainer: ``FILE:Class``, your own trainer that trained the folds; None for bundles.
        trust: Build any callable that the pipelines of the experiments name, instead of only known transforms.
        on_progress: Called with a line of text for each stage.

    Returns:
        The selection, with the scores of all candidates and of every step that was tried.

    Raises:
        BadInputError: If folds are missing or do not belong together, the dataset is not there, or no case has a class.
    """
    found = CrossValidation.read(crossval, dataset=dataset)
    check_writable(found.folder)
    if found.change is not None:
        on_progress(found.change)
    names = found.configurations
    subsets = [each for count in range(1, len(names) + 1) for each in itertools.combinations(names, count)]
    candidates = {"+".join(each): each for each in subsets}
    out_of_fold = OutOfFold(crossval=found, candidates=candidates)
    chosen_device = str(find_device(device))
    out_of_fold.predict(device=chosen_device, trainer=trainer, trust=trust, memory=memory, on_progress=on_progress)
    description = found.dataset.description
    labels = [case.label for case in found.cases.values() if case.label is not None]
    at_once = measuring_workers(labels) if jobs is None else jobs

    def cleaner_of(candidate: str) -> Cleaner:
        return Cleaner(
            case_ids=list(found.cases),
            labels=lambda case_id, thresholds: out_of_fold.labels(candidate, case_id, thresholds=thresholds),
            reference=out_of_fold.reference,
            evaluator=dataset_evaluator(description, "dice", "iou"),
            classes=scored_classes(description),
            exclusive=not description.has_regions,
            jobs=at_once,
        )

    cleaners = {}
    for name in candidates:
        on_progress(f"Scoring {name} on {len(found.cases)} cases")
        cleaners[name] = cleaner_of(name)
    scores = {name: _described(name, candidates[name], each.result, found) for name, each in cleaners.items()}
    best = _best(scores, found.folder)
    cleaner = cleaners[best]
    reasons = [_why(best, scores)]
    if out_of_fold.has_thresholds:
        on_progress(f"Trying thresholds of regions of {best}")
        cleaner.choose_thresholds(THRESHOLDS)
    on_progress(f"Trying postprocessing of {best}")
    cleaner.choose_steps()
    reasons += _why_steps(cleaner.trials)
    cleaner.result.save(found.folder / PLACE / SUMMARY)
    chosen = Selection(
        folder=found.folder,
        configurations=candidates[best],
        members=tuple(_member(run, found.folder) for run in found.experiments_of(candidates[best])),
        thresholds=cleaner.thresholds,
        postprocessing=tuple(cleaner.steps),
        reasons=tuple(reasons),
        candidates=tuple(scores.values()),
        trials=tuple(trial.to_dict() for trial in cleaner.trials),
        scores=_described(best, candidates[best], cleaner.result, found),
    )
    chosen.save()
    return chosen


def _described(
    name: str, configurations: tuple[str, ...], result: EvalResult, crossval: CrossValidation
) -> dict[str, Any]:
    """Return the scores of a candidate as plain values."""
    by_id = {case.case_id: case for case in result}
    folds = [replace(result, cases=tuple(by_id[each] for each in cases)) for cases in crossval.left_out.values()]
    means = [mean for fold in folds if not math.isnan(mean := fold.mean_metrics["dice"])]
    return {
        "name": name,
        "configurations": list(configurations),
        "num_cases": len(result),
        "dice": as_json_number(result.mean_metrics["dice"]),
        "interval_95": interval(result),
        "std": statistics.stdev(means) if len(means) > 1 else None,
        "classes": {
            result.class_names.get(index, str(index)): as_json_number(metrics["dice"])
            for index, metrics in result.class_means.items()
        },
    }


def _best(scores: dict[str, dict[str, Any]], folder: Path) -> str:
    """Return the candidate with the highest mean Dice; among equal ones that with the fewest configurations."""
    known = {name: found for name, found in scores.items() if found["dice"] is not None}
    if not known:
        raise BadInputError(
            f"{folder}: no case has foreground, in its reference or its prediction, so there are no scores to choose by"
        )
    return max(known, key=lambda name: (known[name]["dice"], -len(known[name]["configurations"])))


def _why(best: str, scores: dict[str, dict[str, Any]]) -> str:
    dice = {name: found["dice"] for name, found in scores.items() if found["dice"] is not None}
    others = ", ".join(f"{name} {value:.4f}" for name, value in dice.items() if name != best)
    number = f"{dice[best]:.4f} over {scores[best]['num_cases']} cases out of fold"
    if not others:
        return f"{best}: the only configuration, with a mean Dice of {number}"
    return f"{best}: the highest mean Dice, {number} ({others})"


def _why_steps(trials: list[Trial]) -> list[str]:
    kept = [f"{trial.step}: {trial.reason}" for trial in trials if trial.kept]
    left = len(trials) - len(kept)
    if left:
        count, verb = f"{left} {'other ' * bool(kept)}step{'s' * (left > 1)}", "are" if left > 1 else "is"
        kept.append(f"{count} that changed label maps {verb} left out: 'trials' in {INFERENCE} says why")
    return kept or ["no postprocessing: none of the steps changes a label map"]


def _member(run: Path, folder: Path) -> Member:
    digest = digest_of_file(weight_file(run, BEST))
    return Member(experiment=run.relative_to(folder).as_posix(), weights_sha256=digest)
