"""Early stopping by forecast in MONAI's engines."""

from __future__ import annotations

from monai.engines import Evaluator
from typing_extensions import override

from candy_monai.experiment.settings import FORECAST_CONFIDENCE, MARGIN
from candy_monai.forecasting.curve import ScoreRange
from candy_monai.handlers.engine_run import TrainerHandler
from candy_monai.handlers.options import RunOptions, ScoreSource


class ForecastStopHandler(TrainerHandler):
    """End a trainer's run once the forecast is confident that no later epoch will be noticeably better.

    It does not need an `ExperimentFolderHandler`. The run ends after three consecutive validated epochs for which the
    forecast predicts this; while there is no forecast, as at the start, training continues. All processes of a run end
    after the same epoch.

    Args:
        confidence: The required confidence of the forecast, above 0.5 and at most 0.95.
        margin: An improvement by less than this fraction of the range of the scores so far is ignored.
        validator: The evaluator that gives the score; by default the one that the trainer's handlers run.
        key_metric_name: The metric of the evaluator that is the score; by default its key metric.
        key_metric_negative_sign: Whether lower values are better; by default according to the evaluator's
            ``metric_cmp_fn``.
        score_range: The smallest and the largest possible score, such as ``(0, 1)``, which improves the forecast.

    Raises:
        SettingsError: If a value is out of range.
        BadInputError: If ``validator`` is not an evaluator.

    Example:
        >>> handlers = [ValidationHandler(1, evaluator), ForecastStopHandler(confidence=0.9)]  # doctest: +SKIP
    """

    def __init__(
        self,
        confidence: float = 0.9,
        margin: float = 0.01,
        validator: Evaluator | None = None,
        key_metric_name: str | None = None,
        key_metric_negative_sign: bool | None = None,
        score_range: ScoreRange | None = None,
    ) -> None:
        FORECAST_CONFIDENCE.check("confidence", confidence)
        MARGIN.check("margin", margin)
        self._confidence, self._margin = confidence, margin
        self._score = ScoreSource(
            validator=validator,
            key_metric_name=key_metric_name,
            key_metric_negative_sign=key_metric_negative_sign,
            score_range=score_range,
        )

    @override
    def contribute(self, options: RunOptions) -> None:
        options.records = True
        options.score = options.score.merged(self._score)
        options.stop = self._confidence, self._margin
