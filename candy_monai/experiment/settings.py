"""The settings of a run, each declared once: its default, and its valid values in Python and as text.

Imports nothing heavy: the command line's ``--help`` is made from such declarations.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from candy_monai.errors import SettingsError, did_you_mean
from candy_monai.experiment.durations import seconds_of
from candy_monai.experiment.early_stopping import Tolerance


@dataclass(frozen=True)
class SettingKind:
    """A kind of value of a setting.

    Attributes:
        expected: The valid values in words, for messages.
        accepts: Returns whether a value is valid; may raise a more specific `SettingsError`.
        parse: Returns a value from text, or raises ValueError.
    """

    expected: str
    accepts: Callable[[Any], bool]
    parse: Callable[[str], Any] = str

    def check(self, name: str, value: object) -> None:
        """Refuse an invalid value, naming the setting.

        Raises:
            SettingsError: With the value found and the values expected.
        """
        if not self.accepts(value):
            raise SettingsError(f"{name} must be {self.expected}, got {value!r}")

    def read(self, text: str) -> Any:
        """Return the value of a text.

        Raises:
            SettingsError: If it is invalid.
        """
        try:
            value = self.parse(text)
            is_one = self.accepts(value)
        except SettingsError:
            raise
        except ValueError:
            is_one = False
        if not is_one:
            raise SettingsError(f"{text!r}: expected {self.expected}")
        return value


def whole_number(minimum: int, maximum: int | None = None) -> SettingKind:
    """Return the kind of whole numbers within bounds."""
    bounds = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
    most = sys.maxsize if maximum is None else maximum
    return SettingKind(f"a whole number {bounds}", lambda value: _is_a(value, int) and minimum <= value <= most, int)


def number(which: str, is_in_range: Callable[[float], bool], parse: Callable[[str], float] = float) -> SettingKind:
    """Return the kind of numbers in a range, which ``which`` describes."""
    return SettingKind(f"a number {which}", lambda value: _is_a(value, int | float) and is_in_range(value), parse)


def one_of(*values: str) -> SettingKind:
    """Return the kind of these texts."""
    return SettingKind(
        f"one of {', '.join(map(repr, values))}", lambda value: isinstance(value, str) and value in values
    )


def setting(kind: SettingKind, default: Any = dataclasses.MISSING, **facts: Any) -> Any:
    """Declare a field of a `Declared` record, with further facts; None is also valid if it is the default."""
    return dataclasses.field(default=default, metadata={"kind": kind, **facts})


class Declared:
    """A frozen record whose fields are declared by `setting`; checks their values.

    Raises:
        SettingsError: If a value is out of range.
    """

    def __post_init__(self) -> None:
        numpy = sys.modules.get("numpy")  # without it there are no numbers of it
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # each subclass is a dataclass
            value = getattr(self, field.name)
            if numpy is not None and isinstance(value, numpy.generic):
                value = value.item()
                object.__setattr__(self, field.name, value)
            if value is not None or field.default is not None:
                field.metadata["kind"].check(field.name, value)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Return the names of all settings."""
        return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]

    @classmethod
    def check_names(cls, names: Iterable[str], *, source: str) -> None:
        """Refuse names that are not settings.

        Raises:
            SettingsError: If one is unknown; the message suggests the closest known one.
        """
        for name in names:
            if name not in cls.names():
                raise SettingsError(f"{source}: unknown setting {name!r}.{did_you_mean(name, cls.names())}")


