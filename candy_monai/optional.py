"""Import an optional package, or report which extra installs it. Knows no package by itself."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from candy_monai.errors import MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import an optional module, which an extra of candy-monai installs.

    ``purpose`` is the use of the module, as the end of a sentence: ``"read .mha files"``.

    Raises:
        MissingExtraError: If it is not installed; the message explains how to install it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtraError(
            f'{package} is needed to {purpose} and is not installed: pip install "candy-monai[{extra}]"'
        ) from error
