"""Which batches of an epoch share an optimizer step. Steps nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Group:
    """Neighbouring batches whose gradients add up to one step.

    Attributes:
        first: The first batch, counted from 0 within the epoch.
        count: How many they are.
    """

    first: int
    count: int

    @classmethod
    def of(cls, batch: int, *, size: int, num_batches: int | None) -> Group:
        """Return the group that a batch belongs to; the last of an epoch may be smaller.

        Args:
            batch: The batch, counted from 0 within the epoch.
            size: Batches in a group.
            num_batches: Batches in the epoch; None if it is not known.
        """
        first = batch - batch % size
        left = size if num_batches is None else num_batches - first
        return cls(first=first, count=min(size, left))

    @property
    def last(self) -> int:
        """The last batch, after which the optimizer steps."""
        return self.first + self.count - 1
