"""The runs of one trainer, in which its handlers take part."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import Evaluator
from torch import distributed

from candy_monai.errors import BadInputError, SettingsError
from candy_monai.handlers.engines import check_is_trainer, contexts_around, handling_last, network_of, validators_of
from candy_monai.handlers.options import RunOptions
from candy_monai.handlers.recorder import Recorder
from candy_monai.processes import Processes

MEETING_S = 120.0
"""Maximum time for the processes of a run to reach its start."""

_RUN = "_candy_monai_run"


class TrainerHandler:
    """A handler of a trainer's runs. What several handlers need from each other is collected when a run begins."""

    may_be_several = False

    def attach(self, engine: Any) -> None:
        """Check the trainer, and add this handler to its runs.

        Args:
            engine: MONAI's ``SupervisedTrainer``.

        Raises:
            BadInputError: If it is another engine, or already has such a handler.
        """
        EngineRun.of(engine, self).add(self)

    def contribute(self, options: RunOptions) -> None:
        """Add the options of this handler to those that the handlers of a run have in common."""

    def during(self, engine: Any, validators: list[Evaluator]) -> AbstractContextManager[None]:
        """Return a context in which a run takes place, given the evaluators that the trainer runs."""
        return nullcontext()

    def begin(self) -> None:
        """Begin a run, after everything that other handlers do at its start."""


class EngineRun:
    """The handlers of one trainer, and their actions around each of its runs."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._handlers: list[TrainerHandler] = []
        self._recorder: Recorder | None = None
        contexts_around(engine).append(self._lasting)

    @classmethod
    def of(cls, engine: Any, handler: object) -> EngineRun:
        """Return the object of a trainer; raise if it is not a trainer of MONAI."""
        check_is_trainer(engine, handler)
        run: EngineRun | None = vars(engine).get(_RUN)
        if run is None:
            run = vars(engine)[_RUN] = cls(engine)
        return run

    def add(self, handler: TrainerHandler) -> None:
        """Add a handler; raise if there already is one of its kind."""
        if handler in self._handlers:
            return
        if not handler.may_be_several and any(type(handler) is type(other) for other in self._handlers):
            raise BadInputError(f"the trainer has two handlers of the class {type(handler).__name__}: pass only one")
        self._handlers.append(handler)

    @contextmanager
    def _lasting(self) -> Iterator[None]:
        engine = self._engine
        network_of(engine)
        validators, options = validators_of(engine), RunOptions()
        for handler in self._handlers:
            handler.contribute(options)
        with ExitStack() as stack:
            processes = stack.enter_context(connected_processes())
            for handler in self._handlers:
                stack.enter_context(handler.during(engine, validators))
            if options.records:
                self._recorder = Recorder(engine, options, validators, processes, before=self._recorder)
                stack.enter_context(self._recorder.lasting())
                stack.enter_context(handling_last(engine, self._recorder.handlers()))
            stack.enter_context(handling_last(engine, {Events.STARTED: self._begin}))
            yield

    def _begin(self) -> None:
        for handler in self._handlers:
            handler.begin()
        if self._recorder is not None:
            self._recorder.begin()


@contextmanager
def connected_processes() -> Iterator[Processes]:
    """Connect the processes that train together during a block; raise if not all of them take part."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        yield Processes()
        return
    processes = Processes(rank=distributed.get_rank(), world_size=distributed.get_world_size())
    try:
        meeting = distributed.new_group(backend="gloo", timeout=timedelta(seconds=MEETING_S))
        distributed.monitored_barrier(meeting, timeout=timedelta(seconds=MEETING_S))
        distributed.destroy_process_group(meeting)
    except RuntimeError as error:
        raise SettingsError(
            f"not all of the {processes.world_size} processes have reached the start of the run with handlers of "
            f"candy_monai within {MEETING_S:.0f} s: put the same handlers into the train_handlers of every process; "
            "only the first process writes"
        ) from error
    with processes.connected(torch.device("cpu")):
        yield processes
