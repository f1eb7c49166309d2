"""Means of named numbers over parts of different size. Keeps nothing between two uses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from candy_monai.aliases import Metrics, Scalar


class WeightedMeans:
    """Averages named numbers, each weighted by how much it stands for. NaN means "not measured" and counts nothing.

    Tensors stay on their device: nothing waits for a GPU.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[Scalar, int]]] = {}

    def add(self, metrics: Metrics, *, weight: int) -> None:
        """Take the numbers of one part.

        Args:
            metrics: Numbers by name.
            weight: What they stand for, for example a number of windows.
        """
        for name, value in metrics.items():
            self._values.setdefault(name, []).append(
                (value.detach().clone() if isinstance(value, Tensor) else value, weight)
            )

    def means(self) -> dict[str, Scalar]:
        """Return each name's weighted mean: a number, or a tensor where any value was one; NaN where none was known."""
        return {name: _mean(values) for name, values in self._values.items()}


def _mean(values: Sequence[tuple[Scalar, int]]) -> Scalar:
    device = next((value.device for value, _ in values if isinstance(value, Tensor)), None)
    if device is None:
        known = [(float(value), weight) for value, weight in values if not math.isnan(value)]
        total = sum(weight for _, weight in known)
        return math.fsum(value * weight for value, weight in known) / total if total else math.nan
    numbers = torch.stack([torch.as_tensor(value, dtype=torch.float32, device=device) for value, _ in values])
    weights = torch.tensor([weight for _, weight in values], dtype=torch.float32).to(device, non_blocking=True)
    weights = weights.masked_fill(numbers.isnan(), 0)
    return (numbers.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf) * weights).sum() / weights.sum()
