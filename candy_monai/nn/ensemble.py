"""Several networks as one. Copied into bundles, so that it imports nothing else of ours."""

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
        of_logits: Whether the mean is that of the logits themselves.
    """

    def __init__(self, networks: Sequence[nn.Module], sigmoid: bool = False, of_logits: bool = False) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.sigmoid = sigmoid
        self.of_logits = of_logits

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(B, C, *spatial)`` whose softmax, or sigmoid, is the mean of the networks'."""
        outputs: list[Tensor] = []
        for network in self.networks:
            outputs.append(network(x).float())  # noqa: PERF401  # TorchScript knows no comprehension over modules
        return self.mean(outputs)

    def mean(self, outputs: list[Tensor]) -> Tensor:
        """Return the mean of several networks' logits ``(B, C, *spatial)``."""
        logits = torch.stack(outputs)
        if self.of_logits:
            return logits.mean(0)
        # In logarithms: the logarithm of a probability that rounds to 0 is lost.
        if self.sigmoid:
            return torch.logsumexp(F.logsigmoid(logits), dim=0) - torch.logsumexp(F.logsigmoid(-logits), dim=0)
        return torch.logsumexp(F.log_softmax(logits, dim=2), dim=0)
