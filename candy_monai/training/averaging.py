"""Average the gradients of a run's processes, either while they are computed or after a step's passes.

If ``backward`` makes one pass, ``DistributedDataParallel`` reports when a part of the gradients is complete, which is
then sent while the rest is computed. Whether it makes one is determined in the first step and checked in each later
one. Each process keeps its own gradients until all processes know that they can be replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from candy_monai.errors import BadInputError
from candy_monai.network import plain_network
from candy_monai.processes import Processes
from candy_monai.training.early_gradients import Departure, EarlyGradients, PassWatch
from candy_monai.training.gradients import optimized_parameters, trained_parameters
from candy_monai.training.toolbox import TrainerToolbox

_MOST_CHANGES = 5
"""Maximum number of changes of the trained parameters; a trainer that changes them each epoch gains nothing."""
_OTHERS_ARE_TRAINED = "the set of trained parameters has changed"
_FROM_NOW_ON = "Gradients are averaged after the passes of each step: {reason}"


class GradientAverage:
    """Averages the gradients of each step over the processes of a run, and shares their flags.

    A step has no other communication: flags are sent with the gradients. In the first step, which is averaged after its
    passes, each process checks that its last ``backward`` computes each gradient once and does not change it
    afterwards. If this holds in all processes, gradients are sent while they are computed, until a step in any process
    departs from it.

    Args:
        toolbox: Model and optimizer, whose parameters are the same in each process.
        processes: The processes that train together.
        why_not: Why gradients must not be sent while they are computed; None to determine whether they can be.
        log: Called with messages about how gradients are averaged, and why.
    """

    def __init__(
        self,
        toolbox: TrainerToolbox,
        processes: Processes,
        *,
        why_not: str | None = None,
        log: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._toolbox, self._processes, self._log = toolbox, processes, log
        self._early: EarlyGradients | None = None
        self._watch: PassWatch | None = None
        self._why_not = why_not
        self._num_changes = 0
        if why_not is None:
            self._watch = PassWatch(trained_parameters(toolbox))
        else:
            log(_FROM_NOW_ON.format(reason=why_not))

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to send the same parts, on which the rounding of a sum depends."""
        if self._early is None:
            return {"order": None, "why_not": self._why_not}
        return {"order": self._places(self._early.order), "why_not": None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what `state_dict` returned, to average in the same way; all processes call it together."""
        if self._why_not is not None:
            return
        if state["why_not"] is not None:
            self._send_late(state["why_not"])
        elif (places := state["order"]) is not None:
            parameters = self._parameters()
            # Otherwise the first step decides again.
            if all(place < len(parameters) and parameters[place].requires_grad for place in places):
                self._send_early(places)

    def close(self) -> None:
        """Remove the hooks from the parameters."""
        for part in (self._watch, self._early):
            if part is not None:
                part.close()
        self._watch = self._early = None

    @contextmanager
    def passing(self, *, is_last: bool) -> Iterator[None]:
        """Run one call of ``backward`` within a ``with`` block.

        Args:
            is_last: Whether it is the last one before the optimizer steps. Earlier ones send nothing.

        Raises:
            BadInputError: If it reaches a parameter twice while the gradients are being sent.
        """
        if is_last and self._watch is not None:
            self._watch.begin(compares=self._early is None)
            if self._early is not None:
                self._early.begin()
        try:
            yield
        except RuntimeError as error:
            if self._early is not None and "ready only once" in str(error):
                raise BadInputError(
                    "a step made two backward passes, after steps with one pass each, during which gradients are "
                    "sent while they are computed: set _one_pass = False on the trainer to average them after all "
                    "passes"
                ) from error
            raise

    def average(self, flags: Sequence[bool]) -> list[bool]:
        """Replace the gradients by their means over all processes, and return which flags are set in any of them.

        A gradient that is missing in some processes counts as zero there; one that is missing in all stays missing.

        Args:
            flags: The flags of this process; the same number in each process.
        """
        if self._early is None or self._watch is None:
            return self._average_late(flags)
        found = self._watch.departure(self._early.order)
        departure = self._departure(self._early.departure() if found is None else found)
        counts = self._early.send_rest([departure is not None, *flags])
        if counts[0] == 0:
            self._early.take_means()
            return [count > 0 for count in counts[1:]]
        self._early.close()
        self._early = None
        self._settle(self._processes.all_gather(departure))
        return self._average_late(flags)

    def _average_late(self, flags: Sequence[bool]) -> list[bool]:
        watch = self._watch if self._early is None and self._why_not is None else None
        departure = self._departure(watch.departure()) if watch is not None and watch.has_begun else None
        parameters = trained_parameters(self._toolbox)
        own = [parameter.grad is not None for parameter in parameters]
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        means, counts = self._processes.all_reduce_mean(gradients, [departure is not None, *flags, *own])
        num_departed, having = counts[0], counts[1 + len(flags) :]
        torch._foreach_copy_(gradients, means)
        for parameter, gradient, count in zip(parameters, gradients, having, strict=True):
            parameter.grad = gradient if count else None
        if watch is not None and watch.has_begun:
            self._decide(watch, departure, num_departed, parameters, having)
        return [count > 0 for count in counts[1 : 1 + len(flags)]]

    def _decide(
        self,
        watch: PassWatch,
        departure: str | None,
        num_departed: int,
        parameters: Sequence[nn.Parameter],
        having: Sequence[int],
    ) -> None:
        """Decide, from the first step, how the gradients of the next ones are averaged."""
        if num_departed:
            self._settle(self._processes.all_gather(departure))
            return
        for parameter, count in zip(parameters, having, strict=True):
            if 0 < count < self._processes.world_size:
                name = self._name(parameter)
                self._send_late(f"{name} has a gradient in {count} of {self._processes.world_size} processes only")
                return
        if any(having):
            # Elsewhere the order of the passes may differ; the parts must hold the same parameters in each process.
            self._send_early(self._processes.broadcast(self._places(watch.order)))

    def _settle(self, departures: Sequence[str | None]) -> None:
        """Decide how to average after a step that departed from one pass, by the reason of the first such process."""
        reasons = [departure for departure in departures if departure is not None]
        self._num_changes += 1
        if self._num_changes > _MOST_CHANGES or any(reason != _OTHERS_ARE_TRAINED for reason in reasons):
            self._send_late(next((reason for reason in reasons if reason != _OTHERS_ARE_TRAINED), reasons[0]))
            return
        assert self._watch is not None
        self._watch.close()
        self._watch = PassWatch(trained_parameters(self._toolbox))
        self._log(_FROM_NOW_ON.format(reason=f"{_OTHERS_ARE_TRAINED}, which is decided again at the next step"))

    def _send_late(self, reason: str) -> None:
        self.close()
        self._why_not = reason
        self._log(_FROM_NOW_ON.format(reason=reason))

    def _send_early(self, places: Sequence[int]) -> None:
        assert self._watch is not None
        parameters = self._parameters()
        self._watch.begin(compares=False)
        self._early = EarlyGradients([parameters[place] for place in places], self._processes)
        parts = "1 message" if self._early.num_messages == 1 else f"{self._early.num_messages} messages"
        self._log(f"Gradients are averaged by DistributedDataParallel while they are computed, in {parts} a step")

    def _departure(self, found: Departure) -> str | None:
        """Return a description of how this process's step departs from one pass; None if it does not."""
        assert self._watch is not None
        trained = trained_parameters(self._toolbox)
        if [id(parameter) for parameter in trained] != [id(parameter) for parameter in self._watch.parameters]:
            return _OTHERS_ARE_TRAINED
        if isinstance(found, str) or found is None:
            return found
        return f"after the last backward pass of a step, {self._name(found)} had no gradient, or one from another pass"

    def _parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the network and the optimizer, including those that are frozen."""
        return [*self._toolbox.model.parameters(), *optimized_parameters(self._toolbox.optimizer)]

    def _places(self, order: Sequence[nn.Parameter]) -> list[int]:
        """Return the indices of parameters in `_parameters`."""
        places = {id(parameter): place for place, parameter in enumerate(self._parameters())}
        return [places[id(parameter)] for parameter in order]

    def _name(self, parameter: nn.Parameter) -> str:
        named = plain_network(self._toolbox.model).named_parameters()
        return next((name for name, own in named if own is parameter), "a parameter outside of the network")
