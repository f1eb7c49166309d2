"""The buffers of networks as they were before a batch, for a batch that is left out. Trains nothing."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class KeptBuffers:
    """Copies of all buffers of some modules, such as the running statistics of BatchNorm. Waits for no GPU.

    Args:
        modules: The modules, their submodules included.
    """

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
        """Restore the buffers to what they were."""
        for part, name, kept in self._kept:
            present = part._buffers[name]
            if present is not None and (present.shape, present.dtype) == (kept.shape, kept.dtype):
                present.copy_(kept)
            else:  # replaced by another
                part._buffers[name] = kept
