"""The definition of a network in MONAI's configuration language: its class and arguments.

Networks do not store their arguments, so these are recorded while the network is built.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

from monai.networks import nets
from torch import nn

TARGET = "_target_"


@contextmanager
def noted_arguments(*kinds: type[nn.Module]) -> Iterator[dict[nn.Module, dict[str, Any]]]:
    """Yield a dictionary that records the arguments of each network of these classes, or else MONAI's, in the block."""
    noted: dict[nn.Module, dict[str, Any]] = {}
    of_monai = {kind for kind in vars(nets).values() if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    own = {kind: vars(kind).get("__init__") for kind in kinds or of_monai}
    for kind in own:
        kind.__init__ = _noting(kind, kind.__init__, noted)  # type: ignore[method-assign]
    try:
        yield noted
    finally:
        for kind, original in own.items():
            if original is None:  # inherited from its base class
                del kind.__init__
            else:
                kind.__init__ = original  # type: ignore[method-assign]


def _noting(
    kind: type[nn.Module], original: Callable[..., None], noted: dict[nn.Module, dict[str, Any]]
) -> Callable[..., None]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if exported_as(type(self)) is kind:  # not when a subclass calls its base class
            _, *given = signature.bind(self, *args, **kwargs).arguments.items()
            noted[self] = {}
            for name, value in given:
                is_rest = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
                noted[self] |= value if is_rest else {name: value}

    return init


def exported_as(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class itself, or that of MONAI named by its own ``exported_as``, if it differs only in training."""
    named: type[nn.Module] = vars(kind).get("exported_as", kind)
    return named


def define(kind: type[nn.Module], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the definition of a network, ``{"_target_": ..., arguments}``; raise unless all are plain data."""
    public = getattr(nets, kind.__name__, None) is kind
    package = "monai.networks.nets" if public else kind.__module__
    return {TARGET: f"{package}.{kind.__name__}", **{name: _plain(value) for name, value in arguments.items()}}


def _plain(value: object) -> Any:
    """Return an argument as JSON data."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    if isinstance(value, type) and value.__module__.startswith("torch.nn."):
        return {TARGET: f"torch.nn.{value.__name__}", "_mode_": "callable"}
    raise TypeError(repr(value))
