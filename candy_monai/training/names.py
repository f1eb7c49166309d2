"""Names that a trainer's own code uses, kept from being set to something else by a subclass. Sets nothing."""

from __future__ import annotations

import inspect
from types import FunctionType

from candy_monai.errors import SettingsError

_PACKAGE = "candy_monai."
_DOCUMENTED = ("_dataloader", "_validation_dataloader")
"""What users may read, and set."""
_OWN = "_names_of_its_own"
"""The attribute of a trainer that holds the private names that its own code has set."""


def check_class(cls: type) -> None:
    """Refuse a class that gives one of a trainer's methods' names to something else.

    Raises:
        SettingsError: If a class attribute that cannot be called has the name of such a method.
    """
    for name, value in vars(cls).items():
        owner = _owner_of_method(cls, name)
        if owner is None or isinstance(vars(owner)[name], property):  # a property may be replaced by a plain value
            continue
        if not callable(value) and not hasattr(value, "__get__"):
            raise SettingsError(_message(f"{cls.__name__}.{name} is {_short(value)}", name, owner))


def check_attribute(trainer: object, name: str, value: object, *, module: str) -> None:
    """Refuse an attribute that has the name of a trainer's method, or of an attribute that trainers use themselves.

    Args:
        trainer: The trainer.
        name: The attribute's name.
        value: What it is about to be set to; something that can be called may take the place of a method.
        module: The name of the module that sets it.

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
    if is_private and name in own:
        raise SettingsError(_message(f"{cls.__name__} sets self.{name} to {_short(value)}", name, None))
    owner = _owner_of_method(cls, name)
    if owner is None:
        return
    if isinstance(vars(owner)[name], property):
        present = inspect.getattr_static(cls, name)
        # A class attribute in the place of a property is an attribute like any other.
        collides = isinstance(present, property) and present.fset is None
    else:
        collides = not callable(value)
    if collides:
        raise SettingsError(_message(f"{cls.__name__} sets self.{name} to {_short(value)}", name, owner))


def _owner_of_method(cls: type, name: str) -> type | None:
    """Return the class of this package that has a method or a property of this name; None if none has."""
    for base in cls.__mro__:
        if base.__module__.startswith(_PACKAGE) and isinstance(
            vars(base).get(name), FunctionType | classmethod | staticmethod | property
        ):
            return base
    return None


def _message(what: str, name: str, owner: type | None) -> str:
    used = "an attribute that trainers use themselves"
    if owner is not None:
        kind = "property" if isinstance(vars(owner)[name], property) else "method"
        used = f"a {kind} of {owner.__name__}"
    advice = f"call your attribute something else, for example my_{name.strip('_')}"
    if owner is not None and kind == "property":
        advice = f"give it in the class, `{name} = ...`, or override the property"
    return f"{what}, but {name!r} is {used}: {advice}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"a {type(value).__name__}"
