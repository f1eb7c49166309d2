"""The weight files of a run: when one is due, what it is called, what it holds. Builds no networks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from candy_monai.errors import ExperimentError
from candy_monai.files import atomic_path

LATEST = "checkpoint_latest.pth"
BEST = "checkpoint_best.pth"

Weights = Mapping[str, Tensor]
WeightsKind = Literal["raw", "ema"]


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What one weight file holds.

    Attributes:
        epoch: The epoch after which it was written, counted from 1.
        score: The validation score of exactly these weights; None if they were not scored.
        kind: ``raw`` weights as the optimizer left them, or their exponential moving average.
        sha256: The file's digest.
    """

    epoch: int
    score: float | None
    kind: WeightsKind
    sha256: str


class Checkpoints:
    """Writes the weight files of a run and remembers what each holds.

    Args:
        folder: Where the files go.
        num_epochs: Epochs planned.
        num_checkpoints: How many evenly spaced files to leave, the last epoch's among them.
    """

    def __init__(self, folder: Path, *, num_epochs: int, num_checkpoints: int) -> None:
        self._folder = folder
        self._due = evenly_spaced_epochs(num_epochs, num_checkpoints)
        self.records: dict[str, CheckpointRecord] = {}

    def is_due(self, epoch: int, *, is_last: bool) -> bool:
        """Say whether a numbered checkpoint belongs after this epoch; the last epoch always has one, if any has."""
        return epoch in self._due or (is_last and bool(self._due))

    def save(self, name: str, weights: Weights, *, epoch: int, score: float | None, kind: WeightsKind) -> None:
        """Write one weight file and remember what it holds."""
        digest = save_weights(self._folder / name, weights)
        self.records[name] = CheckpointRecord(epoch=epoch, score=score, kind=kind, sha256=digest)

    def state_dict(self) -> dict[str, dict[str, str | int | float | None]]:
        """Return what each file holds."""
        return {name: dataclasses.asdict(record) for name, record in self.records.items()}


def checkpoint_name(epoch: int) -> str:
    """Return the name of a numbered checkpoint."""
    return f"checkpoint_{epoch}.pth"


def evenly_spaced_epochs(num_epochs: int, num_checkpoints: int) -> frozenset[int]:
    """Return ``min(num_checkpoints, num_epochs)`` epochs, evenly spaced, ``num_epochs`` among them."""
    count = min(num_checkpoints, num_epochs)
    return frozenset(round(i * num_epochs / count) for i in range(1, count + 1))


def save_weights(path: Path, weights: Weights) -> str:
    """Write a plain state_dict to ``path`` in one step and return the file's SHA-256."""
    with atomic_path(path) as temporary:
        torch.save(dict(weights), temporary)
        with temporary.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a weight file onto the CPU. Nothing in it is executed.

    Raises:
        ExperimentError: If the file is missing, damaged or holds anything but tensors by name.
    """
    if not path.is_file():
        raise ExperimentError(f"{path}: no such checkpoint")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ExperimentError(f"{path}: not a readable weight file ({type(error).__name__}: {error})") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ExperimentError(f"{path}: expected a state_dict (tensors by name), found {type(weights).__name__}")
    return weights
