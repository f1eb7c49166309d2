"""The weight files of a run: when one is due, what it is called, what it holds.

A file is staged under a hidden name first, and takes its place only after the run's state, which names its digest, is
on disk. So a crash at any moment leaves each file either in its place or staged beside it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from torch import Tensor

from candy_monai.errors import ExperimentError, reason_in_short
from candy_monai.files import atomic_path, finish_file, flush_to_disk, new_file

LATEST = "checkpoint_latest.pth"
BEST = "checkpoint_best.pth"

EXTRA_STATE = "_extra_state"
"""Ends the name in a state_dict of what is no tensor."""
_NAME = re.compile(r"checkpoint_(latest|best|\d+)\.pth")
_LEFTOVER = re.compile(r"\..+(\.next|-[a-z0-9_]{8}(\.\w+)*)")

Weights = Mapping[str, Any]
"""A network's state_dict: tensors, and what its modules' ``get_extra_state`` returned."""
WeightsKind = Literal["raw", "ema"]


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What one weight file holds.

    Attributes:
        epoch: The epoch after which it was written, counted from 1.
        score: The validation score of exactly these weights; None if they were not scored.
        kind: ``raw`` weights as the optimizer left them, or their exponential moving average.
        digest: The file's content, as `digest_of` sums it up.
    """

    epoch: int
    score: float | None
    kind: WeightsKind
    digest: str


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
        self._staged: dict[WeightsKind, list[str]] = {}
        self._unflushed: list[BinaryIO] = []
        self.records: dict[str, CheckpointRecord] = {}

    def is_due(self, epoch: int, *, is_last: bool) -> bool:
        """Return whether a numbered checkpoint belongs after this epoch; the last epoch always has one, if any has."""
        return epoch in self._due or (is_last and bool(self._due))

    def stage(self, name: str, weights: Weights, *, epoch: int, score: float | None, kind: WeightsKind) -> None:
        """Write one weight file under its hidden name and remember what it holds; `publish` puts it in its place.

        It is on the disk after `confirm_staged`.

        Files of one kind that are staged together hold the same weights: all but the first are links to it.
        """
        path = staged_path(self._folder, name)
        same = self._staged.setdefault(kind, [])
        if same:
            _link(staged_path(self._folder, same[0]), path)
            digest = self.records[same[0]].digest
        else:
            with new_file(path) as file:
                _save(weights, file)
                digest = digest_of(path)
            self._unflushed.append(file)
        same.append(name)
        self.records[name] = CheckpointRecord(epoch=epoch, score=score, kind=kind, digest=digest)

    def confirm_staged(self) -> None:
        """Wait until the staged files are on the disk, contents and names. Comes before the state takes its place.

        Raises:
            OSError: If they cannot be written.
        """
        while self._unflushed:
            finish_file(self._unflushed.pop(0))
        if self._staged:
            flush_to_disk(self._folder)

    def publish(self) -> None:
        """Move what was staged to its place. To be called once the state that names it is on disk."""
        for name in [name for names in self._staged.values() for name in names]:
            staged_path(self._folder, name).replace(self._folder / name)
        self._staged = {}

    def close(self) -> None:
        """Close what a save that failed has left open."""
        while self._unflushed:
            self._unflushed.pop().close()

    def reconcile(self) -> None:
        """Finish what a crash interrupted: put staged files that the state names in their place, remove all others.

        Raises:
            ExperimentError: If a file that the state names is missing or is another.
        """
        for name, record in self.records.items():
            path, staged = self._folder / name, staged_path(self._folder, name)
            if holds(staged, record.digest):
                staged.replace(path)
            elif not holds(path, record.digest):
                what = "is not the file that was saved" if path.exists() else "is missing"
                raise ExperimentError(f"{path}: {what}; the run cannot be continued from it")
        for path in self._folder.iterdir():
            if is_leftover(path.name):
                path.unlink()

    def holding(self, *, epoch: int, kind: WeightsKind) -> Path | None:
        """Return a file that holds the weights of this kind after this epoch; None if none does."""
        names = (name for name, record in self.records.items() if (record.epoch, record.kind) == (epoch, kind))
        name = next(names, None)
        return None if name is None else self._folder / name


