from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from functools import cached_property
from importlib import import_module
from types import ModuleType

import candy_monai
from candy_monai import handlers


def test_the_public_interface_changes_only_on_purpose(assert_golden: Callable[[str, str], None]):
    assert_golden("api.txt", "".join(f"{line}\n" for name in sorted(candy_monai.__all__) for line in described(name)))


def test_the_interface_of_the_handlers_changes_only_on_purpose(assert_golden: Callable[[str, str], None]):
    names = sorted(handlers.__all__)
    assert_golden("handlers.txt", "".join(f"{line}\n" for name in names for line in described(name, handlers)))


def described(name: str, package: ModuleType = candy_monai) -> Iterator[str]:
    """Describe a public name: its kind and signature and, of a class, each public member of ours."""
    public = getattr(package, name)
    if inspect.isfunction(public):
        yield f"def {name}{signature(public)}"
    elif inspect.isclass(public) and public.__module__.startswith("candy_monai."):
        bases = ", ".join(base.__name__ for base in public.__bases__)
        yield f"class {name}({bases}){': ' + signature(public) if takes_arguments(public) else ''}"
        for member in sorted(members(public)):
            yield f"    {name}.{member}{described_member(public, member)}"
    else:
        yield assignment(name)


def takes_arguments(public: type) -> bool:
    """Exceptions that add no constructor of their own have no signature worth a line."""
    return not issubclass(public, BaseException) or "__init__" in vars(public)


def members(public: type) -> set[str]:
    """Name the public members that a class has from this package, inherited ones included."""
    return {
        member
        for owner in public.__mro__
        if owner.__module__.startswith("candy_monai.")
        for member in vars(owner)
        if not member.startswith("_")
    }


def described_member(public: type, member: str) -> str:
    value = inspect.getattr_static(public, member)
    if isinstance(value, property | cached_property):
        return ": property"
    if isinstance(value, staticmethod | classmethod):
        return f"{signature(value.__func__)}  # {type(value).__name__}"
    if inspect.isfunction(value):
        return signature(value)
    return ": attribute"  # its default value is no part of the interface


def assignment(name: str) -> str:
    """Return the line that defines an alias: its value would differ between versions of Python and PyTorch."""
    module = import_module(f"candy_monai.{candy_monai._MODULE_OF[name]}")
    for statement in ast.parse(inspect.getsource(module)).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return ast.unparse(statement)
    raise AssertionError(f"{name} is neither a class nor a function nor assigned in {module.__name__}")


class Verbatim:
    """An annotation that is shown as it is written, not as the text that Python keeps of it."""

    def __init__(self, annotation: object) -> None:
        self._text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)

    def __repr__(self) -> str:
        return self._text


def signature(function: Callable[..., object]) -> str:
    """Return the signature with annotations as they are written in the source."""
    found = inspect.signature(function)
    parameters = [
        parameter
        if parameter.annotation is parameter.empty
        else parameter.replace(annotation=Verbatim(parameter.annotation))
        for parameter in found.parameters.values()
    ]
    result = found.return_annotation
    return str(
        found.replace(parameters=parameters, return_annotation=result if result is found.empty else Verbatim(result))
    )
