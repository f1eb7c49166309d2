from __future__ import annotations

from contextlib import contextmanager, nullcontext

import pytest
from ignite.engine import Engine, Events
from torch import nn

from candy_monai.errors import BadInputError
from candy_monai.handlers import ExperimentFolderHandler
from candy_monai.handlers.engines import (
    contexts_around,
    handler_objects,
    handling_last,
    metric_names,
    network_of,
    validators_of,
)
from tests.engines import host_script


def test_a_context_surrounds_each_run_also_one_that_fails():
    told = []

    @contextmanager
    def telling():
        told.append("in")
        try:
            yield
        finally:
            told.append("out")

    engine = Engine(lambda _engine, batch: 1 / batch)
    contexts_around(engine).append(telling)
    engine.add_event_handler(Events.STARTED, lambda: told.append("started"))
    with pytest.raises(ZeroDivisionError):
        engine.run([1, 0])
    assert told == ["in", "started", "out"]


def test_a_context_that_was_removed_surrounds_nothing():
    told = []
    engine = Engine(lambda _engine, batch: batch)
    contexts_around(engine).append(telling := (lambda: nullcontext(told.append("in"))))
    contexts_around(engine).remove(telling)
    engine.run([1])
    assert not told


def test_handlers_of_a_block_come_behind_those_before_and_go_with_it():
    engine, told = Engine(lambda _engine, batch: batch), []
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: told.append("first"))
    with handling_last(engine, {Events.EPOCH_COMPLETED: lambda: told.append("last")}):
        engine.run([1], max_epochs=1)
    engine.state.max_epochs = None
    engine.run([1], max_epochs=1)
    assert told == ["first", "last", "first"]


def test_evaluators_and_metrics_are_found_by_their_handlers():
    script = host_script()
    assert validators_of(script.trainer) == [script.evaluator]
    assert metric_names(script.evaluator) == ["val_mean_dice"]
    kinds = {type(handler).__name__ for handler in handler_objects(script.trainer)}
    assert {"LrScheduleHandler", "ValidationHandler"} <= kinds


def test_the_network_is_found_in_pytorchs_wrappers():
    script = host_script()
    script.trainer.network = nn.DataParallel(script.network)
    assert network_of(script.trainer) is script.network
    with pytest.raises(BadInputError, match="no network of its own"):
        network_of(Engine(lambda *_: None))


def test_any_other_engine_is_refused(tmp_path):
    with pytest.raises(BadInputError, match="attached to a Engine, expected MONAI's SupervisedTrainer"):
        ExperimentFolderHandler(tmp_path).attach(Engine(lambda *_: None))
