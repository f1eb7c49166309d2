"""Convert states of any kind to tensors and plain values, which can be loaded without executing code, and back.

PyTorch saves any Python object, but loads few kinds with ``weights_only``. Values of other kinds are written as a
dictionary that names the kind. Values that cannot be written in this way are refused when saving, not when loading.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import pathlib
import sys
import types
import uuid
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from candy_monai.errors import BadInputError

_KIND = "candy_monai kind"
_AS_THEY_ARE = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.device, torch.Size)
_NUMBERS_AND_TEXTS: tuple[Any, ...] = (bool, int, float, complex, str, bytes)
# Python's types of the same values compute in the same way as these; the other NumPy types would not.
_AS_PYTHON = (np.bool_, np.int64, np.float64, np.complex128, np.str_, np.bytes_)
_CODE = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    type,
    np.ufunc,
    weakref.ReferenceType,
    functools.partial,
)
_SEQUENCES = {"set": set, "frozenset": frozenset}
# By kind: the type, the key under which a value's parts are written, a function that returns them, and its inverse.
_VALUES: dict[str, tuple[type, str, Callable[[Any], object], Callable[[Any], object]]] = {
    "datetime": (datetime.datetime, "text", datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, "text", datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, "text", datetime.time.isoformat, datetime.time.fromisoformat),
    "path": (pathlib.Path, "text", str, pathlib.Path),
    "decimal": (decimal.Decimal, "text", str, decimal.Decimal),
    "fraction": (fractions.Fraction, "text", str, fractions.Fraction),
    "uuid": (uuid.UUID, "text", str, uuid.UUID),
    "numpy type": (np.dtype, "text", lambda value: str(value.str), np.dtype),
    "timedelta": (
        datetime.timedelta,
        "numbers",
        lambda value: (value.days, value.seconds, value.microseconds),
        lambda parts: datetime.timedelta(*parts),
    ),
    "range": (range, "numbers", lambda value: (value.start, value.stop, value.step), lambda parts: range(*parts)),
    "slice": (slice, "numbers", lambda value: (value.start, value.stop, value.step), lambda parts: slice(*parts)),
}
_FACTORIES = {kind.__name__: kind for kind in (int, float, str, bool, list, dict, set, tuple, collections.Counter)}
_DICTIONARIES = {kind.__name__: kind for kind in (dict, collections.OrderedDict, collections.Counter)}


def plain(value: object, place: str, *, rebuilt: bool = False) -> Any:
    """Return a state as tensors and plain values, which `restored` converts back.

    Tensors are passed on without a copy.

    Args:
        value: The state.
        place: A description of the state, for messages.
        rebuilt: Whether the state is to be loaded into an object that is built anew. If so, functions and classes,
            which are code and not state, are left out, and objects are written by their attributes.

    Raises:
        BadInputError: If it contains something that cannot be saved; the message says where.
    """
    return _Writing(rebuilt).plain(value, place)


def restored(value: object, like: object = None) -> Any:
    """Return the state that was passed to `plain`.

    Args:
        value: What `plain` returned.
        like: The present state of the object to load into; required if it was written with ``rebuilt``. Its objects
            are placed into the returned state.

    Raises:
        TypeError: If it does not fit ``like``, or names a class that is not part of the program.
    """
    if isinstance(value, dict):
        if _KIND in value:
            return _restored_kind(value, like)
        members = like if isinstance(like, Mapping) else {}
        made = value.copy()
        for name, member in value.items():
            made[name] = restored(member, members.get(name))
        return made
    if type(value) in (list, tuple):
        return type(value)(_restored_members(value, like))  # type: ignore[call-arg]
    return value


class _Writing:
    """Converts one state to plain values."""

    def __init__(self, rebuilt: bool) -> None:
        self._rebuilt = rebuilt
        self._around: set[int] = set()  # containers that contain the present value

    def plain(self, value: object, place: str) -> Any:
        if type(value) in _AS_THEY_ARE:
            return value
        if isinstance(value, Tensor):
            return value if type(value) in (Tensor, nn.Parameter) else value.detach().as_subclass(Tensor)
        if isinstance(value, np.generic | np.ndarray):
            return self._of_numpy(value, place)
        if isinstance(value, enum.Enum):
            return {_KIND: "enum", "class": self._class(value, place), "value": self.plain(value.value, place)}
        for base in _NUMBERS_AND_TEXTS:
            if isinstance(value, base):
                return base(value)
        for name, (base, key, parts, _) in _VALUES.items():
            if isinstance(value, base):
                return {_KIND: name, key: self.plain(parts(value), place)}
        if id(value) in self._around:
            raise BadInputError(f"{place} holds itself, which cannot be saved")
        self._around.add(id(value))
        try:
            return self._container(value, place)
        finally:
            self._around.discard(id(value))

    def _container(self, value: object, place: str) -> Any:
        kind = type(value)
        if kind in (list, tuple):
            return kind(self._members(value, place))
        if kind in (set, frozenset):
            return {_KIND: kind.__name__, "members": self._members(value, place)}
        if kind is collections.deque:
            return {_KIND: "deque", "members": self._members(value, place), "maxlen": value.maxlen}  # type: ignore[attr-defined]
        if isinstance(value, dict):
            return self._dictionary(value, place)
        if isinstance(value, types.MappingProxyType):
            return self._dictionary(dict(value), place)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {_KIND: "named tuple", "class": self._class(value, place), "members": self._members(value, place)}
        if isinstance(value, _CODE):
            return self._as_built(value, place)
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            parts = self.plain({**fields, **getattr(value, "__dict__", {})}, place)
            return {_KIND: "dataclass", "class": self._class(value, place), "parts": parts}
        return self._object(value, place)

    def _members(self, values: Any, place: str) -> list[Any]:
        return [self.plain(member, f"{place}[{index}]") for index, member in enumerate(values)]

    def _dictionary(self, value: dict[Any, Any], place: str) -> dict[Any, Any]:
        kind = type(value)
        factory = None
        if kind is collections.defaultdict:
            factory = getattr(value.default_factory, "__name__", None)  # type: ignore[attr-defined]
            if value.default_factory is not None and _FACTORIES.get(str(factory)) is not value.default_factory:  # type: ignore[attr-defined]
                raise BadInputError(f"{place} is a defaultdict of a function, which cannot be saved: use a dict")
        elif kind not in _DICTIONARIES.values():
            return self._as_built(value, place)
        names = [self.plain(name, f"{place}, key {name!r}") for name in value]
        members = [self.plain(member, f"{place}[{name!r}]") for name, member in value.items()]
        is_simple = _KIND not in value and all(isinstance(name, (*_NUMBERS_AND_TEXTS, type(None))) for name in names)
        if is_simple and kind is not collections.defaultdict:
            made = value.copy()  # an OrderedDict holds more than its items
            made.clear()
            for name, member in zip(names, members, strict=True):
                made[name] = member
            return made
        return {_KIND: "dictionary", "class": kind.__name__, "factory": factory, "names": names, "members": members}

    def _of_numpy(self, value: np.generic | np.ndarray[Any, Any], place: str) -> Any:
        if isinstance(value, np.ndarray):
            return self._array(value, place)
        if isinstance(value, _AS_PYTHON):
            return value.item()
        return {_KIND: "numpy number", "value": self._array(np.asarray(value), place)}

    def _array(self, value: np.ndarray[Any, Any], place: str) -> dict[str, Any]:
        if type(value) not in (np.ndarray, np.memmap):
            raise BadInputError(f"{place} is a {type(value).__name__}, which cannot be saved: use a plain array")
        if value.dtype == object:
            return {_KIND: "array", "shape": value.shape, "members": self._members(value.reshape(-1), place)}
        if value.dtype.names is not None:
            raise BadInputError(f"{place} is an array of records, which cannot be saved: use one array for each field")
        values = torch.from_numpy(np.frombuffer(value.tobytes() or b"\0", dtype=np.uint8).copy())
        return {_KIND: "array", "shape": value.shape, "type": value.dtype.str, "bytes": values}

    def _object(self, value: object, place: str) -> dict[str, Any]:
        if not self._rebuilt:
            return self._as_built(value, place)
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
            return {_KIND: "with a state", "class": name, "state": self.plain(value.state_dict(), place)}  # type: ignore[attr-defined]
        if type(value).__reduce_ex__ is not object.__reduce_ex__ or type(value).__reduce__ is not object.__reduce__:
            return self._as_built(value, place)
        held = vars(value) if hasattr(value, "__dict__") else None
        if held is None or any("__slots__" in vars(base) and vars(base)["__slots__"] for base in type(value).__mro__):
            return self._as_built(value, place)
        parts = {key: self.plain(member, f"{place}.{key}") for key, member in held.items()}
        return {_KIND: "object", "class": name, "parts": parts}

    def _as_built(self, value: object, place: str) -> dict[str, Any]:
        if self._rebuilt and isinstance(value, _CODE):
            return {_KIND: "as built"}
        kind = "function" if isinstance(value, types.FunctionType) else type(value).__name__
        raise BadInputError(
            f"{place} is a {kind}, which cannot be saved in a form that can be loaded safely: keep tensors, arrays "
            "and plain values there, or an object with state_dict and load_state_dict"
        )

    def _class(self, value: object, place: str) -> str:
        kind = type(value)
        name = f"{kind.__module__}:{kind.__qualname__}"
        if _found_class(name) is not kind:
            raise BadInputError(
                f"{place} is a {kind.__qualname__}, which cannot be found again by name: define it in a module"
            )
        return name


def _restored_members(values: Any, like: object = None) -> list[Any]:
    members = like if isinstance(like, list | tuple) else ()
    return [restored(value, members[index] if index < len(members) else None) for index, value in enumerate(values)]


def _restored_kind(value: dict[str, Any], like: object) -> Any:
    kind = value[_KIND]
    if kind in _VALUES:
        _, key, _, make = _VALUES[kind]
        return make(value[key])
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](_restored_members(value["members"]))
    match kind:
        case "deque":
            return collections.deque(_restored_members(value["members"]), value["maxlen"])
        case "dictionary":
            pairs = dict(zip(map(restored, value["names"]), map(restored, value["members"]), strict=True))
            if value["class"] == "defaultdict":
                return collections.defaultdict(_FACTORIES.get(value["factory"]), pairs)
            return _DICTIONARIES[value["class"]](pairs)
        case "array":
            return _restored_array(value)
        case "numpy number":
            return _restored_array(value["value"])[()]
        case "enum":
            return _class_of(value["class"], enum.Enum)(restored(value["value"]))
        case "named tuple":
            return _class_of(value["class"], tuple)._make(_restored_members(value["members"]))
        case "dataclass":
            return _with_parts(_class_of(value["class"], object), restored(value["parts"]))
    return _restored_into(like, value)


def _restored_array(value: dict[str, Any]) -> np.ndarray[Any, Any]:
    shape = tuple(value["shape"])
    if "members" in value:
        made = np.empty(len(value["members"]), dtype=object)
        for index, member in enumerate(_restored_members(value["members"])):
            made[index] = member
        return made.reshape(shape)
    kind = np.dtype(value["type"])
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer(value["bytes"].numpy().tobytes()[:size], dtype=kind).reshape(shape).copy()


def _restored_into(like: Any, value: dict[str, Any]) -> Any:
    """Load the state of an object into the one that was built anew, or leave that unchanged."""
    if value[_KIND] == "as built":
        if like is None:
            raise TypeError("a saved function is missing now")
        return like
    found = f"{type(like).__module__}.{type(like).__qualname__}"
    if found != value["class"]:
        raise TypeError(f"expected a {value['class']}, which was saved, found a {found}")
    if value[_KIND] == "with a state":
        like.load_state_dict(restored(value["state"], like.state_dict()))
    else:
        vars(like).update({name: restored(part, vars(like).get(name)) for name, part in value["parts"].items()})
    return like


def _with_parts(kind: Any, parts: Mapping[str, object]) -> object:
    if not dataclasses.is_dataclass(kind):
        raise TypeError(f"{kind!r} is not a dataclass")
    made: object = object.__new__(kind)  # type: ignore[arg-type]  # it is a class, not an instance
    for name, part in parts.items():
        object.__setattr__(made, name, part)  # works for frozen ones too; executes no code of the class
    return made


def _found_class(name: str) -> object:
    """Return a class by name from a module that is already imported; None if there is none."""
    module, _, path = name.partition(":")
    found: object = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _class_of(name: str, base: type) -> Any:
    found = _found_class(name)
    if not isinstance(found, type) or not issubclass(found, base):
        raise TypeError(f"the saved class {name} is not defined in this program")
    return found
