"""Several networks as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Ensemble(nn.Module):
    """The mean of several networks' probabilities, as logits.

    Args:
        networks: Networks of one task, from images to logits.
        sigmoid: Whether each channel is a question of its own (one foreground logit, overlapping regions) instead of
            one of classes that exclude each other.
    """

    def __init__(self, networks: Sequence[nn.Module], sigmoid: bool = False) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.sigmoid = sigmoid

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, C, *spatial)`` whose softmax, or sigmoid, is the mean of the networks'."""
        # In logarithms: a probability of 0 has none.
        yes: list[Tensor] = []
        no: list[Tensor] = []
        for network in self.networks:
            logits = network(x).float()
            if self.sigmoid:
                yes.append(F.logsigmoid(logits))
                no.append(F.logsigmoid(-logits))
            else:
                yes.append(F.log_softmax(logits, dim=1))
        mean = torch.logsumexp(torch.stack(yes), dim=0)
        if self.sigmoid:
            return mean - torch.logsumexp(torch.stack(no), dim=0)
        return mean
