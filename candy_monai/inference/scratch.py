"""Room on disk for scores that do not fit into memory: files that no name leads to, gone with their tensors."""

from __future__ import annotations

import ctypes
import math
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from candy_monai.aliases import Shape

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names for them, in malloc.h
_LARGE_BYTES = 1 << 20


def disk_cell(shape: Shape, device: torch.device) -> Tensor:
    """Make room for a cell in a temporary file that is mapped into memory.

    The operating system keeps in memory what it has room for. The file is deleted as soon as it is mapped, so nothing
    is left behind even by a crash. ``TMPDIR`` chooses the disk.

    Args:
        shape: The cell's shape.
        device: Where the scores come from; the cell itself is always read and written by the CPU.

    Raises:
        ValueError: If the scores do not come from the CPU.
    """
    if device.type != "cpu":
        raise ValueError(f"scores on {device} cannot be summed on disk")
    _give_back_freed_memory()
    with tempfile.NamedTemporaryFile(prefix="candy-monai-", suffix=".cell", delete=False) as file:
        path = Path(file.name)
    try:
        count = math.prod(shape)
        return torch.from_file(str(path), shared=True, size=count, dtype=torch.float32).view(shape)
    finally:
        path.unlink()


@cache
def _give_back_freed_memory() -> None:
    """Have the C library give large blocks back to the system when they are freed, where it is GNU's.

    By itself it learns to keep blocks of up to 32 MB, between which the network's outputs leave holes: of a volume of
    256^3 the process then keeps a gigabyte that nothing uses, and the disk is used to spare memory.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_TRIM_THRESHOLD, _LARGE_BYTES)
