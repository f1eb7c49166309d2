"""Where tensors live: the mixin that remembers a device, and the choice of one. Owns no tensors."""

from __future__ import annotations

import torch

from candy_monai.aliases import Device


class HasDevice:
    """Something that works on one device.

    Args:
        device: The device, or its name.

    Raises:
        ValueError: If PyTorch knows no such device.
    """

    def __init__(self, device: Device) -> None:
        self._device = _parsed(device)

    def device(self, *, device: Device | None = None) -> torch.device:
        """Return the device in use; with ``device`` given, switch to it first.

        Args:
            device: The device to use from now on. Tensors that already live elsewhere are not moved.
        """
        if device is not None:
            self._device = _parsed(device)
        return self._device


def auto_device() -> str:
    """Name the best device of this machine: the CUDA device with the most free memory, else ``mps``, else ``cpu``."""
    if torch.cuda.is_available():
        free = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
        return f"cuda:{free.index(max(free))}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _parsed(device: Device) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: expected for example 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
