"""Import Lightning from whichever of its two packages is used, and query its Trainer for the callbacks."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Literal

from candy_monai.errors import MissingExtraError, SettingsError
from candy_monai.optional import require

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import EarlyStopping

    WEIGHT_AVERAGING: tuple[type, ...]
    WEIGHT_AVERAGING_IN_VALIDATION: tuple[type, ...]
    from lightning.pytorch.utilities import rank_zero_warn
    from lightning.pytorch.utilities.seed import isolate_rng
else:

    def _package() -> str:
        """Return the package that the script uses: ``lightning.pytorch`` unless it is ``pytorch_lightning``."""
        if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
            return "pytorch_lightning"
        try:
            require("lightning.pytorch", extra="lightning", purpose="give callbacks to Lightning's Trainer")
        except MissingExtraError:
            require("pytorch_lightning", extra="lightning", purpose="give callbacks to Lightning's Trainer")
            return "pytorch_lightning"
        return "lightning.pytorch"

    _NAME = _package()
    _host = require(_NAME, extra="lightning", purpose="give callbacks to Lightning's Trainer")
    Callback, LightningModule, Trainer = _host.Callback, _host.LightningModule, _host.Trainer
    _callbacks = require(f"{_NAME}.callbacks", extra="lightning", purpose="stop early")
    EarlyStopping = _callbacks.EarlyStopping
    _averaging = getattr(_callbacks, "WeightAveraging", None)  # missing in earlier versions
    WEIGHT_AVERAGING_IN_VALIDATION = () if _averaging is None else (_averaging,)
    WEIGHT_AVERAGING = (*WEIGHT_AVERAGING_IN_VALIDATION, _callbacks.StochasticWeightAveraging)
    _utilities = require(f"{_NAME}.utilities", extra="lightning", purpose="log")
    rank_zero_warn = _utilities.rank_zero_warn
    isolate_rng = require(f"{_NAME}.utilities.seed", extra="lightning", purpose="keep random numbers").isolate_rng

__all__ = [
    "WEIGHT_AVERAGING",
    "WEIGHT_AVERAGING_IN_VALIDATION",
    "Callback",
    "EarlyStopping",
    "LightningModule",
    "Mode",
    "Trainer",
    "checked_mode",
    "is_fitting",
    "isolate_rng",
    "planned_epochs",
    "rank_zero_warn",
]

Mode = Literal["min", "max"]


def checked_mode(mode: str) -> Mode:
    """Return a callback's ``mode``; raise if it is neither ``min`` nor ``max``."""
    if mode not in ("min", "max"):
        raise SettingsError(f"mode must be 'min' or 'max', got {mode!r}")
    return mode  # type: ignore[return-value]  # checked above


def is_fitting(trainer: Trainer) -> bool:
    """Return whether a hook belongs to training, not to a sanity check, a dry run, a test or a separate validation."""
    return bool(trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.fast_dev_run)


def planned_epochs(trainer: Trainer) -> int | None:
    """Return the number of epochs by ``max_epochs`` and ``max_steps``; None if neither bounds the training."""
    bounds = [trainer.max_epochs] if trainer.max_epochs not in (None, -1) else []
    if trainer.max_steps not in (None, -1):
        batches = trainer.num_training_batches
        if math.isfinite(batches) and batches > 0:
            bounds.append(math.ceil(trainer.max_steps * trainer.accumulate_grad_batches / batches))
    return max(1, min(bounds)) if bounds else None
