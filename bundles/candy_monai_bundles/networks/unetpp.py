"""MONAI's UNet++, with its outputs in the order of other networks."""

from __future__ import annotations

from monai.networks.nets import BasicUNetPlusPlus
from torch import Tensor


class DeepestFirst(BasicUNetPlusPlus):
    """MONAI's network, whose outputs begin with that of the deepest node, the only one outside of training.

    This output depends on all levels. MONAI returns that of the shallowest node first, of the same size.
    """

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        """Return the logits of images ``(B, in_channels, *spatial)``; in training, those of each depth."""
        outputs: list[Tensor] = super().forward(x)[::-1]
        return outputs if self.training and len(outputs) > 1 else outputs[0]
