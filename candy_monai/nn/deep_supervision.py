"""A loss over several output resolutions, and the selection of the main output of a network.

A network may return a tensor, list, tuple, dict, or MONAI DynUNet's stacked heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from typing_extensions import override

from candy_monai.errors import SettingsError
from candy_monai.nn.losses import apply_loss

if TYPE_CHECKING:
    from candy_monai.aliases import Scalar

    NetworkOutput = Tensor | Sequence["NetworkOutput"] | Mapping[str, "NetworkOutput"] | None

_MAIN_KEYS = ("out", "logits")


class DeepSupervisionLoss(nn.Module):
    """Apply a criterion to every resolution that a network returns, and return the weighted sum.

    Outputs are ordered from the finest to the coarsest, those of one size in the order given. Labels are resampled by
    `downsample_labels`, so that integer ids, masks and ignore values are all supported.

    Args:
        criterion: Takes ``(logits, labels)``; returns a tensor, or a tensor and its parts.
        weights: One for each output, finest first, used as given; a coarse output of weight 0 is skipped. By
            default 1, 1/2, 1/4 and so on, divided by their sum.

    Raises:
        SettingsError: If a weight is negative or not finite, or all are 0.

    Example:
        >>> criterion = DeepSupervisionLoss(nn.CrossEntropyLoss(), weights=[1.0])
        >>> loss, parts = criterion([torch.zeros(1, 2, 4, 4)], torch.full((1, 2, 4, 4), 0.5))
        >>> round(loss.item(), 4)
        0.6931
    """

    def __init__(self, criterion: nn.Module, *, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        if weights is not None and not (
            any(weights) and all(math.isfinite(weight) and weight >= 0 for weight in weights)
        ):
            raise SettingsError(f"weights must be finite, not negative and not all 0; got {list(weights)}")
        self.criterion = criterion
        self.weights = None if weights is None else tuple(weights)

    @override
    def forward(self, output: NetworkOutput, labels: Tensor) -> tuple[Tensor, Mapping[str, Scalar]]:
        """Return the weighted sum, and the parts of the loss at full resolution.

        Args:
            output: The network's output: a tensor, a list, tuple or dict of tensors, or stacked heads
                ``(B, heads, C, *spatial)``. A single output is passed to the criterion unchanged.
            labels: ``(B, 1, *spatial)`` ids or ``(B, C, *spatial)`` masks at full resolution.

        Raises:
            ValueError: If no output has the labels' size, or the number of weights is not that of outputs.
        """
        outputs = outputs_as_list(output, labels.ndim - 2)
        if len(outputs) == 1 and self.weights is None:
            return apply_loss(self.criterion, outputs[0], labels)
        size = labels.shape[2:]
        if outputs[0].shape[2:] != size:
            raise ValueError(
                f"the finest output has spatial size {tuple(outputs[0].shape[2:])}, the labels have {tuple(size)}"
            )
        first, *others = self._weights_for(len(outputs))
        loss, parts = apply_loss(self.criterion, outputs[0], labels)
        total = first * loss
        for logits, weight in zip(outputs[1:], others, strict=True):
            if weight > 0:
                smaller = downsample_labels(labels, logits.shape[2:])
                total = total + weight * apply_loss(self.criterion, logits, smaller)[0]
        return total, parts

    def _weights_for(self, count: int) -> tuple[float, ...]:
        if self.weights is None:
            halves = [0.5**level for level in range(count)]
            return tuple(half / sum(halves) for half in halves)
        if len(self.weights) != count:
            raise ValueError(f"got {len(self.weights)} weights for {count} outputs of the network")
        return self.weights


def downsample_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resample labels to a lower resolution by taking, on each axis, the voxel nearest to each new voxel's centre.

    This creates no new ids, needs no one-hot copy for any number of classes, and keeps thin structures in proportion
    where a majority vote would remove them. With an even factor two voxels are equally near; the one closer to the
    centre of the image is taken, so that the result is mirror-symmetric and centred objects stay centred. (Always
    taking the upper one, as ``nearest-exact`` does, shifts the labels by half a voxel.)

    Args:
        labels: ``(B, C, *spatial)``, any type.
        size: The new spatial size, with no axis longer than before.

    Raises:
        ValueError: If an axis would become longer, or the number of axes differs.
    """
    if len(size) != labels.ndim - 2 or any(new > old for new, old in zip(size, labels.shape[2:], strict=True)):
        raise ValueError(f"labels of shape {tuple(labels.shape)} cannot be downsampled to spatial size {tuple(size)}")
    for axis, new in enumerate(size, start=2):
        old = labels.shape[axis]
        if new != old:
            labels = labels.index_select(axis, _nearest(old, new, labels.device))
    return labels


def _nearest(old: int, new: int, device: torch.device) -> Tensor:
    # Twice `new` times the centres, so that all values are integers: centre = ((2 i + 1) old - new) / (2 new).
    lower_half = torch.arange((new + 1) // 2, device=device)
    doubled = (2 * lower_half + 1) * old - new
    picked = (doubled + new) // (2 * new)  # rounds halves up, here towards the centre
    mirrored = old - 1 - picked.flip(0)
    return torch.cat([picked, mirrored[new % 2 :]])


def outputs_as_list(output: NetworkOutput, num_dims: int) -> list[Tensor]:
    """Return the segmentation outputs of a network, ``(B, C, *spatial)`` with 2 or 3 spatial axes, the finest first.

    Tensors with another number of axes (a scalar loss, a feature vector) are left out. Outputs of the same size keep
    their order, except that in a dict ``"out"`` or ``"logits"`` come first.

    Raises:
        ValueError: If there is no output with that number of axes.
        TypeError: If an element is neither a tensor nor a collection of tensors.
    """
    found = _flattened(output, num_dims)
    if not found:
        raise ValueError(f"the network returned no tensor of shape (B, C, *spatial) with {num_dims} spatial axes")
    return sorted(found, key=lambda tensor: -tensor.shape[2:].numel())


def main_output(output: NetworkOutput, *, num_dims: int) -> Tensor:
    """Return the logits at full resolution, the first of `outputs_as_list`, which raises the same errors."""
    return outputs_as_list(output, num_dims)[0]


def _flattened(output: NetworkOutput, num_dims: int) -> list[Tensor]:
    if isinstance(output, Tensor):
        if output.ndim == num_dims + 3:
            return list(output.unbind(1))
        return [output] if output.ndim == num_dims + 2 else []
    if output is None:
        return []
    if isinstance(output, Mapping):
        first = next((key for key in _MAIN_KEYS if key in output), None)
        output = [output[key] for key in sorted(output, key=lambda key: key != first)]
    if not isinstance(output, (list, tuple)):
        raise TypeError(f"a network must return tensors or a list, tuple or dict of them; got {type(output).__name__}")
    return [tensor for value in output for tensor in _flattened(value, num_dims)]
