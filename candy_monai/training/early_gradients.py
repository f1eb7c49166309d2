"""Send gradients while the others are still computed, and check that a pass makes this possible."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]  # is not among the names that its types export
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from candy_monai.processes import Processes

SEVERAL_PASSES = "backward makes several passes"
CHANGED = "backward changes gradients after its pass"

Departure = str | nn.Parameter | None
"""Why a step is not one pass: a reason, or a parameter whose gradient is missing or unexpected; None if it is one."""


class PassWatch:
    """Records which parameters the last ``backward`` before a step reaches, and in which order.

    Args:
        parameters: The trained parameters.

    Attributes:
        parameters: The same.
        order: The parameters reached since `begin`.
        has_begun: Whether `begin` was called.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.order: list[nn.Parameter] = []
        self.has_begun = False
        self._compares = False
        self._copies: list[tuple[nn.Parameter, Tensor]] = []
        self._handles: list[RemovableHandle] = [
            parameter.register_post_accumulate_grad_hook(self._reached)  # type: ignore[no-untyped-call]
            for parameter in self.parameters
        ]

    def begin(self, *, compares: bool) -> None:
        """Reset to the state before any pass.

        Args:
            compares: Whether to keep copies of the gradients, to detect any later change of them.
        """
        self.has_begun, self._compares = True, compares
        self.order.clear()
        self._copies.clear()

    def departure(self, expected: Sequence[nn.Parameter] | None = None) -> Departure:
        """Return why the step is not one pass; None if it is one.

        Args:
            expected: The parameters that the pass should reach; None for all that have a gradient.
        """
        reached = {id(parameter) for parameter in self.order}
        if len(reached) < len(self.order):
            return SEVERAL_PASSES
        if not all(isinstance(parameter, nn.Parameter) for parameter in self.order):
            return "the optimizer has tensors that are not nn.Parameter objects"
        wanted = reached if expected is None else {id(parameter) for parameter in expected}
        for parameter in self.parameters:
            has = id(parameter) in reached
            if has != (id(parameter) in wanted) or (parameter.grad is not None) != has:
                return parameter
        for parameter, copy in self._copies:
            if parameter.grad is None or not torch.allclose(parameter.grad, copy, rtol=0, atol=0, equal_nan=True):
                return CHANGED
        return None

    def close(self) -> None:
        """Remove the hooks from the parameters."""
        self._copies.clear()
        while self._handles:
            self._handles.pop().remove()

    def _reached(self, parameter: nn.Parameter) -> None:
        self.order.append(parameter)
        if self._compares and parameter.grad is not None:
            self._copies.append((parameter, parameter.grad.clone()))


