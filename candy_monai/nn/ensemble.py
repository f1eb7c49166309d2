"""Several networks as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override


class MeanOfNetworks(nn.Module):
    """The mean of several networks' probabilities, as logits.

    Args:
        networks: Networks of one task, from images to logits.
        sigmoid: Whether each channel is a question of its own instead of one of classes that exclude each other.
    """

    def __init__(self, networks: Sequence[nn.Module], *, sigmoid: bool = False) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.sigmoid = sigmoid

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, C, *spatial)`` whose softmax, or sigmoid, is the mean of the networks'."""
        # In logarithms, in which a probability of 0 does not become infinite.
        logits = torch.stack([network(x).float() for network in self.networks])
        if self.sigmoid:
            return F.logsigmoid(logits).logsumexp(0) - F.logsigmoid(-logits).logsumexp(0)
        return F.log_softmax(logits, dim=2).logsumexp(0)
