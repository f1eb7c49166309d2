"""Callbacks for Lightning's Trainer: experiment folder, forecast, previews. Needs the extra ``lightning``.

They read from Lightning's hooks, and write an experiment folder, forecasts to the log, and pictures. No callback
changes the training.
"""

from candy_monai.lightning.early_stopping import ForecastEarlyStopping
from candy_monai.lightning.experiment_folder import ExperimentFolder
from candy_monai.lightning.previews import SegmentationPreviews
from candy_monai.lightning.progress import ForecastProgress

__all__ = ["ExperimentFolder", "ForecastEarlyStopping", "ForecastProgress", "SegmentationPreviews"]