class EarlyGradients:
    """Sends the gradients of one pass in parts, each as soon as it is complete, while the others are computed.

    ``DistributedDataParallel`` divides them into parts and reports when one is complete. Copies are sent, so the
    gradients stay those of this process until `take_means`. The last part is complete only at the end of the pass;
    `send_rest` therefore sends it afterwards, together with the flags, without losing time.

    Args:
        order: The parameters in the order in which a pass reaches them, the same ones in each process.
        processes: The processes that train together; all create this object at the same time.
    """

    def __init__(self, order: Sequence[nn.Parameter], processes: Processes) -> None:
        self.order = list(order)
        self._processes = processes
        self._layout: list[list[Tensor]] = []
        self._parts: list[_Part] = []
        self._is_learning = True
        self._last: tuple[list[Tensor], list[Tensor]] = [], []
        gradients = [parameter.grad for parameter in self.order]
        for parameter in self.order:
            parameter.grad = None  # the wrapper would take it over
        # The networks are unchanged: the wrapped module only holds parameters.
        self._module = DistributedDataParallel(_Held(self.order), init_sync=False, gradient_as_bucket_view=True)
        self._module.register_comm_hook(None, lambda _, bucket: self._send(bucket))
        self._learn_layout()
        for parameter, gradient in zip(self.order, gradients, strict=True):
            parameter.grad = gradient

    @property
    def num_messages(self) -> int:
        """Number of parts."""
        return len(self._layout)

    def begin(self) -> None:
        """Prepare for a pass. Without it, passes are as under ``DistributedDataParallel.no_sync``."""
        self._parts.clear()
        self._module()

    def departure(self) -> Departure:
        """Return why the gradients are no longer those that were sent; None if they are."""
        return None if all(part.is_unchanged() for part in self._parts) else CHANGED

    def send_rest(self, flags: Sequence[bool]) -> list[int]:
        """Compute the means that were not sent yet, and return in how many processes each flag is set.

        If a pass in this process left out a parameter, zeros are sent for its part, which other processes wait for.
        """
        for parameters in self._layout[len(self._parts) : -1]:
            length = sum(parameter.numel() for parameter in parameters)
            distributed.all_reduce(torch.zeros(length, dtype=parameters[0].dtype, device=parameters[0].device))
        last = [_gradient_of(parameter) for parameter in self._layout[-1]]
        means, counts = self._processes.all_reduce_mean(last, flags)
        self._last = last, means
        for part in self._parts:
            part.wait()
        return counts

    def take_means(self) -> None:
        """Replace the gradients by the means."""
        for part in self._parts:
            part.take_means()
        torch._foreach_copy_(*self._last)

    def close(self) -> None:
        """Release the wrapped parameters; no further pass is expected."""
        self._parts.clear()
        del self._module  # it refers to this object in a way that Python's garbage collector does not see

    def _learn_layout(self) -> None:
        """Make two passes without a network.

        ``DistributedDataParallel`` divides into parts after the first pass, so a resumed run has them from its first
        step.
        """
        for _ in range(2):
            self._layout.clear()
            self._module()
            for parameter in self.order:
                parameter.backward(torch.zeros_like(parameter))  # type: ignore[no-untyped-call]
        self._is_learning = False

    def _send(self, bucket: GradBucket) -> Future[Tensor]:
        if self._is_learning:
            self._layout.append(bucket.parameters())
        else:
            self._parts.append(_Part(bucket, self._processes.world_size))
        buffer = bucket.buffer()
        done: Future[Tensor] = Future(devices=[buffer.device] if buffer.is_cuda else None)
        done.set_result(buffer)  # unchanged
        return done


class _Held(nn.Module):
    """Holds parameters in the order that ``DistributedDataParallel`` expects: those reached last come first."""

    def __init__(self, order: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.held = nn.ParameterList(reversed(order))

    @override
    def forward(self) -> None:
        """Compute nothing: calling the wrapper makes it expect a pass."""


class _Part:
    """One part of the gradients: those of this process, and their means unless it is the last part."""

    def __init__(self, bucket: GradBucket, world_size: int) -> None:
        self._buffer = buffer = bucket.buffer()
        self._own = [(parameter, parameter.grad) for parameter in bucket.parameters()]
        self._versions = self._versions_now()
        self._mean = self._work = None
        if not bucket.is_last():
            self._mean = torch.div(buffer, world_size)
            self._work = distributed.all_reduce(self._mean, async_op=True)

    def is_unchanged(self) -> bool:
        same = all(parameter.grad is gradient for parameter, gradient in self._own)
        return same and self._versions == self._versions_now()

    def wait(self) -> None:
        if self._work is not None:
            self._work.wait()

    def take_means(self) -> None:
        if self._mean is None:
            return
        start = self._buffer.storage_offset()
        for parameter, gradient in self._own:
            assert gradient is not None
            place = gradient.storage_offset() - start
            parameter.grad = self._mean.as_strided(gradient.shape, gradient.stride(), place)

    def _versions_now(self) -> list[int]:
        return [gradient._version for _, gradient in self._own if gradient is not None]


def _gradient_of(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
