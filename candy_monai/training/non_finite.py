"""Detect losses that become NaN or infinite without waiting for a GPU, and undo the effects of such a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from candy_monai.aliases import Scalar
from candy_monai.errors import NonFiniteLossError


class LossWatch:
    """Checks the loss of each step of one epoch.

    A number, or a tensor on the CPU, is checked at once. Tensors on another device are checked at the end of the epoch
    in one transfer, unless the policy is ``skip``: then the loss must be known before the optimizer steps.

    Args:
        policy: ``stop`` raises; ``skip`` leaves out the optimizer step.
        epoch: The epoch, counted from 1, for the message.
    """

    def __init__(self, policy: Literal["stop", "skip"], *, epoch: int) -> None:
        self._policy = policy
        self._epoch = epoch
        self._unread: list[tuple[int, Tensor, tuple[str, ...]]] = []
        self.num_skipped = 0
        self.first_skipped = ""

    def admits(self, loss: Scalar, *, step: int, case_ids: tuple[str, ...]) -> bool:
        """Return whether the optimizer may step.

        Raises:
            NonFiniteLossError: If the loss is not finite and the policy is ``stop``.
        """
        if isinstance(loss, Tensor) and loss.device.type != "cpu" and self._policy == "stop":
            self._unread.append((step, loss.detach().clone().reshape(()), case_ids))
            return True
        number = float(loss.detach() if isinstance(loss, Tensor) else loss)
        if math.isfinite(number):
            return True
        description = self._describe(number, step, case_ids)
        if self._policy == "stop":
            raise NonFiniteLossError(f"{description}; {_ADVICE}")
        self.num_skipped += 1
        self.first_skipped = self.first_skipped or description
        return False

    def settle(self) -> None:
        """Check the losses that were not checked during the epoch.

        Raises:
            NonFiniteLossError: If a loss was not finite.
        """
        unread, self._unread = self._unread, []
        losses = torch.stack([loss for _, loss, _ in unread]).tolist() if unread else []
        for (step, _, case_ids), loss in zip(unread, losses, strict=True):
            if not math.isfinite(loss):
                raise NonFiniteLossError(f"{self._describe(loss, step, case_ids)}; {_ADVICE}")

    def _describe(self, loss: float, step: int, case_ids: tuple[str, ...]) -> str:
        cases = f" (cases {', '.join(case_ids)})" if case_ids else f" ({_UNKNOWN})"
        return f"the loss became {loss} in epoch {self._epoch} at step {step}{cases}"


_UNKNOWN = "its cases are unknown; DataLoader(..., collate_fn=collate_cases) names them"

_ADVICE = (
    "check these images for NaN or extreme values and try a smaller learning rate, "
    'or pass non_finite="skip" to skip such steps'
)


class KeptBuffers:
    """Copies of all buffers of some modules, such as the running statistics of BatchNorm. Does not wait for a GPU."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._kept: list[tuple[nn.Module, str, Tensor]] = [
            (part, name, buffer.detach().clone())
            for module in modules
            for part in module.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the copied values of the buffers."""
        for part, name, kept in self._kept:
            present = part._buffers[name]
            if present is not None and (present.shape, present.dtype) == (kept.shape, kept.dtype):
                present.copy_(kept)
            else:  # the buffer was replaced
                part._buffers[name] = kept
