"""The weight files of a run: when they are written, their names, and their contents.

A file is first written under a hidden name, and renamed to its final name only after the run's state, which holds its
digest, is on disk. A crash at any moment therefore leaves each file either in its place or staged next to it.
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
"""The end of the names of entries in a state_dict that are not tensors."""
_NAME = re.compile(r"checkpoint_(latest|best|\d+)\.pth")
_LEFTOVER = re.compile(r"\..+(\.next|-[a-z0-9_]{8}(\.\w+)*)")

Weights = Mapping[str, Any]
"""A network's state_dict: tensors, and the return values of its modules' ``get_extra_state``."""
WeightsKind = Literal["raw", "ema"]


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """The content of a weight file.

    Attributes:
        epoch: The epoch after which it was written, counted from 1.
        score: The validation score of exactly these weights; None if they were not scored.
        kind: ``raw`` weights from the optimizer, or their exponential moving average.
        digest: The digest of the file, computed by `digest_of`.
    """

    epoch: int
    score: float | None
    kind: WeightsKind
    digest: str


class Checkpoints:
    """Writes the weight files of a run, some of them evenly spaced over it, and records the content of each."""

    def __init__(self, folder: Path, *, num_epochs: int, num_checkpoints: int) -> None:
        self._folder = folder
        self._due = evenly_spaced_epochs(num_epochs, num_checkpoints)
        self._staged: dict[WeightsKind, list[str]] = {}
        self._unflushed: list[BinaryIO] = []
        self.records: dict[str, CheckpointRecord] = {}

    def is_due(self, epoch: int, *, is_last: bool) -> bool:
        """Return whether this epoch has a numbered checkpoint; the last epoch always has one, if any has."""
        return epoch in self._due or (is_last and bool(self._due))

    def stage(self, name: str, weights: Weights, *, epoch: int, score: float | None, kind: WeightsKind) -> None:
        """Write one weight file under its hidden name and record its content; `publish` renames it.

        It is on the disk after `confirm_staged`.

        Files of one kind that are staged together hold the same weights: all except the first are links to it.
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
        """Wait until the contents and names of the staged files are on the disk. Called before the state is renamed.

        Raises:
            OSError: If they cannot be written.
        """
        while self._unflushed:
            finish_file(self._unflushed.pop(0))
        if self._staged:
            flush_to_disk(self._folder)

    def publish(self) -> None:
        """Rename the staged files. To be called once the state that names them is on disk."""
        for name in [name for names in self._staged.values() for name in names]:
            staged_path(self._folder, name).replace(self._folder / name)
        self._staged = {}

    def close(self) -> None:
        """Close files that a failed save left open."""
        while self._unflushed:
            self._unflushed.pop().close()

    def reconcile(self) -> None:
        """Repair the folder after a crash or a failed save: rename staged files that the state names, remove others.

        Raises:
            ExperimentError: If a file that the state names is missing or different.
        """
        self.close()
        self._staged = {}
        for name, record in self.records.items():
            path, staged = self._folder / name, staged_path(self._folder, name)
            if holds(staged, record.digest):
                staged.replace(path)
            elif not holds(path, record.digest):
                what = "differs from the file that was saved" if path.exists() else "is missing"
                raise ExperimentError(f"{path}: {what}; the run cannot be continued from it")
        for path in self._folder.iterdir():
            if is_leftover(path.name):
                path.unlink()

    def holding(self, *, epoch: int, kind: WeightsKind) -> Path | None:
        """Return a file with the weights of this kind after this epoch; None if there is none."""
        names = (name for name, record in self.records.items() if (record.epoch, record.kind) == (epoch, kind))
        name = next(names, None)
        return None if name is None else self._folder / name


def records_of(state: Mapping[str, Mapping[str, Any]]) -> dict[str, CheckpointRecord]:
    """Return what a saved state says about each file.

    Raises:
        ExperimentError: If it names a file that is not one of a run's checkpoints, which may be outside the folder.
    """
    for name in state:
        if not _NAME.fullmatch(name):
            raise ExperimentError(f"{name!r} is not a valid checkpoint name")
    return {name: CheckpointRecord(**record) for name, record in state.items()}


def checkpoint_name(epoch: int) -> str:
    """Return the name of a numbered checkpoint."""
    return f"checkpoint_{epoch}.pth"


def is_leftover(name: str) -> bool:
    """Return whether a file of this name was left by an interrupted write: a staged or a temporary file."""
    return bool(_LEFTOVER.fullmatch(name))


def staged_path(folder: Path, name: str) -> Path:
    """Return the path of a staged weight file."""
    return folder / f".{name}.next"


def evenly_spaced_epochs(num_epochs: int, num_checkpoints: int) -> frozenset[int]:
    """Return ``min(num_checkpoints, num_epochs)`` evenly spaced epochs, including ``num_epochs``."""
    count = min(num_checkpoints, num_epochs)
    return frozenset(round(i * num_epochs / count) for i in range(1, count + 1))


def save_tensors(path: Path, content: Mapping[str, object], *, confirm: Callable[[], None] | None = None) -> None:
    """Write tensors and plain values to ``path`` atomically; the same content gives the same bytes.

    ``confirm`` is called after writing and before renaming; if it raises, the old file is kept.
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
        # After a disk error, PyTorch's writer still tries to finish the archive, and reports only that this has failed.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load_tensors(path: Path) -> Any:
    """Read a file of `save_tensors` onto the CPU and verify every checksum. No code in it is executed.

    Raises:
        OSError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile: If the file is damaged or holds anything but
            tensors and plain values.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # torch.load does not look at the checksums
    if damaged is not None:
        raise zipfile.BadZipFile(f"its part {damaged!r} is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)


def load_weights(path: Path) -> dict[str, Any]:
    """Read a weight file onto the CPU. No code in it is executed.

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
    """Compute the digest of a ``torch.save`` file from the checksums of its tensors.

    Only the table of contents of the file is read. The checksums of the tensors are verified when they are loaded.
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
