"""Learn to estimate the quality of a run's predictions, from its training images and its validation scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from candy_monai.data.datasets.nnunet_description import NNUNetCase
from candy_monai.evaluation.evaluator import Evaluator
from candy_monai.evaluation.results import EvalResult
from candy_monai.inference.inputs import CaseFiles
from candy_monai.inference.prediction import Prediction
from candy_monai.inference.predictor import Predictor
from candy_monai.inference.quality import FEWEST_CASES, Calibration, CaseQuality, QualityModel
from candy_monai.inference.typical_inputs import TypicalInputs
from candy_monai.recipes.prepare import Prepared, evenly_spaced

_MOST_IMAGES = 64
"""Maximum number of preprocessed training images that are used."""


def uncalibrated(prepared: Prepared, classes: Sequence[tuple[str, Sequence[int]]]) -> QualityModel:
    """Return the quality estimator before any prediction was scored."""
    training = set(prepared.training)
    channels = len(prepared.plan.channel_names)  # without that of a cascade's first stage
    chosen = evenly_spaced(prepared.training, _MOST_IMAGES)
    images = (prepared.store.load(case_id).image[:channels] for case_id in chosen)
    inputs = TypicalInputs.of(
        images,
        [case for case in prepared.fingerprint.cases if case.case_id in training],
        channel_names=prepared.plan.channel_names,
        classes=classes,
        is_picture=prepared.fingerprint.is_picture,
    )
    return QualityModel(calibration=Calibration(), inputs=inputs)


class Judged:
    """Scores cases, collects the indicators of their predictions, and calibrates these with the scores.

    If the predictor has no ``quality``, nothing is collected.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._said: dict[str, CaseQuality] = {}

    def score(self, cases: Iterable[NNUNetCase]) -> EvalResult:
        """Predict cases and score them with their labels; the indicators are collected for `save`."""
        cases = list(cases)
        images = {case.case_id: CaseFiles(case.images) for case in cases}
        references = {case.case_id: case.label for case in cases if case.label is not None}
        return Evaluator().predict_and_evaluate(images, references, self._predictor, on_prediction=self._note)

    def _note(self, case_id: str, prediction: Prediction) -> None:
        if prediction.quality is not None:
            self._said[case_id] = prediction.quality

    def save(self, experiment: Path, result: EvalResult) -> Calibration | None:
        """Write the quality estimator into the experiment's folder, and return it; None if nothing was collected."""
        if self._predictor.quality is None or not self._said:
            return None
        learned = calibrated(self._predictor.quality.inputs, self._said, result)
        learned.save(experiment, self._predictor.weights_file)
        return learned.calibration


def calibrated(inputs: TypicalInputs, judged: Mapping[str, CaseQuality], result: EvalResult) -> QualityModel:
    """Return the quality estimator calibrated with the indicators and the scores of cases.

    Cases without a Dice, or with NaN in the network's output, are not used.
    """
    pairs = [(judged[case.case_id].signs, case.metrics["dice"]) for case in result if case.case_id in judged]
    known = [(signs, dice) for signs, dice in pairs if all(map(math.isfinite, (*signs, dice)))]
    calibration = Calibration.fit([signs for signs, _ in known], [dice for _, dice in known])
    return QualityModel(calibration=calibration, inputs=inputs)


def in_words(calibration: Calibration) -> str:
    """Return the accuracy of the estimates in words, for a run's log."""
    if not calibration.is_enough:
        return (
            f"Predictions get no estimate of their Dice without a reference: {calibration.num_cases} validation cases "
            f"have a Dice, and the fit needs at least {FEWEST_CASES}; unusual images are still reported"
        )
    error, correlation = calibration.typical_error, calibration.rank_correlation
    found = [f"are wrong by {error:.3f} on average"] if error is not None else []
    found += [f"have a rank correlation of {correlation:.2f} with the true ones"] if correlation is not None else []
    said = " and ".join(found)
    return f"Estimates of a prediction's Dice without a reference {said}, by {calibration.num_cases} validation cases"
