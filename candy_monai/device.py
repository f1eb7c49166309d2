"""Choose a device, and a mixin that stores one. Owns no tensors."""

from __future__ import annotations

import torch

from candy_monai.aliases import Device
from candy_monai.errors import BadInputError


class HasDevice:
    """Base class of objects that work on one device.

    Args:
        device: The device, or its name.

    Raises:
        BadInputError: If PyTorch does not support the device, or this machine lacks it.
    """

    def __init__(self, device: Device) -> None:
        self._device = find_device(device)

    def device(self, *, device: Device | None = None) -> torch.device:
        """Return the current device; with ``device`` given, switch to it first. Not to be overridden.

        Args:
            device: The device to use from now on. Existing tensors are not moved.

        Raises:
            BadInputError: If PyTorch does not support the device, or this machine lacks it.
        """
        if device is not None:
            self._device = find_device(device)
        return self._device


def auto_device() -> str:
    """Return the name of the best device: the CUDA device with the most free memory, else ``mps``, else ``cpu``."""
    if torch.cuda.is_available():
        free = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
        return f"cuda:{free.index(max(free))}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def why_absent(device: torch.device) -> str | None:
    """Return why this machine cannot use a device; ``None`` if it can.

    Checks only CUDA and MPS, without initialising them, so that processes can still be forked.
    """
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        return f"PyTorch finds {torch.cuda.device_count()} CUDA device(s)"
    if device.type == "mps" and not torch.backends.mps.is_available():
        return "PyTorch finds no such device"
    return None


def find_device(device: Device) -> torch.device:
    """Return a device by its name, or the best one for ``auto``.

    Raises:
        BadInputError: If PyTorch does not support the device, or this machine lacks it.
    """
    try:
        parsed = torch.device(auto_device() if device == "auto" else device)
    except RuntimeError as error:
        raise BadInputError(
            f"unknown device {device!r}: expected for example 'cpu', 'cuda:1', 'mps' or 'auto'"
        ) from error
    if reason := why_absent(parsed):
        present = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        present += ["mps"] if torch.backends.mps.is_available() else []
        raise BadInputError(f"device {str(parsed)!r} is not available: {reason}; available: {', '.join(present)}")
    return parsed
