"""How good a prediction probably is, without a reference: an estimate of its Dice, and what is unusual about its image.

The estimate is the Dice that a label map has with its own probabilities (`ExpectedOverlap`), brought to the scale of
true Dice by a monotone function that was fitted to the validation cases of the run, which its training has not seen.
"""

from __future__ import annotations

import json
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
from candy_monai.errors import ExperimentError
from candy_monai.experiment.folder import QUALITY
from candy_monai.files import atomic_write_text, digest_of_file
from candy_monai.inference.typical_inputs import TypicalInputs
from candy_monai.text import read_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from candy_monai.inference.overlap import ExpectedOverlap

FORMAT = 1

FAILED_SHARE = 0.7
"""A prediction below this share of the median Dice is one that failed."""

_CLOSEST = 1e-3
"""An expected Dice this close to 0 or 1 is taken to be that far away from it, where the logarithm is finite."""
_LEAST_SLOPE = 0.05
_PRIOR = 0.01
"""How strongly the fit is drawn to the expected Dice itself, in squared residuals: what few cases cannot outweigh."""
_MOST_FOLDS = 10
_FEWEST_FOR_RANKS = 3


@dataclass(frozen=True, kw_only=True)
class CaseQuality:
    """What can be said of a prediction without a reference.

    Attributes:
        estimated_dice: The estimate of the mean Dice over the classes that the prediction or its reference holds; of a
            prediction without any, what it is if the reference holds one.
        typical_error: The mean distance of such estimates from the true Dice of validation cases; None if unknown.
        warnings: Why to look at this prediction, a sentence each.
    """

    estimated_dice: float
    typical_error: float | None = None
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """Return plain values that JSON stores."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A monotone function from the expected Dice to an estimate of the true one; by default the identity.

    Attributes:
        offset: Added to the log-odds of the expected Dice.
        slope: What these are multiplied by before.
        num_cases: The validation cases that it was fitted to.
        typical_error: The mean distance of the estimate from the true Dice, of cases that the fit had not seen; None
            for fewer than two.
        rank_correlation: Spearman's, of estimate and true Dice of these cases; None where it is undefined.
        median_dice: The median of their true Dice; None without any.
    """

    offset: float = 0.0
    slope: float = 1.0
    num_cases: int = 0
    typical_error: float | None = None
    rank_correlation: float | None = None
    median_dice: float | None = None

    @classmethod
    def fit(cls, expected: Sequence[float], dice: Sequence[float]) -> Calibration:
        """Fit the function to cases.

        Args:
            expected: The expected Dice of each case, 0 to 1.
            dice: The true Dice of each case, 0 to 1.
        """
        log_odds, true = _log_odds(np.asarray(expected)), np.asarray(dice, dtype=np.float64)
        if not len(true):
            return cls()
        offset, slope = _fitted(log_odds, true)
        folds = np.arange(len(true)) % min(len(true), _MOST_FOLDS)
        error = None
        if len(true) > 1:
            kept_apart = [
                np.abs(
                    _estimates(log_odds[folds == fold], *_fitted(log_odds[folds != fold], true[folds != fold]))
                    - true[folds == fold]
                )
                for fold in range(folds.max() + 1)
            ]
            error = float(np.concatenate(kept_apart).mean())
        return cls(
            offset=offset,
            slope=slope,
            num_cases=len(true),
            typical_error=error,
            rank_correlation=_rank_correlation(log_odds, true),
            median_dice=float(np.median(true)),
        )

    def __call__(self, expected: float) -> float:
        """Return the estimate of the true Dice, 0 to 1, for an expected Dice."""
        return float(_estimates(_log_odds(np.asarray(expected)), self.offset, self.slope))


@dataclass(frozen=True, kw_only=True)
class QualityModel:
    """What the quality of predictions is judged by.

    Attributes:
        calibration: From the expected Dice to the estimate.
        inputs: What the training images are like.
    """

    calibration: Calibration
    inputs: TypicalInputs

    @classmethod
    def load(cls, experiment: Path, weights: Path) -> QualityModel | None:
        """Read it from an experiment's folder; None where there is none, or only one of other weights.

        Args:
            experiment: The folder.
            weights: The file of the weights that predict.

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
            return cls(
                calibration=Calibration(**content["calibration"]), inputs=TypicalInputs.from_dict(content["inputs"])
            )
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
        models: Those of the experiments that predicted together, at least one. The estimate is the mean of theirs; an
            image is unlike the training set if it is unlike that of each.
        images: The preprocessed image ``(C, *spatial)`` of each.
    """
    expected = overlap.dice()
    calibrations = [model.calibration for model in models]
    estimate = fmean(calibration(expected) for calibration in calibrations)
    errors = [calibration.typical_error for calibration in calibrations if calibration.typical_error is not None]
    medians = [calibration.median_dice for calibration in calibrations if calibration.median_dice is not None]
    error = fmean(errors) if errors else None
    geometry = None if labels.meta.get(HAS_NO_GRID) else geometry_of(labels)
    differences = (
        model.inputs.differences(image.cpu().numpy(), geometry) for model, image in zip(models, images, strict=True)
    )
    warnings = [f"unlike the training images: {difference}" for difference in min(differences, key=len)]
    if overlap.is_empty:
        if not any(model.inputs.has_empty_cases for model in models):
            warnings.append("no voxel is of any class, and every training case has some")
    elif medians and estimate < FAILED_SHARE * fmean(medians):
        warnings.append(
            f"its Dice is estimated at {estimate:.2f}"
            + ("" if error is None else f" (such estimates are wrong by {error:.2f} on average)")
            + f", and the median of validation cases is {fmean(medians):.2f}"
        )
    return CaseQuality(estimated_dice=estimate, typical_error=error, warnings=tuple(warnings))


def _log_odds(expected: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import logit

    return np.asarray(logit(np.clip(expected, _CLOSEST, 1 - _CLOSEST)), dtype=np.float64)


def _estimates(log_odds: NDArray[np.float64], offset: float, slope: float) -> NDArray[np.float64]:
    from scipy.special import expit

    return np.asarray(expit(offset + slope * log_odds), dtype=np.float64)


def _fitted(log_odds: NDArray[np.float64], dice: NDArray[np.float64]) -> tuple[float, float]:
    """Return offset and slope by least squares of the Dice, drawn to 0 and 1."""
    from scipy.optimize import least_squares

    def residuals(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        offset, slope = parameters
        return np.array([*(_estimates(log_odds, offset, slope) - dice), *(_PRIOR**0.5 * (parameters - (0.0, 1.0)))])

    found = least_squares(residuals, (0.0, 1.0), bounds=((-np.inf, _LEAST_SLOPE), (np.inf, np.inf)))
    return float(found.x[0]), float(found.x[1])


def _rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    from scipy.stats import spearmanr

    if len(first) < _FEWEST_FOR_RANKS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)
