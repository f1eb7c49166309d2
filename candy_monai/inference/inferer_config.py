"""Inferers as plain data, as they stand in ``experiment.json``, and built again from it.

An inferer is None for whole images, ``"plan"`` for that of a plan, a dictionary in MONAI's configuration language, or
``"custom"`` where its arguments are no plain data.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

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

from candy_monai.data.planning.plan import Plan
from candy_monai.errors import SettingsError
from candy_monai.experiment.description import CUSTOM, PLAN, InfererDescription
from candy_monai.inference.inferers import WholeOrWindowsInferer, WindowInferer, build_inferer

_TARGET = "_target_"
# Nothing else is built from a file: not every class that can be named is safe to call.
_INFERERS: dict[str, type[Any]] = {
    "candy_monai.WindowInferer": WindowInferer,
    **{
        f"monai.inferers.{kind.__name__}": kind
        for kind in (
            PatchInferer,
            SaliencyInferer,
            SimpleInferer,
            SliceInferer,
            SlidingWindowInferer,
            SlidingWindowInfererAdapt,
        )
    },
}
_KINDS = {**_INFERERS, "monai.inferers.SlidingWindowSplitter": SlidingWindowSplitter}
_MERGER = AvgMerger.__name__
# Of the machine, not of the result.
_LEFT_OUT = frozenset({"device", "sw_device", "progress", "new_room"})


class _NotPlainError(Exception):
    """Raised where an argument is no plain data."""


def describe_inferer(inferer: Inferer | None, plan: Plan | None = None) -> InfererDescription:
    """Return an inferer in plain values, for ``experiment.json``.

    Args:
        inferer: The inferer.
        plan: The experiment's plan, which may be where it comes from.
    """
    if inferer is None:
        return None
    if plan is not None and type(inferer) is WholeOrWindowsInferer:
        return PLAN if describe_windows(inferer) == describe_windows(build_inferer(plan)) else CUSTOM
    try:
        return _described(inferer)
    except _NotPlainError:
        return CUSTOM


def describe_windows(inferer: WindowInferer) -> dict[str, object]:
    """Return how an inferer cuts images into windows and blends them, in plain values, to compare two by."""
    kind = type(inferer)
    return {"kind": kind.__name__, "divisor": getattr(inferer, "divisor", None), **_arguments(inferer, WindowInferer)}


def inferer_from_description(description: InfererDescription, plan: Plan | None = None) -> Inferer | None:
    """Build what `describe_inferer` described.

    Args:
        description: From ``experiment.json``.
        plan: The experiment's plan.

    Raises:
        SettingsError: If the inferer cannot be built from it.
    """
    if description is None:
        return None
    if description == PLAN and plan is not None:
        return build_inferer(plan)
    if isinstance(description, Mapping) and str(description.get(_TARGET)) in _INFERERS:
        try:
            inferer: Inferer = _built(description)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise _refusal(description) from error
        return inferer
    raise _refusal(description)


def _refusal(description: object) -> SettingsError:
    return SettingsError(f"this inferer cannot be built from its description: {description}")


def _described(value: object) -> dict[str, object]:
    """Return an object in MONAI's configuration language; arguments at their defaults are left out."""
    kind = type(value)
    target = next((name for name, known in _KINDS.items() if known is kind), None)
    if target is None:
        raise _NotPlainError
    return {_TARGET: target, **_arguments(value, kind)}


def _arguments(value: object, kind: type[Any]) -> dict[str, object]:
    found = dict(_plain_arguments(value, kind))
    if isinstance(value, SliceInferer):
        found["roi_size"] = _plain(value.orig_roi_size)  # roi_size has one axis more after a call
    if isinstance(value, SaliencyInferer):
        if value.args:
            raise _NotPlainError
        found |= {name: _plain(argument) for name, argument in value.kwargs.items()}
    if isinstance(value, PatchInferer):
        if value.merger_cls is not AvgMerger:
            raise _NotPlainError
        found["merger_cls"] = _MERGER
        found |= {name: _plain(argument) for name, argument in value.merger_kwargs.items() if name not in _LEFT_OUT}
    return found


def _plain_arguments(value: object, kind: type[Any]) -> dict[str, object]:
    """Return the arguments of a constructor that are attributes, too, and not at their defaults."""
    found: dict[str, object] = {}
    parameters: dict[str, inspect.Parameter] = {}
    for base in (SlidingWindowInferer, kind) if issubclass(kind, SlidingWindowInferer) else (kind,):
        parameters |= inspect.signature(base.__init__).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, parameter in parameters.items():
        if name in ("self", "merger_cls", *_LEFT_OUT) or parameter.kind in variadic:
            continue
        if name == "cache_roi_weight_map":  # it is not kept, and changes no result
            continue
        argument = _plain(getattr(value, name))
        if argument != _plain(parameter.default):
            found[name] = argument
    return found


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Sequence):
        return [_plain(entry) for entry in value]
    if value is inspect.Parameter.empty:
        return value
    return _described(value)


def _built(description: Mapping[str, Any]) -> Any:
    arguments = {
        name: _built(argument) if isinstance(argument, Mapping) else argument
        for name, argument in description.items()
        if name != _TARGET
    }
    if unknown := sorted(_LEFT_OUT & arguments.keys()):
        raise SettingsError(f"{unknown[0]} is not stored with an inferer")
    if arguments.get("merger_cls", _MERGER) != _MERGER:  # MONAI imports whatever else stands there
        raise SettingsError(f"merger_cls must be {_MERGER}, got {arguments['merger_cls']!r}")
    return _KINDS[description[_TARGET]](**arguments)
