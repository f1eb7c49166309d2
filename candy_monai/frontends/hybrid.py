"""Several dashboards as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from typing_extensions import override

from candy_monai.config import Secret
from candy_monai.errors import SettingsError
from candy_monai.frontends.base import Frontend


def create_hybrid_frontend(*frontends: type[Frontend] | Frontend) -> type[Frontend]:
    """Build one frontend class from several, each of which receives all events.

    In a run each part has its own thread and count of failures, so that one that hangs or fails does not affect the
    others.

    Args:
        frontends: One or more classes or instances of frontends.

    Returns:
        A class for `Trainer.set_frontend`. Its constructor creates every part that was given as a class, with the
        user's secrets.

    Raises:
        SettingsError: If no frontend is given, or something that is not a frontend.
    """
    if not frontends:
        raise SettingsError("create_hybrid_frontend() got no frontend: give at least one")
    for part in frontends:
        if not (issubclass(part, Frontend) if isinstance(part, type) else isinstance(part, Frontend)):
            raise SettingsError(f"create_hybrid_frontend() takes frontends or classes of them, got {part!r}")
    classes = [part if isinstance(part, type) else type(part) for part in frontends]
    name = "And".join(cls.__name__.removesuffix("Frontend") for cls in classes)
    return type(f"{name}Frontend", (_Hybrid,), {"_given": frontends, "__module__": __name__})


def _passed_on(name: str) -> Callable[..., None]:
    """Return a callback that calls the callback of this name of each part."""

    def call(hybrid: Frontend, *facts: Any, **named_facts: Any) -> None:
        for part in hybrid.parts():
            try:  # what one part does to the metrics stays with it
                getattr(part, name)(*map(_copied, facts), **{key: _copied(fact) for key, fact in named_facts.items()})
            except Exception as error:
                hybrid.log(f"{type(part).__name__} failed: {type(error).__name__}: {error}")

    return call


def _copied(fact: Any) -> Any:
    return {name: list(values) for name, values in fact.items()} if isinstance(fact, dict) else fact


class _Hybrid(Frontend):
    """Passes every callback to each part; the failure of one is logged, and the others are still called."""

    _given: ClassVar[tuple[type[Frontend] | Frontend, ...]]

    def __init__(self, secrets: Mapping[str, Secret]) -> None:
        super().__init__(secrets)
        self._parts = tuple(part(self._secrets) if isinstance(part, type) else part for part in self._given)

    @override
    def parts(self) -> tuple[Frontend, ...]:
        return tuple(inner for part in self._parts for inner in part.parts())

    @override
    def log_to(self, write: Callable[[str], None]) -> None:
        super().log_to(write)
        for part in self._parts:
            part.log_to(write)

    on_experiment_created = _passed_on("on_experiment_created")
    on_experiment_updated = _passed_on("on_experiment_updated")
    on_experiment_completed = _passed_on("on_experiment_completed")
    on_experiment_interrupted = _passed_on("on_experiment_interrupted")
    on_event = _passed_on("on_event")
    on_experiment_closed = _passed_on("on_experiment_closed")
