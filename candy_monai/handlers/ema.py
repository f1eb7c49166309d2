"""The moving average of a network's weights in MONAI's engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from monai.engines import Evaluator
from torch import Tensor, nn
from typing_extensions import override

from candy_monai.errors import BadInputError
from candy_monai.handlers.engine_run import TrainerHandler
from candy_monai.handlers.engines import check_is_evaluator, contexts_around, network_of
from candy_monai.handlers.options import RunOptions
from candy_monai.network import plain_network
from candy_monai.nn.ema import ExponentialMovingAverage


class EMAHandler(TrainerHandler):
    """Average the weights of a trainer's network, and evaluate and save the average.

    The average is updated after each step of the optimizer, whatever the trainer's handlers and their order; batches
    whose gradients are accumulated make one step. While an evaluator runs, the network holds the average: metrics are
    those of the average, and the evaluator's handlers save the weights that were scored (``CheckpointSaver`` with
    ``save_key_metric``). Afterwards the network holds exactly the weights that the optimizer continues from, and
    handlers of the trainer save these. To save the average from there, put `average` or the handler into a
    ``save_dict``.

    In a run of several processes each of them needs the handler.

    Args:
        network: The trainer's network.
        decay: The fraction of the average that one step keeps in the long run; see `ExponentialMovingAverage`.
        validator: The evaluator, or several; by default those that the trainer's handlers run.

    Attributes:
        average: A copy of the network that holds the average.

    Raises:
        SettingsError: If ``decay`` is out of range.
        BadInputError: If ``validator`` is not an evaluator, the trainer trains another network, or no evaluator is
            found.

    Example:
        >>> handlers = [ValidationHandler(1, evaluator), EMAHandler(network, decay=0.999)]  # doctest: +SKIP
        >>> trainer = SupervisedTrainer(..., network=network, train_handlers=handlers)  # doctest: +SKIP
    """

    def __init__(
        self,
        network: nn.Module,
        decay: float = 0.999,
        validator: Evaluator | list[Evaluator] | tuple[Evaluator, ...] | None = None,
    ) -> None:
        self._network = plain_network(network)
        self._ema = ExponentialMovingAverage(self._network, decay=decay)
        self._ema.eval()
        given = () if validator is None else validator
        self._validators = list(given) if isinstance(given, list | tuple) else [given]
        for one in self._validators:
            check_is_evaluator(one)
        self._is_averaged = False

    @property
    def average(self) -> nn.Module:
        """The copy of the network that holds the average."""
        return self._ema.module

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of steps in it."""
        return self._ema.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load a saved average to continue from."""
        self._ema.load_state_dict(state, strict=strict)

    @override
    def contribute(self, options: RunOptions) -> None:
        options.ema = self._ema

    @override
    @contextmanager
    def during(self, engine: Any, validators: list[Evaluator]) -> Iterator[None]:
        if network_of(engine) is not self._network:
            raise BadInputError(
                "EMAHandler was given another network than the trainer: pass the same one to both, wrapped or not"
            )
        validators = self._validators or [one for one in validators if self._evaluates(one)]
        if not validators:
            raise BadInputError(
                "EMAHandler found no evaluator of its network, so the average would not be used: add a "
                "ValidationHandler to the trainer, or give the evaluator, EMAHandler(network, validator=...)"
            )
        for one in validators:
            if not self._evaluates(one):
                raise BadInputError("EMAHandler(validator=...) was given an evaluator of another network")
            contexts = contexts_around(one)
            if self._swapped not in contexts:  # stays after training, so that the evaluator still uses the average
                contexts.insert(0, self._swapped)
        hook = engine.optimizer.register_step_post_hook(lambda *_: self._ema.update_parameters(self._network))
        try:
            yield
        finally:
            hook.remove()

    @override
    def begin(self) -> None:
        self._ema.to(next(self._network.parameters()).device)
        if self._ema.num_updates == 0:  # weights may have been loaded into the network since
            self.average.load_state_dict(self._network.state_dict())

    def _evaluates(self, validator: Evaluator) -> bool:
        network = getattr(validator, "network", None)
        return isinstance(network, nn.Module) and plain_network(network) is self._network

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        """Hold the average in the network during a block; its own weights are restored afterwards."""
        if self._is_averaged or self._ema.num_updates == 0:  # before the first step both are equal
            yield
            return
        ours, theirs = _tensors(self._network), _tensors(self.average)
        kept = [tensor.clone() for tensor in ours]
        self._is_averaged = True
        try:
            _copy(ours, theirs)
            yield
        finally:
            _copy(ours, kept)
            self._is_averaged = False


def _tensors(network: nn.Module) -> list[Tensor]:
    return [tensor.detach() for tensor in (*network.parameters(), *network.buffers())]


@torch.no_grad()
def _copy(into: list[Tensor], source: list[Tensor]) -> None:
    for mine, new in zip(into, source, strict=True):
        mine.copy_(new)
