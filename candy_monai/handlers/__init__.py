"""Handlers for MONAI's engines: the experiment folder, the moving average, stopping by forecast, previews, dashboards.

Put them into the ``train_handlers`` of a ``SupervisedTrainer``, in any order. They find each other and the parts of the
engines that they need when the run begins. None of them changes the trained weights.
"""

from candy_monai.optional import require

require("ignite", extra="ignite", purpose="train with MONAI's engines")

from candy_monai.handlers.ema import EMAHandler  # noqa: E402  # after the check of what these modules import
from candy_monai.handlers.experiment_folder import ExperimentFolderHandler  # noqa: E402
from candy_monai.handlers.forecast_stop import ForecastStopHandler  # noqa: E402
from candy_monai.handlers.frontend import FrontendHandler  # noqa: E402
from candy_monai.handlers.previews import PreviewHandler  # noqa: E402

__all__ = ["EMAHandler", "ExperimentFolderHandler", "ForecastStopHandler", "FrontendHandler", "PreviewHandler"]
