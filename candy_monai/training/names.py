"""Check that a subclass does not reuse names that trainers need for methods and attributes of their own."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from types import FunctionType

from candy_monai.errors import WARNING, SettingsError

_PACKAGE = "candy_monai."
_LIBRARY = ("candy_monai.training.", "candy_monai_bundles.")
_LOOP = ("step", "train_epoch")
"""Methods of `Trainer` itself that a subclass may override; its other methods are called."""
_SIMILAR = 0.85
"""The cutoff for `difflib`: it finds names with one or two wrong letters, but not names that are merely related."""
_DOCUMENTED = ("_dataloader", "_validation_dataloader")
"""Private names that users may read and set."""
_OWN = "_names_of_its_own"
"""The attribute of a trainer that holds the private names set by the library."""
_FORMER = {
    "train_batch": "override backward, or train_epoch",
    "validate": "override validate_case, or train_epoch for what is done once an epoch",
    "prepare_batch": "change images and labels in backward",
    "network_input": "change images in backward",
    "check_labels": "check labels in backward",
    "end_schedule_in": "give the schedule a method end_in(num_steps)",
    "predicted_ids": "override save_preview and score_case",
    "label_fill": "set ignore_index",
    "build_toolbox": "override the build_* method of the part",
}
"""Methods of earlier versions that are no longer called, and their replacements."""


def check_class(cls: type) -> None:
    """Raise if a class sets a method's name to another kind of value, or overrides a method that is no longer called.

    Raises:
        SettingsError: If it does.
    """
    for name, value in vars(cls).items():
        owner = _owner_of_method(cls, name)
        if owner is None:
            _check_former(f"{cls.__name__}.{name}", name, value)
        elif not isinstance(vars(owner)[name], property) and not callable(value) and not hasattr(value, "__get__"):
            raise SettingsError(_message(f"{cls.__name__}.{name} is {_short(value)}", name, owner))


def check_attribute(trainer: object, name: str, value: object, *, module: str) -> None:
    """Raise if an attribute has the name of a trainer's method, or of an attribute that trainers use themselves.

    A callable may replace a method; ``module`` is the name of the module that sets the attribute.

    Raises:
        SettingsError: If the names collide.
    """
    cls, own = type(trainer), vars(trainer).setdefault(_OWN, {_OWN})
    is_private = name.startswith("_") and name not in _DOCUMENTED
    if module.startswith(_PACKAGE):
        if is_private and name in vars(trainer) and name not in own:
            raise SettingsError(_message(f"{cls.__name__} sets self.{name}", name, None))
        own.add(name)
        return
    what = f"{cls.__name__} sets self.{name} to {_short(value)}"
    if is_private and name in own:
        raise SettingsError(_message(what, name, None))
    _check_former(what, name, value)
    owner = _owner_of_method(cls, name)
    if owner is None:
        return
    if isinstance(vars(owner)[name], property):
        present = inspect.getattr_static(cls, name)
        # A class attribute that replaces a property is an ordinary attribute.
        collides = isinstance(present, property) and present.fset is None
    else:
        collides = not callable(value)
    if collides:
        raise SettingsError(_message(what, name, owner))


def similar_names(trainer: object) -> Iterator[str]:
    """Yield a log message for each unused name of a subclass that is similar to a name to override."""
    known, own = set(_LOOP), list(vars(trainer))
    for base in type(trainer).__mro__:
        if not base.__module__.startswith(_LIBRARY):
            own += vars(base) if base.__module__ != "builtins" else ()
        elif base.__name__ != "Trainer" and not base.__module__.endswith(".earlier"):
            known.update(vars(base))
    known = {name for name in known if not name.startswith("_")}
    for name in dict.fromkeys(own):
        if name.startswith("_") or _is_of_library(type(trainer), name):
            continue
        is_method = _is_method(trainer, name)
        alike = sorted(other for other in known if _is_method(trainer, other) == is_method)
        if close := difflib.get_close_matches(name, alike, n=1, cutoff=_SIMILAR):
            yield f"{WARNING}candy_monai does not use {type(trainer).__name__}.{name}. Did you mean {close[0]!r}?"


def _is_method(trainer: object, name: str) -> bool:
    return callable(inspect.getattr_static(trainer, name))


def _is_of_library(cls: type, name: str) -> bool:
    """Return whether a class of this package or its bundles has an attribute of this name."""
    bases = (base for base in cls.__mro__ if base.__module__.startswith((_PACKAGE, "candy_monai_bundles.")))
    return any(name in vars(base) or name in inspect.get_annotations(base) for base in bases)


def _check_former(what: str, name: str, value: object) -> None:
    if name in _FORMER and (callable(value) or name == "label_fill"):
        raise SettingsError(f"{what}, which is no longer used: {_FORMER[name]}")


def _owner_of_method(cls: type, name: str) -> type | None:
    """Return the class of this package that has a method or a property of this name; None if none has."""
    for base in cls.__mro__:
        if base.__module__.startswith(_PACKAGE) and isinstance(
            vars(base).get(name), FunctionType | classmethod | staticmethod | property
        ):
            return base
    return None


def _message(what: str, name: str, owner: type | None) -> str:
    used, advice = "an attribute that trainers use themselves", ""
    if owner is not None:
        is_property = isinstance(vars(owner)[name], property)
        used = f"a {'property' if is_property else 'method'} of {owner.__name__}"
        advice = f"give it in the class, `{name} = ...`, or override the property" if is_property else ""
    return f"{what}, but {name!r} is {used}: " + (
        advice or f"call your attribute something else, for example my_{name.strip('_')}"
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
