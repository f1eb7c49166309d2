"""The monitored metric of a training by epoch, and the forecast of its best value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from candy_monai.columns import LEARNING_RATE, SCORE
from candy_monai.errors import SettingsError, did_you_mean
from candy_monai.experiment.score_prediction import predict_safely
from candy_monai.forecasting.best_score import Forecast
from candy_monai.forecasting.curve import ScoreRange, mirrored
from candy_monai.lightning.host import Mode, Trainer, checked_mode, rank_zero_warn
from candy_monai.training.description import check_score_range

_DEGREE = 5


class MonitoredScores:
    """The monitored metric of each epoch as a score, higher is better, with the learning rates.

    Arguments are those of the callbacks; ``by`` names the one that monitors, for messages.
    """

    def __init__(self, monitor: str, mode: str, score_range: ScoreRange | None, *, by: str) -> None:
        self._monitor, self._by = monitor, by
        self._mode: Mode = checked_mode(mode)
        check_score_range(score_range)
        self.score_range = score_range if self._mode == "max" else mirrored(score_range)
        self._scores: dict[int, float] = {}
        self._rates: dict[int, float] = {}
        self._earlier: Any = None

    def as_score(self, value: float) -> float:
        """Return a value of the metric as a score, or a score as a value of the metric."""
        return value if self._mode == "max" else -value

    def begin_epoch(self, trainer: Trainer) -> None:
        """Record the first learning rate of an epoch, and discard later epochs, which belong to another training."""
        for of_training in (self._scores, self._rates):
            for later in [epoch for epoch in of_training if epoch > trainer.current_epoch]:
                del of_training[later]
        self._rates[trainer.current_epoch] = learning_rate(trainer)
        self._earlier = trainer.callback_metrics.get(self._monitor)

    def is_new(self, metrics: Mapping[str, Any]) -> bool:
        """Return whether the metric was logged in this epoch; Lightning keeps its last value until then."""
        return metrics.get(self._monitor) is not self._earlier

    def new_value(self, trainer: Trainer) -> float | None:
        """Return the metric's value in this epoch, None if it was not logged in it; raise if it never was."""
        metrics: dict[str, Any] = trainer.callback_metrics
        if self._monitor in metrics:
            return float(metrics[self._monitor]) if self.is_new(metrics) else None
        problem = (
            f"{self._by}(monitor={self._monitor!r}): no metric of this name was logged; known are: "
            f"{', '.join(metrics) or 'none'}.{did_you_mean(self._monitor, metrics)}"
        )
        if trainer.enable_validation:
            raise SettingsError(problem)
        rank_zero_warn(f"{problem} There is no validation, so the epochs have no score.")
        return None

    def record(self, epoch: int, value: float) -> None:
        """Record the metric of an epoch, counted from 0; a later value of the same epoch replaces an earlier one."""
        self._scores[epoch] = self.as_score(value)

    @property
    def scores(self) -> list[float]:
        """The scores by epoch; NaN if there is none."""
        return self._by_epoch(self._scores)

    def forecast(self, num_epochs: int) -> Forecast | None:
        """Return the forecast of the best score within this number of epochs; None while there are too few scores."""
        rates = self._by_epoch(self._rates)
        metrics: dict[str, Sequence[float]] = {SCORE: self.scores}
        if not any(map(math.isnan, rates)):
            metrics[LEARNING_RATE] = rates
        return predict_safely(metrics, num_epochs, degree=_DEGREE, score_range=self.score_range)

    def state_dict(self) -> dict[str, Any]:
        """Return the scores and learning rates by epoch."""
        return {"scores": dict(self._scores), "learning_rates": dict(self._rates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace all scores and learning rates by those that `state_dict` returned."""
        self._scores, self._rates = dict(state["scores"]), dict(state["learning_rates"])

    def _by_epoch(self, values: Mapping[int, float]) -> list[float]:
        return [values.get(epoch, math.nan) for epoch in range(max(self._scores, default=-1) + 1)]


def learning_rate(trainer: Trainer) -> float:
    """Return the present learning rate of the first group of the first optimizer; NaN without an optimizer."""
    return float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else math.nan
