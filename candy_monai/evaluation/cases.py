"""Predictions against references, case by case, in nnU-Net's form. Trains nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from candy_monai.data.io import load_image
from candy_monai.data.nnunet import NNUNetCase
from candy_monai.errors import BadInputError
from candy_monai.files import atomic_write_text
from candy_monai.inference.predictor import Predictor
from candy_monai.metrics.overlap import dice_per_class


@dataclass(frozen=True, kw_only=True)
class CaseScores:
    """The Dice of every case.

    Attributes:
        dice: Case id to the Dice of each foreground class; NaN where the class is in neither map.
    """

    dice: dict[str, tuple[float, ...]]

    @property
    def mean(self) -> float:
        """The mean over the foreground classes of each class's mean over the cases, NaN left out."""
        return _mean(_mean(values) for values in zip(*self.dice.values(), strict=True))

    def save(self, path: Path) -> None:
        """Write the scores as nnU-Net writes its ``summary.json``."""
        cases = [
            {"case": case_id, "metrics": {str(i): {"Dice": _number(d)} for i, d in enumerate(dice, start=1)}}
            for case_id, dice in self.dice.items()
        ]
        columns = list(zip(*self.dice.values(), strict=True))
        by_class = {str(i): {"Dice": _number(_mean(column))} for i, column in enumerate(columns, start=1)}
        summary = {"foreground_mean": {"Dice": _number(self.mean)}, "mean": by_class, "metric_per_case": cases}
        atomic_write_text(path, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def score_cases(
    predictor: Predictor, cases: Iterable[NNUNetCase], *, on_case: Callable[[str], None] | None = None
) -> CaseScores:
    """Predict cases from their files and score them in the files' own geometry.

    Args:
        predictor: Predicts.
        cases: Cases with labels.
        on_case: Told each case's id when it is done.

    Raises:
        BadInputError: If a case has no label.
    """
    num_classes = max(2, predictor.num_classes or 2)
    dice = {}
    for case in cases:
        if case.label is None:
            raise BadInputError(f"case {case.case_id} has no label to score against")
        prediction = predictor.predict(case.images).as_tensor()
        reference = load_image(case.label, is_label=True).as_tensor()
        ignored = None if predictor.plan is None else predictor.plan.ignore_label
        scores = dice_per_class(prediction, reference, num_classes, ignore_index=ignored, batched=False)
        dice[case.case_id] = tuple(scores.reshape(-1).tolist())
        if on_case is not None:
            on_case(case.case_id)
    return CaseScores(dice=dice)


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
