"""Callbacks for Lightning's Trainer: experiment folder, forecast, previews. Needs the extra ``lightning``.

They use Lightning's hooks, and write an experiment folder, a log of the forecast, and pictures. No callback
changes the training.
"""

from candy_monai.lightning.early_stopping import ForecastEarlyStopping
from candy_monai.lightning.experiment_folder import ExperimentFolder
from candy_monai.lightning.previews import SegmentationPreviews
from candy_monai.lightning.progress import ForecastProgress

__all__ = ["ExperimentFolder", "ForecastEarlyStopping", "ForecastProgress", "SegmentationPreviews"]
