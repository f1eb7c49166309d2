"""Earlier names of arguments and attributes, which go on working for one release."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

from typing_extensions import deprecated

Function = TypeVar("Function", bound=Callable[..., Any])

_PASSED_OVER = ("candy_monai", "candy_monai_bundles", "abc")
"""Packages whose frames are not the user's; ``abc`` has those that make a class."""


def renamed_arguments(**new_names: str) -> Callable[[Function], Function]:
    """Return a decorator by which a function takes keywords under their earlier names too, with a warning.

    Args:
        **new_names: Earlier name to new name.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def with_new_names(*args: Any, **kwargs: Any) -> Any:
            for earlier in [name for name in new_names if name in kwargs]:
                new = new_names[earlier]
                if new in kwargs:
                    raise TypeError(f"{earlier} is the earlier name of {new}: give {new} alone")
                warn_of_new_name(earlier, new)
                kwargs[new] = kwargs.pop(earlier)
            return function(*args, **kwargs)

        return cast(Function, with_new_names)

    return decorate


def warn_of_new_name(earlier: str, new: str) -> None:
    """Warn whoever called the function that calls this one."""
    warnings.warn(
        f"{earlier} is now called {new}; the earlier name will be removed in the next release",
        DeprecationWarning,
        stacklevel=3,
    )


def warn_user(text: str) -> None:
    """Warn of what the nearest code outside of this package does: Python shows a warning of one's own script alone."""
    frame, stacklevel = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_OVER:
        frame, stacklevel = frame.f_back, stacklevel + 1
    warnings.warn(text, DeprecationWarning, stacklevel=stacklevel)


def earlier_name(earlier: str, method: Function) -> Function:
    """Return a method under its earlier name, by which it warns; a private method is said to go.

    Args:
        earlier: The earlier name.
        method: The method; a subclass that overrides it is obeyed.
    """
    new = method.__name__

    @deprecated(f"it is {new} now", category=None)  # for documentation: it warns below
    @functools.wraps(method)
    def under_earlier_name(self: Any, *args: Any, **kwargs: Any) -> Any:
        if new.startswith("_"):
            text = f"{earlier} is of no use to callers and will be removed in the next release"
            warnings.warn(text, DeprecationWarning, stacklevel=2)
        else:
            warn_of_new_name(earlier, new)
        return getattr(self, new)(*args, **kwargs)

    return cast(Function, under_earlier_name)


class _EarlierAttribute(property):
    __deprecated__ = "it has another name now"


def earlier_attribute(earlier: str, new: str) -> property:
    """Return a property that gives an attribute under its earlier name, with a warning."""

    def under_earlier_name(self: Any) -> Any:
        warn_of_new_name(earlier, new)
        return getattr(self, new)

    return _EarlierAttribute(under_earlier_name, doc=f"The earlier name of ``{new}``.")
