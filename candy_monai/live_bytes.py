"""Measure the peak memory of tensors, also on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from typing_extensions import override


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages allocated within a ``with`` block, and records their peak.

    On PyTorch's meta device this needs neither memory nor computation.

    Args:
        device: The type of device to count, such as ``"meta"``; None for all.
        besides: Returns the bytes that a library allocates besides its tensors during an operation, given the
            operation, its arguments and the returned tensors; None for nothing.

    Attributes:
        now: Bytes of the live storages.
        most: Peak of these.
    """

    def __init__(
        self,
        device: str | None = None,
        *,
        besides: Callable[[object, Sequence[Any], Sequence[Tensor]], int] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._device, self._besides = device, besides
        self._alive = WeakIdKeyDictionary()

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and self._counts(leaf.device)]
        for storage in (tensor.untyped_storage() for tensor in made):
            if storage not in self._alive:
                self._alive[storage] = size = storage.nbytes()
                self.now += size
                weakref.finalize(storage, self._forget, size)
        besides = 0 if self._besides is None else self._besides(func, args, made)
        self.most = max(self.most, self.now + besides)
        return result

    def _counts(self, device: torch.device) -> bool:
        return self._device in (None, device.type)

    def _forget(self, size: int) -> None:
        self.now -= size
