"""How much memory the tensors of some work take at a time, also on devices that hold none. Frees nothing."""

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
    """Counts the bytes of the storages that a ``with`` block makes, and remembers the most that were alive at a time.

    On PyTorch's meta device this costs neither memory nor computing.

    Args:
        device: The type of device to count, as ``"meta"``; None for all.
        besides: Returns what a library holds beside its tensors during an operation, of the operation, its arguments
            and the tensors that it returned; None for nothing.

    Attributes:
        now: Bytes that are alive.
        most: The most that were alive at a time.
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
