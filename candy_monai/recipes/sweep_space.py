"""The search space of a sweep: read from a file, checked as a whole, and converted to the options of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from optuna.distributions import (
    BaseDistribution,
    CategoricalChoiceType,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from candy_monai.aliases import PathLike
from candy_monai.config import parsed_yaml
from candy_monai.data.planning.entries import NUMBER_FROM_0, POSITIVE_NUMBER, SHARE, as_text
from candy_monai.data.planning.plan import ENTRIES, SETTABLE, parsed_overrides
from candy_monai.errors import BadInputError, SettingsError, did_you_mean
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.trainers import check_trainer_args, chosen_trainer
from candy_monai.text import read_text

OPTIONS = ("bundle", "network", "configuration", "warm_up")
"""The options of a run that can be searched, besides the plan's entries and the trainer's attributes."""

_EXAMPLE = "learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true} or batch_size: {choices: [2, 4]}"
_NUMBERS = ("low", "high", "log", "step")


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A searched setting.

    Attributes:
        name: Its name.
        kind: Whether it is an entry of the plan, an attribute of the trainer, or an option of a run.
        distribution: Its values, as an Optuna distribution.
    """

    name: str
    kind: Literal["plan", "trainer", "option"]
    distribution: BaseDistribution

    def extremes(self) -> Sequence[Any]:
        """Return the values that are checked in advance: all choices, or the smallest and the largest number."""
        values = self.distribution
        if isinstance(values, CategoricalDistribution):
            return tuple(values.choices)
        assert isinstance(values, IntDistribution | FloatDistribution)
        return (values.low, values.high) if values.low != values.high else (values.low,)


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The settings that a sweep searches.

    Attributes:
        entries: Each of them.
        source: The file that they were read from.
    """

    entries: tuple[Searched, ...]
    source: Path

    @classmethod
    def read(cls, path: PathLike, options: TrainOptions) -> Self:
        """Read a YAML or JSON file: ``name: {low, high, log, step}`` or ``name: {choices: [...]}``.

        Args:
            path: The file. A name is an entry of the plan, as for ``--set``, an attribute of the trainer, as for
                ``--trainer-args``, or one of `OPTIONS`.
            options: The options of each run, which the names must not contradict.

        Raises:
            SettingsError: If the file cannot be read, or with all invalid entries.
        """
        path = Path(path)
        try:
            text = read_text(path)
        except OSError as error:
            raise SettingsError(f"{path}: cannot be read ({error.strerror}); name a YAML or JSON file") from error
        except ValueError as error:
            raise SettingsError(f"{path}: is not a text file ({error})") from error
        content: Mapping[str, Any] = parsed_yaml(path, text)
        if not content:
            raise SettingsError(f"{path}: names no setting to search; expected lines such as {_EXAMPLE}")
        found, problems = [], []
        for name, value in content.items():
            try:
                kind = _kind_of(name, options)
                values = _distribution(value, fractions=_takes_fractions(name, kind, options))
                entry = Searched(name=name, kind=kind, distribution=values)
                space = cls(entries=(entry,), source=path)
                for extreme in entry.extremes():
                    space.check_run(space.applied(options, {name: extreme}))
            except (BadInputError, ValueError) as error:
                problems.append(f"{name}: {error}")
            else:
                found.append(entry)
        space = cls(entries=tuple(found), source=path)
        space._refuse(problems)
        try:  # what is right alone may contradict the rest
            space.check_run(space.applied(options, {entry.name: entry.extremes()[0] for entry in found}))
        except BadInputError as error:
            space._refuse([str(error)])
        return space

    def check_with(self, options: TrainOptions, check: Callable[[TrainOptions], None]) -> None:
        """Check each setting's extreme values, one at a time, in a run of these options.

        Raises:
            SettingsError: With all invalid entries.
            BadInputError: If the options are invalid without any of these settings, too.
        """
        problems = []
        for entry in self.entries:
            for value in entry.extremes():
                try:
                    check(self.applied(options, {entry.name: value}))
                except BadInputError as error:
                    problems.append(f"{entry.name}: {error}")
                    break
        if problems:
            check(options)  # what is wrong with the options is not said of each setting
        self._refuse(problems)

    def applied(self, options: TrainOptions, values: Mapping[str, Any]) -> TrainOptions:
        """Return options with values for these settings.

        Raises:
            SettingsError: If they contradict the other options.
        """
        by_kind: dict[str, dict[str, Any]] = {"plan": {}, "trainer": {}, "option": {}}
        for entry in self.entries:
            if entry.name in values:
                by_kind[entry.kind][entry.name] = values[entry.name]
        overrides = {name: _as_text(value) for name, value in by_kind["plan"].items()}
        changes: dict[str, Any] = dict(by_kind["option"])
        if overrides:
            changes["overrides"] = {**(options.overrides or {}), **overrides}
        if by_kind["trainer"]:
            changes["trainer_args"] = {**(options.trainer_args or {}), **by_kind["trainer"]}
        return dataclasses.replace(options, **changes)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the values of each setting, as Optuna asks for them."""
        return {entry.name: entry.distribution for entry in self.entries}

    def to_dict(self) -> dict[str, Any]:
        """Return the space as plain values."""
        return {entry.name: dict(entry.distribution._asdict()) for entry in self.entries}

    @staticmethod
    def check_run(options: TrainOptions) -> None:
        """Check the options of a run as far as possible without its dataset.

        Raises:
            BadInputError: If the entries of the plan, the trainer or the network are invalid.
        """
        parsed_overrides(options.overrides or {})
        check_trainer_args(chosen_trainer(options), options.trainer_args or {})

    def _refuse(self, problems: Sequence[str]) -> None:
        if problems:
            number = "1 setting" if len(problems) == 1 else f"{len(problems)} settings"
            lines = "".join(f"\n  - {problem}" for problem in problems)
            raise SettingsError(f"{self.source}: {number} cannot be searched:{lines}")


