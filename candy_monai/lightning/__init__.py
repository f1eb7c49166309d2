"""Callbacks for Lightning's Trainer: experiment folder, forecast, previews. Needs the extra ``lightning``.

Lightning's hooks enter; an experiment's folder, a log of the forecast and pictures leave. No callback changes what is
trained.
"""

from candy_monai.lightning.early_stopping import ForecastEarlyStopping
from candy_monai.lightning.experiment_folder import ExperimentFolder
from candy_monai.lightning.previews import SegmentationPreviews
from candy_monai.lightning.progress import ForecastProgress

__all__ = ["ExperimentFolder", "ForecastEarlyStopping", "ForecastProgress", "SegmentationPreviews"]
