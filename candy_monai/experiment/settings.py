"""The settings of one training run: what ``Trainer.train`` was told, checked and frozen. Reads no file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from candy_monai.errors import SettingsError, did_you_mean
from candy_monai.experiment.durations import seconds_of
from candy_monai.experiment.early_stopping import Tolerance


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The keywords of ``Trainer.train``, documented there.

    Raises:
        SettingsError: If a value is out of range.
    """

    num_epochs: int
    note: str = ""
    num_checkpoints: int = 5
    ema: bool = True
    seed: int | None = None
    early_stop_tolerance: Tolerance = 5
    early_stop_confidence: float = 0.9
    early_stop_margin: float = 0.01
    val_score_prediction: bool = True
    val_score_prediction_degree: int = 5
    save_preview: bool = True
    preview_quality: float = 0.75
    deterministic: bool = False
    amp: Literal["bf16", "fp16", "auto"] | None = None
    accumulate: int = 1
    compile_model: bool = False
    channels_last: bool | None = None
    validate_every: int = 1
    num_validation_cases: int | None = None
    non_finite: Literal["stop", "skip"] = "stop"
    time_limit_s: float | None = None
    save_every: int | str | None = None

    def __post_init__(self) -> None:
        for name in self.names():
            if isinstance(value := getattr(self, name), np.generic):  # a NumPy number is a number
                object.__setattr__(self, name, value.item())
        for name in ("ema", "val_score_prediction", "save_preview", "deterministic", "compile_model"):
            _of_type(name, getattr(self, name), bool, "true or false")
        _of_type("note", self.note, str, "text")
        for name in ("preview_quality", "time_limit_s", "early_stop_confidence", "early_stop_margin"):
            if getattr(self, name) is not None:
                _of_type(name, getattr(self, name), (int, float), "a number")
        if self.seed is not None:
            _of_type("seed", self.seed, int, "a whole number")
        if self.channels_last is not None:
            _of_type("channels_last", self.channels_last, bool, "true or false")
        _at_least("num_epochs", self.num_epochs, 1)
        _at_least("accumulate", self.accumulate, 1)
        _at_least("num_checkpoints", self.num_checkpoints, 0)
        if self.early_stop_tolerance != "forecast":
            _at_least("early_stop_tolerance", self.early_stop_tolerance, 1, otherwise="'forecast' or None")
        _at_least("val_score_prediction_degree", self.val_score_prediction_degree, 1)
        _at_least("validate_every", self.validate_every, 1)
        _at_least("num_validation_cases", self.num_validation_cases, 1)
        _one_of("amp", self.amp, (None, "bf16", "fp16", "auto"))
        _one_of("non_finite", self.non_finite, ("stop", "skip"))
        self._check_ranges()

    def _check_ranges(self) -> None:
        if not self.preview_quality > 0:
            raise SettingsError(f"preview_quality must be positive (million voxels), got {self.preview_quality}")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise SettingsError(f"time_limit_s must be positive, got {self.time_limit_s}")
        if not 0 < self.early_stop_confidence < 1:
            raise SettingsError(f"early_stop_confidence must lie between 0 and 1, got {self.early_stop_confidence}")
        if not self.early_stop_margin >= 0:
            raise SettingsError(f"early_stop_margin must not be negative, got {self.early_stop_margin}")
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise SettingsError(f"seed must lie in 0 .. 2**32 - 1, got {self.seed}")
        if self.save_every is not None:
            SaveInterval.parse(self.save_every)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all settings."""
        return tuple(field.name for field in dataclasses.fields(cls))

    @classmethod
    def check_names(cls, names: Iterable[str], *, source: str) -> None:
        """Refuse names that are no setting.

        Args:
            names: The names to check.
            source: Where they come from, for the message.

        Raises:
            SettingsError: If one is unknown; the message suggests the closest known one.
        """
        for name in names:
            if name not in cls.names():
                raise SettingsError(f"{source}: unknown setting {name!r}.{did_you_mean(name, cls.names())}")

    def as_dict(self) -> dict[str, str | int | float | bool | None]:
        """Return the settings by name, as plain values."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class SaveInterval:
    """How often a run is saved within an epoch.

    Attributes:
        steps: After so many batches; None if time decides.
        seconds: After so many seconds; None if steps decide.
    """

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, value: int | str) -> SaveInterval:
        """Read what ``save_every`` was given: a number of batches, or a duration as ``"10m"`` or ``"90s"``.

        Raises:
            SettingsError: If it is neither.
        """
        if isinstance(value, str):
            try:
                return cls(seconds=seconds_of(value))
            except SettingsError as error:
                raise SettingsError(
                    f"save_every must be a number of batches, or a time such as '10m' or '90s': {error}"
                ) from None
        if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
            return cls(steps=value)
        raise SettingsError(f"save_every must be a number of batches, or a time such as '10m' or '90s', got {value!r}")

    def is_over(self, *, steps: int, seconds: float) -> bool:
        """Return whether it is time to save again, so many steps and seconds after the last time."""
        return (self.steps is not None and steps >= self.steps) or (
            self.seconds is not None and seconds >= self.seconds
        )


def _at_least(name: str, value: int | str | None, minimum: int, *, otherwise: str = "") -> None:
    if value is None:
        return
    or_else = f", {otherwise}" if otherwise else ""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise SettingsError(f"{name} must be a whole number of at least {minimum}{or_else}, got {value!r}")


def _of_type(name: str, value: object, kind: type | tuple[type, ...], words: str) -> None:
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise SettingsError(f"{name} must be {words}, got {value!r}")


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
