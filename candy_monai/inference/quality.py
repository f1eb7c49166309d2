"""How good a prediction probably is, without a reference: an estimate of its Dice, and what is unusual about its image.

The estimate comes from the precision and recall that a label map has by its own probabilities (`ExpectedOverlap`), and
from how usual the sizes of its classes are, by a function that rises with all three and was fitted to the validation
cases of the run, which its training has not seen. Where these are too few to fit it to, nothing is estimated.
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
"""A prediction below this share of the median Dice is one that failed."""

FEWEST_CASES = 5
"""A function of four numbers that was fitted to fewer cases says nothing of others."""

Signs = tuple[float, float, float]
"""Expected precision, expected recall and usual size of a prediction, 0 to 1."""

_CLOSEST = 1e-3
"""A share this close to 0 or 1 is taken to be that far away from it, where the logarithm is finite."""
_UNFITTED = (0.0, 1.0, 0.0, 0.0)
"""Offset and slopes without any case: the estimate is the Dice to be expected if the probabilities are right."""
_LEAST_SLOPE = 0.02
_PRIOR = 0.01
"""How strongly a fit is drawn to these, in squared residuals."""
_MOST_FOLDS = 10
_FEWEST_FOR_RANKS = 3


@dataclass(frozen=True, kw_only=True)
class CaseQuality:
    """What can be said of a prediction without a reference.

    Attributes:
        estimated_dice: The estimate of the mean Dice over the classes that the prediction or its reference holds; of a
            prediction without any, what it is if the reference holds one. None where fewer than `FEWEST_CASES`
            validation cases were scored, or the network's output holds NaN.
        expected_precision: The mean probability of the voxels that were marked.
        expected_recall: The share of all probability that lies in the voxels that were marked.
        usual_size: How near the classes' sizes are to those of the training cases; see `TypicalInputs.usual_size`.
        typical_error: The mean distance of such estimates from the true Dice of validation cases; None if unknown.
        warnings: Why to look at this prediction, a sentence each.
    """

    estimated_dice: float | None
    expected_precision: float
    expected_recall: float
    usual_size: float
    typical_error: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def signs(self) -> Signs:
        """What the estimate is made of."""
        return self.expected_precision, self.expected_recall, self.usual_size

    def to_dict(self) -> dict[str, object]:
        """Return plain values that JSON stores; without an estimate the warnings alone."""
        if self.estimated_dice is None:
            return {"estimated_dice": None, "warnings": self.warnings}
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A function from expected precision, expected recall and usual size to an estimate of the true Dice.

    Attributes:
        offset: Added to the log-odds of the estimate.
        dice_slope: What the log-odds of the expected Dice, the harmonic mean of both, are multiplied by.
        precision_slope: The same of the expected precision: far from a class, a network that is hardly trained gives it
            much probability, which lowers the recall alone.
        size_slope: What the logarithm of the usual size is multiplied by.
        num_cases: The validation cases that it was fitted to.
        typical_error: The mean distance of the estimate from the true Dice, of cases that the fit had not seen; None
            for fewer than two.
        rank_correlation: Spearman's, of these estimates and the true Dice; None where it is undefined.
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
        """Whether it was fitted to so many cases that it says something of others."""
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
    """What the quality of predictions is judged by: the way to the estimate, and what the training images are like."""

    calibration: Calibration
    inputs: TypicalInputs

    @classmethod
    def load(cls, experiment: Path, weights: Path) -> QualityModel | None:
        """Read it from an experiment's folder; None where there is none, or only one of other weights.

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
                f"{path}: cannot be read ({error}); take the file from a copy, or remove it to predict without "
                "estimates of the Dice"
            ) from error

    def save(self, experiment: Path, weights: Path) -> None:
        """Write it into an experiment's folder; the arguments are those of `load`."""
        content = {
            "format": FORMAT,
            "weights_sha256": digest_of_file(weights),
            "calibration": asdict(self.calibration),
            "inputs": self.inputs.to_dict(),
        }
        atomic_write_text(experiment / QUALITY, json.dumps(content, indent=1, allow_nan=False) + "\n")


def judge(
    overlap: ExpectedOverlap, labels: MetaTensor, models: Sequence[QualityModel], images: Sequence[Tensor]
) -> CaseQuality:
    """Return what can be said of a prediction without a reference.

    Args:
        overlap: Of the whole case.
        labels: The label map ``(1, *spatial)`` on the grid of its file.
        models: Those of the experiments that predicted together, at least one. The estimate is the mean of theirs, as
            far as they were fitted to `FEWEST_CASES` or more; an image is unlike the training set if it is unlike that
            of each.
        images: The preprocessed image ``(C, *spatial)`` of each.
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
        warnings.append("the network's output holds NaN: it has failed on this image")
    elif overlap.is_empty:
        if not any(model.inputs.has_empty_cases for model in models):
            warnings.append("no voxel is of any class, and every training case has some")
    elif estimate is not None and median is not None and estimate < FAILED_SHARE * median:
        warnings.append(
            f"its Dice is estimated at {estimate:.2f}"
            + ("" if error is None else f" (such estimates are wrong by {error:.2f} on average)")
            + f", and the median of validation cases is {median:.2f}"
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
    """Return offset and slopes by least squares of the Dice, drawn to those without any case."""
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
