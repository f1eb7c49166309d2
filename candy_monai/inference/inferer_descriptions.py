"""Convert inferers to plain values in MONAI's configuration language, and build them from it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

from monai.inferers import (
    AvgMerger,
    Inferer,
    PatchInferer,
    SaliencyInferer,
    SimpleInferer,
    SliceInferer,
    SlidingWindowInferer,
    SlidingWindowInfererAdapt,
    SlidingWindowSplitter,
)

from candy_monai.errors import SettingsError
from candy_monai.experiment.description import CUSTOM, PLAN, InfererDescription
from candy_monai.inference.inferers import SlicesInferer, WholeOrWindowsInferer, WindowInferer, build_inferer

if TYPE_CHECKING:
    from candy_monai.data.planning.plan import Plan

_TARGET = "_target_"
_MERGER = AvgMerger.__name__
_OF_THE_MACHINE = frozenset({"device", "sw_device", "progress", "new_buffer"})
_LEFT_OUT = _OF_THE_MACHINE | {"self", "merger_cls", "cache_roi_weight_map"}  # the last one is not stored

# Nothing else is built from a file, since calling an arbitrary class is not safe.
_OF_MONAI = (
    PatchInferer,
    SaliencyInferer,
    SimpleInferer,
    SliceInferer,
    SlidingWindowInferer,
    SlidingWindowInfererAdapt,
)
_INFERERS: dict[str, type[Any]] = {f"monai.inferers.{kind.__name__}": kind for kind in _OF_MONAI}
_INFERERS["candy_monai.WindowInferer"] = WindowInferer
_KINDS = {**_INFERERS, "monai.inferers.SlidingWindowSplitter": SlidingWindowSplitter}


def describe_inferer(inferer: Inferer | None, plan: Plan | None = None) -> InfererDescription:
    """Return an inferer as plain values, for ``experiment.json``; with a plan it may be that of the plan."""
    if inferer is None:
        return None
    if plan is not None and type(inferer) in (WholeOrWindowsInferer, SlicesInferer):
        return PLAN if describe_windows(inferer) == describe_windows(build_inferer(plan)) else CUSTOM
    try:
        return _described(inferer)
    except _NotPlainError:
        return CUSTOM


def describe_windows(inferer: Inferer | None) -> dict[str, object]:
    """Return the windows and the blending of an inferer, ours or MONAI's, as plain values, without our defaults."""
    divisor = getattr(inferer, "divisor", None)
    return {"kind": type(inferer).__name__, "divisor": divisor, **_arguments(inferer, WindowInferer)}


def inferer_from_description(description: InfererDescription, plan: Plan | None = None) -> Inferer | None:
    """Build an inferer from the result of `describe_inferer`; raise SettingsError if that is impossible."""
    if description is None:
        return None
    if description == PLAN and plan is not None:
        return build_inferer(plan)
    refusal = f"this inferer cannot be built from its description: {description}"
    if not isinstance(description, Mapping) or str(description.get(_TARGET)) not in _INFERERS:
        raise SettingsError(refusal)
    try:
        inferer: Inferer = _built(description)
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise SettingsError(refusal) from error
    return inferer


class _NotPlainError(Exception):
    """Raised if an argument is not plain data."""


def _described(value: object) -> dict[str, object]:
    """Return an object in MONAI's configuration language, without arguments that have their default."""
    kind = type(value)
    target = next((name for name, known in _KINDS.items() if known is kind), None)
    if target is None:
        raise _NotPlainError
    return {_TARGET: target, **_arguments(value, kind)}


def _arguments(value: object, kind: type[Any]) -> dict[str, object]:
    """Return the constructor arguments that are also attributes and differ from their defaults."""
    bases = (SlidingWindowInferer, kind) if issubclass(kind, SlidingWindowInferer) else (kind,)
    found: dict[str, object] = {}
    for name, parameter in ((n, p) for base in bases for n, p in inspect.signature(base.__init__).parameters.items()):
        if name in _LEFT_OUT or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        found[name] = _plain_value(getattr(value, name))
        if found[name] == _plain_value(parameter.default):
            del found[name]
    kept_apart: Mapping[str, object] = {}
    if isinstance(value, SliceInferer):
        kept_apart = {"roi_size": value.orig_roi_size}  # roi_size gains an axis after a call
    elif isinstance(value, SaliencyInferer):
        if value.args:
            raise _NotPlainError
        kept_apart = value.kwargs
    elif isinstance(value, PatchInferer):
        if value.merger_cls is not AvgMerger:
            raise _NotPlainError
        kept_apart = {"merger_cls": _MERGER, **value.merger_kwargs}
    return found | {name: _plain_value(given) for name, given in kept_apart.items() if name not in _OF_THE_MACHINE}


def _plain_value(value: object) -> object:
    if isinstance(value, Enum):
        return _plain_value(value.value)
    if value is None or isinstance(value, bool | int | float | str) or value is inspect.Parameter.empty:
        return value
    return [_plain_value(entry) for entry in value] if isinstance(value, Sequence) else _described(value)


def _built(description: Mapping[str, Any]) -> Any:
    arguments = {
        name: _built(argument) if isinstance(argument, Mapping) else argument
        for name, argument in description.items()
        if name != _TARGET
    }
    if unknown := sorted((_OF_THE_MACHINE | {"new_room"}) & arguments.keys()):
        raise SettingsError(f"{unknown[0]} is not stored with an inferer")
    if arguments.get("merger_cls", _MERGER) != _MERGER:  # MONAI would import any other name
        raise SettingsError(f"merger_cls must be {_MERGER}, got {arguments['merger_cls']!r}")
    return _KINDS[description[_TARGET]](**arguments)
