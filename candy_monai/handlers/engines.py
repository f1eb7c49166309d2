"""Access MONAI's engines from outside: contexts around their runs, their handlers, their networks."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from ignite.engine import Engine
from ignite.metrics import Metric
from monai.engines import Evaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from torch import nn

from candy_monai.errors import BadInputError
from candy_monai.network import plain_network

RunContext = Callable[[], AbstractContextManager[None]]

_CONTEXTS = "_candy_monai_contexts"


def contexts_around(engine: Any) -> list[RunContext]:
    """Return the list of contexts around each run of an engine; it may be modified.

    An engine reports an exception only to its handlers up to the first that raises it again, and some ways to end are
    not reported at all. A context is always exited, regardless of the handlers and their order.
    """
    known: list[RunContext] | None = vars(engine).get(_CONTEXTS)
    if known is not None:
        return known
    contexts: list[RunContext] = []
    run = engine.run

    @functools.wraps(run)
    def surrounded(*arguments: Any, **keywords: Any) -> Any:
        with ExitStack() as stack:
            for context in contexts.copy():  # a run may change them
                stack.enter_context(context())
            return run(*arguments, **keywords)

    engine.run, vars(engine)[_CONTEXTS] = surrounded, contexts
    return contexts


@contextmanager
def handling_last(engine: Engine, handlers: Mapping[Any, Callable[..., None]]) -> Iterator[None]:
    """Attach event handlers for a block, after all others that the engine has by then."""
    attached = [engine.add_event_handler(event, handler) for event, handler in handlers.items()]
    try:
        yield
    finally:
        for one in attached:
            one.remove()


def handler_objects(engine: Engine) -> list[object]:
    """Return the handlers of an engine's events, each once: the objects that methods belong to, and functions."""
    found: list[object] = []
    for registered in engine._event_handlers.values():
        for handler, *_ in registered:
            if (filtered := getattr(handler, "_parent", None)) is not None:  # of a filtered event, such as "every=2"
                handler = filtered()
            owner = getattr(handler, "__self__", handler)
            if owner is not None and not any(owner is other for other in found):
                found.append(owner)
    return found


def held_by(handler: object) -> Iterator[tuple[str, object]]:
    """Yield what a handler uses, by name: its attributes, or the globals and enclosed variables of a function."""
    if isinstance(handler, types.FunctionType):
        around = inspect.getclosurevars(handler)
        yield from {**around.globals, **around.nonlocals}.items()
    else:
        yield from getattr(handler, "__dict__", {}).items()


def validators_of(engine: Engine) -> list[Evaluator]:
    """Return the evaluators that a trainer's handlers run, in order, as far as they can be found."""
    found: list[Evaluator] = []
    for handler in handler_objects(engine):
        if isinstance(handler, ValidationHandler):
            candidates = [handler.validator]
        elif isinstance(handler, types.FunctionType):
            candidates = [value for _, value in held_by(handler)]
        else:
            continue
        found += [one for one in candidates if isinstance(one, Evaluator) and one not in found]
    return found


def metric_names(engine: Engine) -> list[str]:
    """Return the names of the metrics that are attached to an engine."""
    return [
        str(arguments[-1])
        for registered in engine._event_handlers.values()
        for handler, arguments, _ in registered
        if isinstance(getattr(handler, "__self__", None), Metric) and handler.__name__ == "completed" and arguments
    ]


def check_is_trainer(engine: object, handler: object) -> None:
    """Raise if the engine that a handler is attached to is not a trainer of MONAI."""
    name = type(handler).__name__
    if isinstance(engine, Evaluator):
        raise BadInputError(
            f"{name} was attached to a {type(engine).__name__}: put it into the trainer's train_handlers, where it "
            f"finds the evaluator (or {name}(validator=...) says which)"
        )
    if not isinstance(engine, SupervisedTrainer):
        raise BadInputError(f"{name} was attached to a {type(engine).__name__}, expected MONAI's SupervisedTrainer")


def check_is_evaluator(validator: object) -> None:
    """Raise if the ``validator=`` of a handler is not an evaluator of MONAI."""
    if not isinstance(validator, Evaluator):
        raise BadInputError(
            "validator must be one of MONAI's evaluators, such as a SupervisedEvaluator, got "
            f"{type(validator).__name__}"
        )


def network_of(engine: Any) -> nn.Module:
    """Return the user's network of a trainer or evaluator, without PyTorch's wrappers; raise if it has none."""
    network = getattr(engine, "network", None)
    if not isinstance(network, nn.Module):
        raise BadInputError(
            f"the {type(engine).__name__} has no network of its own, expected MONAI's SupervisedTrainer or "
            "SupervisedEvaluator"
        )
    return plain_network(network)
