"""Several networks as one. Copied into bundles, and thus without imports of other modules of candy_monai."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Ensemble(nn.Module):
    """The mean of the probabilities of several networks, as logits.

    Args:
        networks: Networks of one task, from images to logits.
        sigmoid: Whether channels are independent (one foreground logit, overlapping regions) instead of mutually
            exclusive classes.
        of_logits: Whether to average the logits themselves.
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
            outputs.append(network(x).float())  # noqa: PERF401  # TorchScript has no comprehension over modules
        return self.mean(outputs)

    def mean(self, outputs: list[Tensor]) -> Tensor:
        """Return the mean of several networks' logits ``(B, C, *spatial)``."""
        logits = torch.stack(outputs)
        if self.of_logits:
            return logits.mean(0)
        # In logarithms, since a probability that rounds to 0 has no finite logarithm.
        if self.sigmoid:
            return torch.logsumexp(F.logsigmoid(logits), dim=0) - torch.logsumexp(F.logsigmoid(-logits), dim=0)
        return torch.logsumexp(F.log_softmax(logits, dim=2), dim=0)
