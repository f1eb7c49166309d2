"""The state that a run of MONAI's engines needs to resume, besides the weights, and what of it cannot be saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ignite.engine import Engine
from ignite.metrics import Metric
from monai.engines import Evaluator
from torch import nn, optim
from torch.utils.data import DataLoader

from candy_monai.errors import BadInputError
from candy_monai.experiment.serialization import plain, restored
from candy_monai.experiment.state import TrainerState
from candy_monai.handlers.engines import handler_objects, held_by, network_of
from candy_monai.nn.ema import ExponentialMovingAverage
from candy_monai.training.loaders import length, why_not_exact

_BEST = ("best_metric", "best_metric_epoch")


class EngineParts:
    """The parts of a trainer's run that have a state.

    Its ``own`` are those in the user's ``save_dict`` and those that the engines' handlers use: learning-rate schedules,
    the best scores of MONAI's ``CheckpointSaver``, the patience of its ``EarlyStopHandler``.
    """

    def __init__(
        self,
        engine: Any,
        validators: Sequence[Evaluator],
        save_dict: Mapping[str, Any],
        ema: ExponentialMovingAverage | None,
    ) -> None:
        self._engine = engine
        self._validators = list(validators)
        self._ema = ema
        for name, part in save_dict.items():
            if not _has_state(part):
                raise BadInputError(
                    f"save_dict[{name!r}] is a {type(part).__name__}, expected something with state_dict and "
                    "load_state_dict"
                )
        known = [engine, network_of(engine), engine.network, engine.optimizer, engine.loss_function, ema]
        given = {name: part for name, part in save_dict.items() if not any(part is other for other in known)}
        self._given = given
        self.own: dict[str, Any] = dict(given)
        for owner in (engine, *self._validators):
            for name, part in _parts_of_handlers(owner):
                if not any(part is other for other in (*known, *self.own.values())):
                    self.own[_free_name(name, self.own)] = part

    def state(
        self,
        *,
        processes: Sequence[Mapping[str, Any]],
        num_epochs: int,
        first_epoch: int,
        example: Sequence[int] | None,
    ) -> TrainerState:
        """Return the states of all parts; raise if one of the user's ``save_dict`` cannot be saved.

        ``processes`` holds the random generators of each process, ``example`` the shape ``(C, *spatial)`` of an image.
        """
        engine, loss = self._engine, self._engine.loss_function
        own = {}
        for name, part in list(self.own.items()):
            try:
                own[name] = plain(part.state_dict(), f"the state of {name}", rebuilt=True)
            except Exception:  # a part that was found may be of any kind; a part that was requested has to be saved
                if name in self._given:
                    raise
                del self.own[name]
        counts = {"iteration": engine.state.iteration, "epoch": engine.state.epoch, "first_epoch": first_epoch}
        best = [_best_of(one) for one in (engine, *self._validators)]
        ema = None if self._ema is None else self._ema.state_dict()
        return TrainerState(
            optimizer=plain(engine.optimizer.state_dict(), "the optimizer's state", rebuilt=True),
            schedule_epochs=num_epochs,
            scaler={} if engine.scaler is None else engine.scaler.state_dict(),
            criterion=plain(loss.state_dict(), "the loss's state", rebuilt=True) if _has_state(loss) else {},
            extra={"counts": counts, "best": best, "own": own, "example_shape": example},
            ema=None if ema is None else {name: value for name, value in ema.items() if not name.startswith("module.")},
            processes=processes,
        )

    def load(self, state: TrainerState) -> list[str]:
        """Load the states of all parts, which must exist, and return the names of those that were not saved."""
        engine, loss, extra = self._engine, self._engine.loss_function, state.extra
        engine.optimizer.load_state_dict(restored(state.optimizer, engine.optimizer.state_dict()))
        if engine.scaler is not None and state.scaler:
            engine.scaler.load_state_dict(dict(state.scaler))
        if _has_state(loss):
            loss.load_state_dict(restored(state.criterion, loss.state_dict()))
        if self._ema is not None and state.ema is not None:
            self._ema.load_state_dict(state.ema, strict=False)
        if missing := sorted(set(extra["own"]) - set(self.own)):
            raise BadInputError(f"saved parts are missing now: {', '.join(missing)}")
        for name, saved in extra["own"].items():
            part = self.own[name]
            part.load_state_dict(restored(saved, part.state_dict()))
        engine.state.iteration, engine.state.epoch = extra["counts"]["iteration"], extra["counts"]["epoch"]
        for one, best in zip((engine, *self._validators), extra["best"], strict=False):
            for name, value in best.items():
                setattr(one.state, name, value)
        return sorted(set(self.own) - set(extra["own"]))


def why_not_to_the_bit(engine: Any) -> str | None:
    """Return why a resumed run could differ from an uninterrupted one; None if it will not."""
    loader, batches = engine.data_loader, length(engine.data_loader)
    if not isinstance(loader, DataLoader):
        return "the trainer does not read a DataLoader, and the position in its data is not known"
    if (reason := why_not_exact(loader)) is not None:
        return reason
    if batches is not None and engine.state.epoch_length not in (None, batches):
        return (
            f"an epoch has {engine.state.epoch_length} iterations and the loader {batches} batches, so epochs do not "
            "start at its first batch"
        )
    return None


def _best_of(engine: Engine) -> dict[str, Any]:
    values = {name: getattr(engine.state, name, None) for name in _BEST}
    return {name: plain(value, f"state.{name} of an engine") for name, value in values.items() if value is not None}


def _parts_of_handlers(engine: Engine) -> Iterator[tuple[str, Any]]:
    for handler in handler_objects(engine):
        if isinstance(handler, Metric) or type(handler).__module__.startswith("candy_monai."):
            continue
        kind = getattr(handler, "__name__", type(handler).__name__)
        for name, part in (("", handler), *held_by(handler)):
            if _has_state(part) and not isinstance(part, nn.Module | optim.Optimizer | Engine | Metric):
                yield f"{kind}.{name}".rstrip("."), part


def _has_state(part: object) -> bool:
    return not isinstance(part, type) and all(
        callable(getattr(part, name, None)) for name in ("state_dict", "load_state_dict")
    )


def _free_name(name: str, taken: Mapping[str, object]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} {number}"
    return free