def records_of(state: Mapping[str, Mapping[str, Any]]) -> dict[str, CheckpointRecord]:
    """Return what a saved state says about each file.

    Raises:
        ExperimentError: If it names a file that is none of ours, which may lie outside the folder.
    """
    for name in state:
        if not _NAME.fullmatch(name):
            raise ExperimentError(f"{name!r} is named, which is no checkpoint of a run")
    return {name: CheckpointRecord(**record) for name, record in state.items()}


def checkpoint_name(epoch: int) -> str:
    """Return the name of a numbered checkpoint."""
    return f"checkpoint_{epoch}.pth"


def is_leftover(name: str) -> bool:
    """Return whether a file of this name is what a crash left of a write: a staged or a temporary file."""
    return bool(_LEFTOVER.fullmatch(name))


def staged_path(folder: Path, name: str) -> Path:
    """Return where a weight file waits for its state."""
    return folder / f".{name}.next"


def evenly_spaced_epochs(num_epochs: int, num_checkpoints: int) -> frozenset[int]:
    """Return ``min(num_checkpoints, num_epochs)`` epochs, evenly spaced, ``num_epochs`` among them."""
    count = min(num_checkpoints, num_epochs)
    return frozenset(round(i * num_epochs / count) for i in range(1, count + 1))


def save_tensors(path: Path, content: Mapping[str, object], *, confirm: Callable[[], None] | None = None) -> None:
    """Write tensors and plain values to ``path`` in one step; the same content makes the same bytes.

    Args:
        path: The file.
        content: What it is to hold.
        confirm: Called when all is written and has not yet taken its place; if it raises, the old file stays.
    """
    with atomic_path(path) as temporary, new_file(temporary) as file:
        _save(content, file)
        if confirm is not None:
            confirm()
        finish_file(file)


def _save(content: Mapping[str, object], file: BinaryIO) -> None:
    try:
        torch.save(dict(content), file)  # into an open file: with a path, its name would become a part of it
    except RuntimeError as error:
        # Whatever the disk said, PyTorch's writer goes on to finish the archive, and says that this has failed.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load_tensors(path: Path) -> Any:
    """Read what `save_tensors` wrote onto the CPU, every checksum verified. Nothing in it is executed.

    Raises:
        OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile: If the file is damaged or holds anything but
            tensors and plain values.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # torch.load does not look at the checksums
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged!r} in it is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_weights(path: Path) -> dict[str, Any]:
    """Read a weight file onto the CPU. Nothing in it is executed.

    Raises:
        ExperimentError: If the file is missing, damaged or holds anything but tensors by name.
    """
    if not path.is_file():
        raise ExperimentError(f"{path}: no such checkpoint")
    try:
        weights = load_tensors(path)
    except Exception as error:
        raise ExperimentError(f"{path}: not a readable weight file ({reason_in_short(error)})") from error
    if not isinstance(weights, dict) or not all(
        isinstance(value, Tensor) or str(name).endswith(EXTRA_STATE) for name, value in weights.items()
    ):
        raise ExperimentError(f"{path}: expected a state_dict (tensors by name), found {type(weights).__name__}")
    return weights


def digest_of(path: Path) -> str:
    """Sum up a file that ``torch.save`` wrote, by the checksums that it holds of each of its tensors.

    Reads the file's table of contents only. That the tensors have these checksums is verified when they are loaded.
    """
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, entry.file_size, entry.CRC) for entry in archive.infolist()]
    return hashlib.sha256(repr(entries).encode()).hexdigest()


def holds(path: Path, digest: str) -> bool:
    """Return whether there is such a file with this digest."""
    try:
        return digest_of(path) == digest
    except (OSError, zipfile.BadZipFile):
        return False


def _link(existing: Path, new: Path) -> None:
    new.unlink(missing_ok=True)
    try:
        os.link(existing, new)
    except OSError:  # the file system knows no links
        shutil.copyfile(existing, new)
        flush_to_disk(new)
