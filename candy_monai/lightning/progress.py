"""The forecast of the monitored metric's best value, logged with Lightning's own metrics."""

from __future__ import annotations

import math
from typing import Any

from typing_extensions import override

from candy_monai.experiment.score_prediction import chance_as_text
from candy_monai.forecasting.best_score import Forecast
from candy_monai.forecasting.curve import ScoreRange
from candy_monai.lightning.host import Callback, LightningModule, Trainer, is_fitting, planned_epochs
from candy_monai.lightning.scores import MonitoredScores
from candy_monai.observers.forecast import NOTABLE


class ForecastProgress(Callback):
    """Show and log the forecast of the monitored metric's best value.

    After each epoch with a value, ``<monitor>_forecast`` (and ``_forecast_low`` and ``_forecast_high``, which contain
    it in 80 % of the trainings that improve) are sent to the loggers, and the first of them to the progress bar. A line
    on the screen shows it the first time and whenever it changes by more than 5 % of the range of the values so far.

    Args:
        monitor: The metric's name, as it is logged.
        mode: ``max`` if it is better when higher, ``min`` if it is better when lower.
        num_epochs: Number of epochs of the whole training; None for those of the Trainer.
        score_range: The smallest and the largest value of the metric, each None for no bound; None if it is unknown.
        verbose: Whether to print lines.

    Attributes:
        forecast: The forecast of the best value, as a score (the negative of a metric that is better when lower); None
            before the first.

    Raises:
        SettingsError: If ``mode`` is neither ``max`` nor ``min``, or no such metric is logged until the first
            validated epoch ends.
    """

    def __init__(
        self,
        monitor: str,
        *,
        mode: str = "max",
        num_epochs: int | None = None,
        score_range: ScoreRange | None = None,
        verbose: bool = True,
    ) -> None:
        self.monitor, self.mode = monitor, mode
        self._curve = MonitoredScores(monitor, mode, score_range, by=type(self).__name__)
        self._num_epochs = num_epochs
        self._verbose = verbose
        self._validated = False
        self._shown = math.nan
        self.forecast: Forecast | None = None

    @property
    @override
    def state_key(self) -> str:
        return str(self._generate_state_key(monitor=self.monitor, mode=self.mode))

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = False
        self._curve.begin_epoch(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = is_fitting(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_fitting(trainer) or (trainer.enable_validation and not self._validated):
            return
        # A metric of the training refers to the whole epoch only from now on; before, it is that of a step.
        value = self._curve.new_value(trainer)
        if value is None:
            return
        self._curve.record(trainer.current_epoch, value)
        horizon = self._num_epochs or planned_epochs(trainer)
        self.forecast = None if horizon is None else self._curve.forecast(horizon)
        if self.forecast is None or self.forecast.interval is None:
            return
        best = self._curve.as_score(self.forecast.score)
        low, high = sorted(map(self._curve.as_score, self.forecast.interval))
        name = f"{self.monitor}_forecast"
        pl_module.log(name, best, prog_bar=True)
        pl_module.log_dict({f"{name}_low": low, f"{name}_high": high})
        self._show(pl_module, self.forecast, best, low, high)

    def _show(self, pl_module: LightningModule, forecast: Forecast, best: float, low: float, high: float) -> None:
        known = [score for score in self._curve.scores if math.isfinite(score)]
        if not self._verbose or abs(best - self._shown) <= NOTABLE * (max(known) - min(known)):
            return
        self._shown = best
        chance = chance_as_text(forecast.chance_above(max(known)))
        pl_module.print(
            f"{self.monitor}: {best:.4f} predicted at epoch {forecast.epoch}, {low:.4f} to {high:.4f} in 80 % of the "
            f"trainings that get better; the chance of a better one than {self._curve.as_score(max(known)):.4f} is "
            f"{chance}"
        )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"curve": self._curve.state_dict(), "shown": self._shown}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._curve.load_state_dict(state_dict["curve"])
        self._shown = state_dict["shown"]
