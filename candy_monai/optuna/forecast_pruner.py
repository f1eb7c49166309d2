"""A pruner for Optuna that stops trials by the forecast of their best score."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Self

from typing_extensions import override

from candy_monai.columns import SCORE
from candy_monai.experiment.early_stopping import is_hopeless
from candy_monai.experiment.score_prediction import predict_safely
from candy_monai.experiment.settings import FORECAST_CONFIDENCE, whole_number
from candy_monai.forecasting.curve import ScoreRange, mirrored
from candy_monai.forecasting.references import LEAST_SCORES
from candy_monai.optional import require
from candy_monai.training.description import check_score_range

if TYPE_CHECKING:
    from optuna import Study
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial
else:
    BasePruner = require("optuna.pruners", extra="optuna", purpose="prune trials").BasePruner

HORIZON = "candy_monai:horizon"
"""The user attribute of a trial that holds its own number of epochs, if trials differ in length."""

_DEGREE = 5


class ForecastPruner(BasePruner):
    """Prune a trial when the forecast is confident that it will not beat the best trial so far.

    The values that a trial reports are used as its score by epoch, and `candy_monai.forecast` computes the distribution
    of the best of them until the trial's end; it learns from the completed trials, as far as they predict one another.
    The trial is pruned if the chance of exceeding the best value of any completed trial is at most ``1 - confidence``.
    While there is no forecast, for example for a flat curve, the trial continues; one that has reported only NaN is
    pruned, as by Optuna's pruners.

    Steps are epochs, counted from 0 or from 1, or any multiple of them. Decisions depend only on the storage, so the
    pruner may be used from several processes, and a study may be continued with it at any time.

    Args:
        confidence: The required confidence of the forecast, above 0.5 and at most 0.95: the smallest chance that a
            forecast gives is 5 %.
        horizon: The length of a whole trial, in the unit of the reported steps: 2000 if it reports the steps 100, 200
            ... 2000. None for the trial's user attribute `HORIZON`, or else for the length of the longest completed
            trial.
        n_startup_trials: No trial is pruned before this number of trials is completed.
        n_warmup_steps: No trial is pruned before it has reported this number of steps. A forecast needs six scores.
        interval_steps: Number of steps between two decisions.
        score_range: The smallest and the largest value that can be reported, each None for no bound, as in
            `candy_monai.forecast`: ``(0, 1)`` for a Dice, ``(0, None)`` for a loss. None if it is unknown.

    Raises:
        SettingsError: If a number is out of range.
        MissingExtraError: On import, if Optuna is not installed.
    """

    def __init__(
        self,
        confidence: float = 0.9,
        *,
        horizon: int | None = None,
        n_startup_trials: int = 1,
        n_warmup_steps: int = 0,
        interval_steps: int = 1,
        score_range: ScoreRange | None = None,
    ) -> None:
        FORECAST_CONFIDENCE.check("confidence", confidence)
        if horizon is not None:
            whole_number(1).check("horizon", horizon)
        whole_number(0).check("n_startup_trials", n_startup_trials)
        whole_number(0).check("n_warmup_steps", n_warmup_steps)
        whole_number(1).check("interval_steps", interval_steps)
        check_score_range(score_range)
        self._confidence = confidence
        self._horizon = horizon
        self._n_startup_trials = n_startup_trials
        self._n_warmup_steps = n_warmup_steps
        self._interval_steps = interval_steps
        self._score_range = score_range

    @override
    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether to prune a trial, given what it has reported so far.

        Args:
            study: The study, with one objective.
            trial: The trial.
        """
        from optuna.trial import TrialState

        if not self._is_due(trial.intermediate_values):
            return False
        if all(map(math.isnan, trial.intermediate_values.values())):
            return True
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        sign = -1.0 if study.direction.name == "MINIMIZE" else 1.0
        best = max((score for other in completed for score in _scores_of(other, sign)), default=math.nan)
        if len(completed) < max(1, self._n_startup_trials) or math.isnan(best):
            return False
        epochs = _Epochs.of(trial.intermediate_values)
        horizon = self._horizon_of(trial, completed, epochs)
        scores = epochs.laid_out({step: sign * value for step, value in trial.intermediate_values.items()})
        if horizon is None or horizon <= len(scores):
            return False
        score_range = mirrored(self._score_range) if sign < 0 else self._score_range
        expected = predict_safely(
            {SCORE: scores},
            horizon,
            degree=_DEGREE,
            score_range=score_range,
            references=self._references_among(completed, sign),
        )
        if expected is None or expected.reason is not None:
            return False
        return is_hopeless(expected.chance_above(best), self._confidence)

    def _is_due(self, values: dict[int, float]) -> bool:
        """Return whether the last reported step is the first one at or after a step at which to decide."""
        if not values:
            return False
        step, before = max(values), max(sorted(values)[:-1], default=-1)
        if step < self._n_warmup_steps:
            return False
        due = self._n_warmup_steps + (step - self._n_warmup_steps) // self._interval_steps * self._interval_steps
        return before < due

    def _horizon_of(self, trial: FrozenTrial, completed: Iterable[FrozenTrial], epochs: _Epochs) -> int | None:
        """Return the planned number of epochs of a trial; None if it is not known."""
        steps = self._horizon if self._horizon is not None else trial.user_attrs.get(HORIZON)
        if steps is not None:
            if max(trial.intermediate_values) > int(steps):
                warnings.warn(
                    f"a trial has reported steps beyond the horizon of ForecastPruner, {steps}, and is not pruned any "
                    "more: as the horizon, give the length of a whole trial in the unit of the reported steps",
                    stacklevel=2,
                )
            return math.ceil(int(steps) / epochs.unit)
        last_steps = [max(other.intermediate_values) for other in completed if other.intermediate_values]
        return epochs.number(max(last_steps)) if last_steps else None

    def _references_among(self, completed: Iterable[FrozenTrial], sign: float) -> list[list[float]]:
        """Return the scores of completed trials by epoch, the newest first; trials with too few are left out."""
        reported = [
            {step: sign * value for step, value in trial.intermediate_values.items()}
            for trial in reversed(list(completed))
            if sum(map(math.isfinite, trial.intermediate_values.values())) >= LEAST_SCORES
        ]
        return [_Epochs.of(scores).laid_out(scores) for scores in reported]


@dataclass(frozen=True)
class _Epochs:
    """Maps reported steps to epochs, counted from 1, for steps of any size that begin with 0 or 1."""

    first: int
    unit: int

    @classmethod
    def of(cls, steps: Iterable[int]) -> Self:
        """Return the mapping for a trial's steps: if it reports every hundredth step, each of these is an epoch."""
        known = sorted(steps)
        return cls(known[0], math.gcd(*(after - before for before, after in pairwise(known))) or max(1, known[0]))

    def number(self, step: int) -> int:
        """Return the epoch of a step."""
        return max(1, math.ceil(self.first / self.unit)) + math.ceil((step - self.first) / self.unit)

    def laid_out(self, values: Mapping[int, float]) -> list[float]:
        """Return values by epoch, NaN for missing ones."""
        by_epoch = {self.number(step): value for step, value in values.items()}
        return [by_epoch.get(epoch, math.nan) for epoch in range(1, max(by_epoch) + 1)]


def _scores_of(trial: FrozenTrial, sign: float) -> list[float]:
    """Return the scores of a completed trial, higher is better: the values that it reported, or else its value.

    The forecast is that of the best reported value, which may be of another kind than the trial's value.
    """
    values = list(trial.intermediate_values.values()) or [trial.value]
    return [sign * value for value in values if value is not None and math.isfinite(value)]
