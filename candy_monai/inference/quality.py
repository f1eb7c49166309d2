"""Estimate the Dice of a prediction without a reference, and report unusual features of its image.

The estimate is a function of the precision and recall expected from the label map's own probabilities
(`ExpectedOverlap`) and of how usual the sizes of its classes are. It increases with all three and is fitted to the
validation cases of the run, which are not used for training. With too few of these, there is no estimate.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
from monai.data import MetaTensor
from torch import Tensor

from candy_monai.data.images.alignment import HAS_NO_GRID
from candy_monai.data.images.reading import geometry_of
from candy_monai.data.values import is_of_kind
from candy_monai.errors import ExperimentError
from candy_monai.experiment.folder import QUALITY
from candy_monai.files import atomic_write_text, digest_of_file
from candy_monai.inference.typical_inputs import TypicalInputs
from candy_monai.text import read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from candy_monai.inference.expected_overlap import ExpectedOverlap

FORMAT = 1

FAILED_SHARE = 0.7
"""A prediction whose Dice is below this share of the median has failed."""

FEWEST_CASES = 5
"""The minimum number of cases in a fit: with fewer, the function of four parameters does not generalise."""

Signs = tuple[float, float, float]
"""Expected precision, expected recall and usual size of a prediction, 0 to 1."""

_CLOSEST = 1e-3
"""Shares are clipped to this distance from 0 and 1, so that their logarithms are finite."""
_UNFITTED = (0.0, 1.0, 0.0, 0.0)
"""Offset and slopes without any case: the estimate is the expected Dice if the probabilities are calibrated."""
_LEAST_SLOPE = 0.02
_PRIOR = 0.01
"""The weight of the penalty for deviations from the unfitted values, in squared residuals."""
_MOST_FOLDS = 10
_FEWEST_FOR_RANKS = 3


@dataclass(frozen=True, kw_only=True)
class CaseQuality:
    """The quality of a prediction, estimated without a reference.

    Attributes:
        estimated_dice: The estimate of the mean Dice over the classes in the prediction or its reference; for an empty
            prediction, the value if the reference contains a class. None if fewer than `FEWEST_CASES` validation cases
            were scored, or the network's output contains NaN.
        expected_precision: The mean probability of the labelled voxels.
        expected_recall: The share of the total probability that lies in the labelled voxels.
        usual_size: How close the classes' sizes are to those of the training cases; see `TypicalInputs.usual_size`.
        typical_error: The mean distance of such estimates from the true Dice of validation cases; None if unknown.
        warnings: Reasons to review this prediction, one sentence each.
    """

    estimated_dice: float | None
    expected_precision: float
    expected_recall: float
    usual_size: float
    typical_error: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def signs(self) -> Signs:
        """The values from which the estimate is computed."""
        return self.expected_precision, self.expected_recall, self.usual_size

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON; only the warnings if there is no estimate."""
        if self.estimated_dice is None:
            return {"estimated_dice": None, "warnings": self.warnings}
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A function from expected precision, expected recall and usual size to an estimate of the true Dice.

    Attributes:
        offset: Added to the log-odds of the estimate.
        dice_slope: The coefficient of the log-odds of the expected Dice, the harmonic mean of both.
        precision_slope: The coefficient of the log-odds of the expected precision: a barely trained network assigns
            high probability far from a class, which lowers only the recall.
        size_slope: The coefficient of the logarithm of the usual size.
        num_cases: The number of validation cases in the fit.
        typical_error: The mean distance of the estimate from the true Dice, for cases left out of the fit; None for
            fewer than two cases.
        rank_correlation: Spearman's correlation of these estimates and the true Dice; None if undefined.
        median_dice: The median of the true Dice; None without any.
    """

    offset: float = _UNFITTED[0]
    dice_slope: float = _UNFITTED[1]
    precision_slope: float = _UNFITTED[2]
    size_slope: float = _UNFITTED[3]
    num_cases: int = 0
    typical_error: float | None = None
    rank_correlation: float | None = None
    median_dice: float | None = None

    @property
    def is_enough(self) -> bool:
        """Whether the number of cases in the fit is large enough for estimates of other cases."""
        return self.num_cases >= FEWEST_CASES

    @classmethod
    def fit(cls, signs: Sequence[Signs], dice: Sequence[float]) -> Calibration:
        """Return the function fitted to cases, by their signs and their true Dice, all of them 0 to 1."""
        features, true = _features(signs), np.asarray(dice, dtype=np.float64)
        if not len(true):
            return cls()
        offset, dice_slope, precision_slope, size_slope = _fitted(features, true).tolist()
        error = correlation = None
        if len(true) > 1:
            unseen = np.empty(len(true))
            folds = np.arange(len(true)) % min(len(true), _MOST_FOLDS)
            for fold in range(folds.max() + 1):
                own = folds == fold
                unseen[own] = _estimates(features[own], _fitted(features[~own], true[~own]))
            error, correlation = float(np.abs(unseen - true).mean()), _rank_correlation(unseen, true)
        return cls(
            offset=offset,
            dice_slope=dice_slope,
            precision_slope=precision_slope,
            size_slope=size_slope,
            num_cases=len(true),
            typical_error=error,
            rank_correlation=correlation,
            median_dice=float(np.median(true)),
        )

    def __call__(self, signs: Signs) -> float:
        """Return the estimate of the true Dice, 0 to 1, for expected precision and recall and the usual size."""
        parameters = np.array([self.offset, self.dice_slope, self.precision_slope, self.size_slope])
        return float(_estimates(_features([signs]), parameters)[0])


@dataclass(frozen=True, kw_only=True)
class QualityModel:
    """The data for judging the quality of predictions: the calibration, and the ranges of the training images."""

    calibration: Calibration
    inputs: TypicalInputs

    @classmethod
    def load(cls, experiment: Path, weights: Path) -> QualityModel | None:
        """Read the model from an experiment's folder; None if there is none, or only one for other weights.

        Raises:
            ExperimentError: If the file cannot be read.
        """
        path = experiment / QUALITY
        if not path.exists():
            return None
        try:
            content = read_json(path)
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, expected {FORMAT}")
            if content["weights_sha256"] != digest_of_file(weights):
                return None
            calibration = Calibration(**content["calibration"])
            if not is_of_kind(calibration, Calibration):
                raise ValueError(f"calibration is {content['calibration']}, expected numbers")
            return cls(calibration=calibration, inputs=TypicalInputs.from_dict(content["inputs"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ExperimentError(
                f"{path}: cannot be read ({error}); restore the file from a copy, or remove it to predict without "
                "estimates of the Dice"
            ) from error

    def save(self, experiment: Path, weights: Path) -> None:
        """Write the model into an experiment's folder; the arguments are those of `load`."""
        content = {"format": FORMAT, "weights_sha256": digest_of_file(weights), **asdict(self)}
        atomic_write_text(experiment / QUALITY, json.dumps(content, indent=1, allow_nan=False) + "\n")


