"""The Dice that is written on a picture. Not a metric of training: see ``candy_monai.metrics`` for those."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Dice:
    """Overlap of a prediction with its reference.

    Args:
        per_class: The score of each foreground id that either holds; one that only one of them holds scores 0.
    """

    per_class: Mapping[int, float]

    @classmethod
    def between(
        cls, label: NDArray[np.integer], prediction: NDArray[np.integer], *, num_classes: int | None = None
    ) -> Dice:
        """Compare two arrays of label ids.

        Args:
            label: The reference.
            prediction: Of the same shape.
            num_classes: Ids from here on, such as an ignore value, are no classes: where the reference holds one, or a
                negative id, nothing is counted. ``None`` takes every positive id for a class.
        """
        valid = label >= 0 if num_classes is None else (label >= 0) & (label < num_classes)
        if not valid.all():
            label, prediction = label[valid], prediction[valid]
        relevant = (label > 0) | (prediction > 0)
        reference, predicted = label[relevant], prediction[relevant]
        sizes = Counter(_sizes(reference)) + Counter(_sizes(predicted))
        shared = _sizes(reference[reference == predicted])
        classes = sorted(value for value in sizes if value > 0 and (num_classes is None or value < num_classes))
        return cls(per_class={value: 2 * shared.get(value, 0) / sizes[value] for value in classes})

    @property
    def mean(self) -> float | None:
        """The mean over the classes; ``None`` if there are none."""
        return sum(self.per_class.values()) / len(self.per_class) if self.per_class else None


def _sizes(values: NDArray[np.integer]) -> dict[int, int]:
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