@dataclass(frozen=True, kw_only=True)
class SaveInterval:
    """How often a run is saved within an epoch.

    Attributes:
        steps: Number of batches; None for an interval in seconds.
        seconds: Number of seconds; None for an interval in batches.
    """

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, value: int | str) -> SaveInterval:
        """Parse a value of ``save_every``: a number of batches, or a duration such as ``"10m"`` or ``"90s"``.

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
        if _is_a(value, int) and value >= 1:
            return cls(steps=value)
        raise SettingsError(f"save_every must be a number of batches, or a time such as '10m' or '90s', got {value!r}")

    def is_over(self, *, steps: int, seconds: float) -> bool:
        """Return whether it is time to save again, given the steps and seconds since the last time."""
        return (self.steps is not None and steps >= self.steps) or (
            self.seconds is not None and seconds >= self.seconds
        )


def _is_a(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


FLAG = SettingKind("true or false", lambda value: isinstance(value, bool))
TEXT = SettingKind("text", lambda value: isinstance(value, str))
SEED = whole_number(0, 2**32 - 1)
SAVE_EVERY = SettingKind(
    "a number of batches, or a time",
    lambda value: bool(SaveInterval.parse(value)),
    lambda text: int(text) if text.strip().isdecimal() else text,
)
CONFIDENCE = number("between 0 and 1", lambda value: 0 < value < 1)
FORECAST_CONFIDENCE = number("above 0.5 and at most 0.95", lambda value: 0.5 < value <= 0.95)
"""The confidence with which a forecast ends a run or a trial: 95 % is the highest quantile of a forecast."""
MARGIN = number("of at least 0", lambda value: value >= 0)
TOLERANCE = SettingKind(
    "a whole number of at least 1, 'forecast' or None",
    lambda value: value is None or value == "forecast" or whole_number(1).accepts(value),
)
PATH = SettingKind("a path", lambda value: isinstance(value, str | os.PathLike))
PATTERNS = SettingKind(
    "a pattern, or a sequence of them",
    lambda value: (
        isinstance(value, str | tuple | list) and all(isinstance(part, str) and part for part in _as_tuple(value))
    ),
)


def _as_tuple(value: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Declared):
    """The keywords of ``Trainer.train``, documented there.

    Raises:
        SettingsError: If a value is out of range.
    """

    num_epochs: int = setting(whole_number(1))
    note: str = setting(TEXT, "")
    num_checkpoints: int = setting(whole_number(0), 5)
    ema: bool = setting(FLAG, True)
    seed: int | None = setting(SEED, None)
    early_stop_tolerance: Tolerance = setting(TOLERANCE, 5)
    early_stop_confidence: float = setting(CONFIDENCE, 0.9)
    early_stop_margin: float = setting(MARGIN, 0.01)
    val_score_prediction: bool = setting(FLAG, True)
    val_score_prediction_degree: int = setting(whole_number(1), 5)
    save_preview: bool = setting(FLAG, True)
    save_report: bool = setting(FLAG, True)
    preview_quality: float = setting(number("of millions of voxels above 0", lambda value: value > 0), 0.75)
    deterministic: bool = setting(FLAG, False)
    amp: Literal["bf16", "fp16", "auto"] | None = setting(one_of("bf16", "fp16", "auto"), None)
    accumulate: int = setting(whole_number(1), 1)
    compile_model: bool = setting(FLAG, False)
    sync_batchnorm: bool = setting(FLAG, False)
    shard_optimizer: bool = setting(FLAG, False)
    channels_last: bool | None = setting(FLAG, None)
    validate_every: int = setting(whole_number(1), 1)
    num_validation_cases: int | None = setting(whole_number(1), None)
    non_finite: Literal["stop", "skip"] = setting(one_of("stop", "skip"), "stop")
    time_limit_s: float | None = setting(number("of seconds above 0", lambda value: value > 0), None)
    save_every: int | str | None = setting(SAVE_EVERY, None)
    init_from: str | os.PathLike[str] | None = setting(PATH, None)
    freeze: str | Sequence[str] = setting(PATTERNS, ())
    warm_up: int | None = setting(whole_number(0), None)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "freeze", _as_tuple(self.freeze))  # type: ignore[arg-type]  # as was seen
        if self.init_from is not None:
            object.__setattr__(self, "init_from", os.fspath(self.init_from))

    @property
    def forecasts(self) -> bool:
        """Whether the best score is forecast, for display or for early stopping."""
        return self.val_score_prediction or self.early_stop_tolerance == "forecast"

    def as_dict(self) -> dict[str, str | int | float | bool | tuple[str, ...] | None]:
        """Return the settings by name, as plain values."""
        return dataclasses.asdict(self)
