"""Room on disk for scores that do not fit into memory: files that no name leads to, gone with their tensors."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor

from candy_monai.allocation import give_back_freed_memory


def room_on_disk(count: int, device: torch.device) -> Tensor:
    """Make room for unfinished scores in a temporary file that is mapped into memory.

    The operating system keeps in memory what it has room for. The file is deleted as soon as it is mapped, so nothing
    is left behind even by a crash. ``TMPDIR`` chooses the disk.

    Args:
        count: How many.
        device: Where the scores come from; they are always read and written by the CPU.

    Raises:
        ValueError: If the scores do not come from the CPU.
    """
    if device.type != "cpu":
        raise ValueError(f"scores on {device} cannot be summed on disk")
    give_back_freed_memory()  # or what the disk spares would be held for nothing
    with tempfile.NamedTemporaryFile(prefix="candy-monai-", suffix=".scores", delete=False) as file:
        path = Path(file.name)
    try:
        return torch.from_file(str(path), shared=True, size=count, dtype=torch.float32)
    finally:
        path.unlink()
