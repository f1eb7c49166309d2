"""Find random generators in the user's own objects, and save and restore their states."""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
"""Every kind of generator of PyTorch, NumPy, MONAI and Python."""

_MOST_OBJECTS = 200_000
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_GLOBAL = (torch.default_generator, np.random.mtrand._rand, random._inst)
"""Saved by `candy_monai.seeding`."""
_LEAVES = (str, bytes, int, float, complex, type(None), Tensor, np.ndarray, type, types.ModuleType, random.SystemRandom)


class OwnGenerators:
    """Generators by the place where they were found, such as ``loader.generator`` or ``trainer.rng``."""

    def __init__(self, found: Mapping[str, Generator] | None = None) -> None:
        self._found = dict(found or {})

    @classmethod
    def of(cls, **parts: object) -> Self:
        """Find the generators in attributes, lists and dictionaries of some objects, recursively.

        The names of the objects begin their generators' places. Generators that only a function accesses, such as a
        global variable or one in a lambda's closure, are not found.
        """
        found: dict[str, Generator] = {}
        for place, generator in _walk(parts):
            found.setdefault(place, generator)
        return cls(found)

    @property
    def places(self) -> tuple[str, ...]:
        """The places of the generators."""
        return tuple(self._found)

    def states(self) -> dict[str, Any]:
        """Return the state of every generator, as plain values and tensors that load with ``weights_only=True``."""
        return {place: _state_of(generator) for place, generator in self._found.items()}

    def restore(self, states: Mapping[str, Any]) -> None:
        """Restore generators to the states of their places; those without a state are left unchanged."""
        for place, generator in self._found.items():
            if place in states:
                _restore(generator, states[place])


def _walk(parts: Mapping[str, object]) -> Iterator[tuple[str, Generator]]:
    """Yield each generator once, in the order of the objects, breadth first."""
    waiting, seen = list(parts.items()), {id(generator) for generator in _GLOBAL}
    for place, value in waiting:  # grows meanwhile, and keeps the objects alive whose ids were seen
        if isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, _GENERATORS):
            yield place, value
        elif len(waiting) < _MOST_OBJECTS:
            waiting.extend(_members(place, value))


def _members(place: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((f"{place}.{name}", member) for name, member in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"{place}.{index}", member) for index, member in enumerate(value))
    elif isinstance(value, functools.partial):
        yield from _members(place, (value.func, value.args, value.keywords))
    else:
        members = dict(getattr(value, "__dict__", {}))
        if isinstance(shared := getattr(type(value), "R", None), np.random.RandomState):  # MONAI's, until it is seeded
            members.setdefault("R", shared)
        yield from ((f"{place}.{name}", member) for name, member in members.items())


def _state_of(generator: Generator) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        version, internal, gauss = generator.getstate()
        return [version, torch.tensor(internal, device="cpu"), gauss]
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    return _plain(generator.get_state(legacy=False))


def _restore(generator: Generator, state: Any) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        version, internal, gauss = state
        generator.setstate((version, tuple(map(int, internal)), gauss))
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = _with_arrays(state, generator.bit_generator.state)
    else:
        generator.set_state(_with_arrays(state, generator.get_state(legacy=False)))


def _plain(state: Any) -> Any:
    """Convert NumPy's arrays to tensors, or to lists if tensors have no such type."""
    if isinstance(state, Mapping):
        return {name: _plain(value) for name, value in state.items()}
    if isinstance(state, np.ndarray) and np.can_cast(state.dtype, np.int64):
        return torch.from_numpy(state.astype(np.int64))  # far faster to write than hundreds of keys as a list
    return state.tolist() if isinstance(state, np.ndarray | np.generic) else state


def _with_arrays(state: Any, like: Any) -> Any:
    """Undo `_plain`, given a state of the same kind."""
    if isinstance(like, Mapping):
        return {name: _with_arrays(state[name], value) for name, value in like.items()}
    return np.asarray(state, dtype=like.dtype) if isinstance(like, np.ndarray) else state