def _kind_of(name: str, options: TrainOptions) -> Literal["plan", "trainer", "option"]:
    """Return the kind of setting that a name refers to; refuse one that is unknown, or fixed by the options."""
    if name in SETTABLE:
        if name in (options.overrides or {}):
            raise SettingsError("is fixed by --set; leave out one of the two")
        return "plan"
    if name in OPTIONS:
        if getattr(options, name) != getattr(TrainOptions, name):
            raise SettingsError(f"is fixed by --{name.replace('_', '-')}; leave out one of the two")
        return "option"
    if name in (options.trainer_args or {}):
        raise SettingsError("is fixed by --trainer-args; leave out one of the two")
    trainer = chosen_trainer(options)
    if not name.startswith("_") and hasattr(trainer, name):
        return "trainer"
    known = (*(entry for entry in ENTRIES if entry in SETTABLE), *OPTIONS)
    hint = did_you_mean(name, known) or f" Known: {', '.join(known)}"
    raise SettingsError(
        f"is neither an entry of the plan, nor an attribute of {trainer.__name__}, nor an option to search.{hint}"
    )


def _takes_fractions(name: str, kind: str, options: TrainOptions) -> bool:
    """Return whether a setting between two whole numbers may be a fraction: ``{low: 0, high: 1}`` of a share."""
    if kind == "plan":
        return ENTRIES[name].kind in (POSITIVE_NUMBER, NUMBER_FROM_0, SHARE)
    return kind == "trainer" and isinstance(getattr(chosen_trainer(options), name), float)


def _distribution(value: object, *, fractions: bool) -> BaseDistribution:
    """Return the values that an entry of the file describes; raise ValueError if it describes none."""
    if not isinstance(value, Mapping):
        raise ValueError(f"got {value!r}, expected for example {_EXAMPLE}")
    if "choices" in value:
        if len(value) > 1:
            raise ValueError(f"choices cannot be combined with other entries, got {', '.join(value)}")
        return _categories(value["choices"])
    for name in value:
        if name not in _NUMBERS:
            hint = did_you_mean(str(name), (*_NUMBERS, "choices"))
            raise ValueError(f"{name!r} is unknown.{hint} Expected for example {_EXAMPLE}")
    numbers = {name: value[name] for name in ("low", "high", "step") if name in value}
    log = value.get("log", False)
    if "low" not in numbers or "high" not in numbers or not isinstance(log, bool):
        raise ValueError(f"got {dict(value)}, expected for example {_EXAMPLE}")
    _check_numbers(numbers, log=log)
    if not fractions and all(isinstance(number, int) for number in numbers.values()):
        return IntDistribution(numbers["low"], numbers["high"], log=log, step=numbers.get("step", 1))
    return FloatDistribution(numbers["low"], numbers["high"], log=log, step=numbers.get("step"))


def _check_numbers(numbers: Mapping[str, Any], *, log: bool) -> None:
    """Raise ValueError for invalid bounds and steps."""
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"{name} must be a number, got {number!r}")
    if numbers["low"] > numbers["high"]:
        raise ValueError(f"low is above high: {numbers['low']} and {numbers['high']}")
    if log and "step" in numbers:
        raise ValueError("give log or step, not both")
    if log and numbers["low"] <= 0:
        raise ValueError(f"low must be above 0 where log is true, got {numbers['low']}")
    if numbers.get("step", 1) <= 0:
        raise ValueError(f"step must be above 0, got {numbers['step']}")


def _categories(choices: object) -> CategoricalDistribution:
    """Return the distribution of a list of choices; raise ValueError if it is none."""
    if not isinstance(choices, list) or not choices:
        raise ValueError(f"choices must be a list of values, got {choices!r}")
    plain = [_plain(choice) for choice in choices]
    if len({(type(choice), choice) for choice in plain}) < len(plain):
        raise ValueError(f"choices must differ, got {choices!r}")
    return CategoricalDistribution(plain)


def _plain(choice: object) -> CategoricalChoiceType:
    """Return a choice as a value that Optuna can store; a list becomes the text that ``--set`` reads."""
    if isinstance(choice, list):
        return as_text(tuple(tuple(part) if isinstance(part, list) else part for part in choice))
    if choice is None or isinstance(choice, bool | int | float | str):
        return choice
    raise ValueError(f"a choice must be a value or a list of values, got {choice!r}")


def _as_text(value: object) -> str:
    """Return a value as text for ``--set``, with all digits."""
    return repr(value) if isinstance(value, float) else as_text(value)