def judge(
    overlap: ExpectedOverlap, labels: MetaTensor, models: Sequence[QualityModel], images: Sequence[Tensor]
) -> CaseQuality:
    """Return the estimated quality of a prediction without a reference.

    Args:
        overlap: That of the whole case.
        labels: The label map ``(1, *spatial)`` on the grid of its file.
        models: Those of the experiments that predicted together, at least one. The estimate is the mean of theirs, for
            those that were fitted to at least `FEWEST_CASES`; an image is reported as unusual if it is so for each of
            them.
        images: The preprocessed image ``(C, *spatial)`` for each.
    """
    geometry = None if labels.meta.get(HAS_NO_GRID) else geometry_of(labels)
    sizes = [model.inputs.usual_size(labels.as_tensor(), geometry) for model in models]
    signs = overlap.precision, overlap.recall, fmean(size for size, _ in sizes)
    are_numbers = all(map(math.isfinite, signs))
    calibrations = [model.calibration for model in models if model.calibration.is_enough and are_numbers]
    estimate = _mean([calibration(signs) for calibration in calibrations])
    error = _mean([each.typical_error for each in calibrations if each.typical_error is not None])
    median = _mean([each.median_dice for each in calibrations if each.median_dice is not None])
    differences = (
        model.inputs.differences(image.cpu().numpy(), geometry) for model, image in zip(models, images, strict=True)
    )
    warnings = [f"unlike the training images: {difference}" for difference in min(differences, key=len)]
    fewest: list[str] = min((unusual for _, unusual in sizes), key=len)
    warnings += fewest
    if not are_numbers:
        warnings.append("the network's output contains NaN: it has failed on this image")
    elif overlap.is_empty:
        if not any(model.inputs.has_empty_cases for model in models):
            warnings.append("the prediction has no foreground, but every training case has some")
    elif estimate is not None and median is not None and estimate < FAILED_SHARE * median:
        warnings.append(
            f"its Dice is estimated at {estimate:.2f}"
            + ("" if error is None else f" (such estimates are wrong by {error:.2f} on average)")
            + f", while the median of the validation cases is {median:.2f}"
        )
    return CaseQuality(
        estimated_dice=estimate,
        expected_precision=signs[0],
        expected_recall=signs[1],
        usual_size=signs[2],
        typical_error=error,
        warnings=tuple(warnings),
    )


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _features(signs: Sequence[Signs]) -> NDArray[np.float64]:
    """Return the log-odds of expected Dice and precision and the logarithm of the usual size, ``(cases, 3)``."""
    from scipy.special import logit

    shares = np.clip(np.asarray(signs, dtype=np.float64).reshape(-1, 3), _CLOSEST, 1 - _CLOSEST)
    precision, recall, size = shares.T
    dice = 2 * precision * recall / (precision + recall)
    return np.stack([logit(dice), logit(precision), np.log(size)], axis=1)


def _estimates(features: NDArray[np.float64], parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import expit

    return np.asarray(expit(parameters[0] + features @ parameters[1:]))


def _fitted(features: NDArray[np.float64], dice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return offset and slopes from a least-squares fit of the Dice, regularised towards those without any case."""
    from scipy.optimize import least_squares

    def residuals(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([_estimates(features, parameters) - dice, _PRIOR**0.5 * (parameters - _UNFITTED)])

    start = np.array([0.0, 1.0, _LEAST_SLOPE, _LEAST_SLOPE])
    bounds = ((-np.inf, _LEAST_SLOPE, 0.0, 0.0), np.inf)
    return np.asarray(least_squares(residuals, start, bounds=bounds).x)


def _rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    from scipy.stats import spearmanr

    if len(first) < _FEWEST_FOR_RANKS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)
