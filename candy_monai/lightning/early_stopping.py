"""Lightning's early stopping, by the forecast of the monitored metric's best value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from candy_monai.errors import SettingsError
from candy_monai.experiment.early_stopping import FORECAST_PATIENCE, is_hopeless
from candy_monai.experiment.score_prediction import chance_of_gain
from candy_monai.experiment.settings import FORECAST_CONFIDENCE, MARGIN, whole_number
from candy_monai.forecasting.best_score import Forecast
from candy_monai.forecasting.curve import ScoreRange
from candy_monai.lightning.host import EarlyStopping, LightningModule, Trainer, planned_epochs
from candy_monai.lightning.scores import MonitoredScores

_OF_THE_OTHER_CRITERION = {"min_delta", "stopping_threshold", "divergence_threshold"}


class ForecastEarlyStopping(EarlyStopping):
    """Stop training when the forecast is confident that the monitored metric will not improve.

    It is Lightning's ``EarlyStopping``, which waits for a number of checks without an improvement, with another
    criterion: a check counts if the chance of a better value until the end of training is at most ``1 - confidence``.
    While there is no forecast, such as in the first six epochs, training continues.

    Args:
        monitor: The metric's name, as it is logged.
        mode: ``max`` if it is better when higher, ``min`` if it is better when lower.
        confidence: The required confidence of the forecast, above 0.5 and at most 0.95.
        margin: An improvement by less than this fraction of the range of the values so far is ignored.
        patience: Number of consecutive checks without an expected gain.
        num_epochs: Number of epochs in which a better value may come; None for those of the Trainer (``max_epochs``,
            ``max_steps``).
        score_range: The smallest and the largest value of the metric, each None for no bound, such as ``(0, 1)`` for a
            Dice; None if it is unknown.
        **arguments: Arguments of ``EarlyStopping`` for the checks: ``verbose``, ``strict``, ``check_finite``,
            ``check_on_train_epoch_end``, ``log_rank_zero_only``.

    Attributes:
        forecast: The forecast of the metric's best value, as a score (the negative of a metric that is better when
            lower); None before the first.

    Raises:
        SettingsError: If an argument is out of range or would have no effect, or the Trainer has no end up to which to
            forecast.
    """

    def __init__(
        self,
        monitor: str,
        *,
        mode: str = "max",
        confidence: float = 0.9,
        margin: float = 0.01,
        patience: int = FORECAST_PATIENCE,
        num_epochs: int | None = None,
        score_range: ScoreRange | None = None,
        **arguments: Any,
    ) -> None:
        self._curve = MonitoredScores(monitor, mode, score_range, by=type(self).__name__)
        if idle := sorted(_OF_THE_OTHER_CRITERION & arguments.keys()):
            raise SettingsError(
                f"{idle[0]} has no effect: it belongs to Lightning's EarlyStopping, which does not forecast"
            )
        super().__init__(monitor=monitor, mode=mode, patience=patience, **arguments)
        FORECAST_CONFIDENCE.check("confidence", confidence)
        MARGIN.check("margin", margin)
        whole_number(1).check("patience", patience)
        if num_epochs is not None:
            whole_number(1).check("num_epochs", num_epochs)
        self.confidence, self.margin = confidence, margin
        self._num_epochs = num_epochs
        self._epoch = 0
        self.forecast: Forecast | None = None

    best_score: Tensor
    wait_count: int

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_epoch(trainer)  # a checkpoint from within an epoch continues it without `on_train_epoch_start`

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_epoch(trainer)

    def _begin_epoch(self, trainer: Trainer) -> None:
        self._epoch = trainer.current_epoch
        self._curve.begin_epoch(trainer)
        horizon = self._num_epochs or planned_epochs(trainer)
        if horizon is None:
            raise SettingsError(
                "ForecastEarlyStopping: the Trainer has neither max_epochs nor max_steps, so there is no end to "
                "forecast to: give one of them, or num_epochs="
            )
        self._horizon = horizon

    @override
    def _validate_condition_metric(self, logs: dict[str, Tensor]) -> bool:
        return bool(super()._validate_condition_metric(logs)) and self._curve.is_new(logs)

    @override
    def _evaluate_stopping_criteria(self, current: Tensor) -> tuple[bool, str | None]:
        if self.check_finite and not torch.isfinite(current):
            stops: tuple[bool, str | None] = super()._evaluate_stopping_criteria(current)
            return stops
        self._curve.record(self._epoch, float(current))
        if self.monitor_op(current, self.best_score.to(current.device)):
            self.best_score = current
        self.forecast = self._curve.forecast(self._horizon)
        chance = chance_of_gain(self.forecast, self._curve.scores, margin=self.margin)
        self.wait_count = self.wait_count + 1 if is_hopeless(chance, self.confidence) else 0
        if self.wait_count < self.patience:
            return False, None
        return True, (
            f"The forecast is {self.confidence:.0%} sure, {self.wait_count} checks in a row, that {self.monitor} gets "
            f"no better than {float(self.best_score):.4g} by more than {self.margin:.1%} of its range so far."
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "curve": self._curve.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._curve.load_state_dict(state_dict["curve"])
