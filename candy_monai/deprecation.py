"""Earlier names of arguments and attributes, which go on working for one release."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


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
