"""A network as MONAI's configuration language defines it: which of MONAI's classes, with which arguments.

Networks do not keep their arguments, so these are written down while the network is built.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from monai.networks import nets
from torch import nn

from candy_monai.experiment.description import as_json

TARGET = "_target_"


class Definitions:
    """What was written down, by network."""

    def __init__(self) -> None:
        self._of: dict[nn.Module, dict[str, Any]] = {}

    def of(self, network: nn.Module) -> dict[str, Any] | None:
        """Return a network's definition, of plain values; None if it is no network of MONAI's."""
        return self._of.get(network)

    def add(self, network: nn.Module, arguments: dict[str, Any]) -> None:
        """Keep the arguments of a network."""
        self._of[network] = {TARGET: f"monai.networks.nets.{type(network).__name__}", **as_json(arguments)}


@contextmanager
def written_down() -> Iterator[Definitions]:
    """Write down the arguments of every network of MONAI's that is built within a block."""
    found = Definitions()
    kinds = {kind for kind in vars(nets).values() if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    originals = {kind: vars(kind)["__init__"] for kind in kinds if "__init__" in vars(kind)}
    for kind, original in originals.items():
        kind.__init__ = _recording(kind, original, found)  # type: ignore[method-assign]
    try:
        yield found
    finally:
        for kind, original in originals.items():
            kind.__init__ = original  # type: ignore[method-assign]


def _recording(kind: type[nn.Module], original: Callable[..., None], found: Definitions) -> Callable[..., None]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if type(self) is kind:  # not a base class's part of a subclass
            bound = signature.bind(self, *args, **kwargs).arguments
            _, *names = bound
            found.add(self, {name: bound[name] for name in names})

    return init
