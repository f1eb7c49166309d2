"""Find dashboards by their names on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from candy_monai.errors import BadInputError, did_you_mean
from candy_monai.frontends import FRONTENDS
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.hybrid import create_hybrid_frontend


def choose_frontend(names: Sequence[str | type[Frontend]]) -> type[Frontend] | None:
    """Return the class of the dashboard of this name, one class for several, None for no name."""
    if len(set(names)) < len(names):
        raise BadInputError(f"--frontend is given the same name twice: {', '.join(map(str, names))}")
    classes = [find_frontend(name) for name in names]
    return create_hybrid_frontend(*classes) if len(classes) > 1 else next(iter(classes), None)


def known_frontends() -> str:
    """Return the names that `find_frontend` knows, for messages."""
    return f"{', '.join(FRONTENDS)}, or FILE:Class for one of your own"


def find_frontend(name: str | type[Frontend], *, option: str = "--frontend") -> type[Frontend]:
    """Return the class of the dashboard of a name or of ``FILE:Class``, whose file is executed; or the class."""
    if not isinstance(name, str):
        found: object = name
    elif name in FRONTENDS:
        module, _, attribute = FRONTENDS[name].partition(":")
        found = getattr(import_module(module), attribute)
    elif ":" in name:
        from candy_monai.registry import class_from_file

        found = class_from_file(name, option=option)
    else:
        hint = did_you_mean(name.lower(), FRONTENDS)
        raise BadInputError(f"{option} {name!r} is unknown.{hint} Known: {known_frontends()}")
    if not isinstance(found, type) or not issubclass(found, Frontend):
        if isinstance(name, str):
            raise BadInputError(f"{option} {name}: this is not a subclass of Frontend")
        raise BadInputError(
            f"{option} was given {name!r}, expected a subclass of Frontend, or a name: {known_frontends()}"
        )
    return found
