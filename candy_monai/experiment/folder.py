"""The folder of one experiment: its name, its birth in one rename, its description. Knows no training."""

from __future__ import annotations

import errno
import json
import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path

from candy_monai.aliases import PathLike, Shape
from candy_monai.errors import ExperimentError, RunFailedError

FORMAT = 2
READABLE_FORMATS = (1, 2)
"""Format 1 differs in ``state.pt`` only, which cannot be continued from."""
DESCRIPTION = "experiment.json"
LOGS = "logs.txt"
METRICS = "metrics.csv"
STATE = "state.pt"

Json = Mapping[str, object]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def new_experiment_id(now: datetime, token: str) -> str:
    """Return ``YYYYMMDD-HH-xxxx``: the hour, and four characters that tell runs of that hour apart."""
    return f"{now:%Y%m%d-%H}-{token}"


def publish_folder(
    parent: PathLike,
    fill: Callable[[Path, str], None],
    *,
    clock: Callable[[], datetime] = datetime.now,
    draw: Callable[[], str] = lambda: secrets.token_hex(2),
) -> Path:
    """Make a new experiment folder that appears complete, or not at all.

    It is filled under a hidden name and then renamed; a rename never replaces another run's folder.

    Args:
        parent: The folder of this trainer's experiments; made when missing.
        fill: Writes the first files, given the hidden folder and the experiment's id.
        clock: Tells the hour that the id begins with.
        draw: Draws the four characters that it ends with.

    Returns:
        The published folder.

    Raises:
        ExperimentError: If the parent cannot be written to, or no free id is found.
        RunFailedError: If the disk is full or fails.
    """
    parent = Path(parent)
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_made(error, f"{parent}: cannot make the folder for experiments") from error
    for _ in range(100):
        experiment_id = new_experiment_id(clock(), draw())
        target, staging = parent / experiment_id, parent / f".{experiment_id}-{os.getpid()}"
        if target.exists() or staging.exists():
            continue
        try:
            staging.mkdir()
            fill(staging, experiment_id)
            staging.rename(target)
        except FileExistsError:  # another process took the name in between
            continue
        except (OSError, RunFailedError) as error:
            reason = error.__cause__ if isinstance(error, RunFailedError) else error
            if target.exists():
                continue
            if not isinstance(reason, OSError):
                raise
            raise _not_made(reason, f"{parent}: cannot make the experiment's folder") from reason
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return target
    raise ExperimentError(f"{parent}: found no free experiment id in 100 draws")


def _not_made(reason: OSError, what: str) -> ExperimentError | RunFailedError:
    """Return the error of a folder that cannot be made: of a disk that fails, or of a place that was badly chosen."""
    kind = RunFailedError if reason.errno in (*_NO_ROOM, errno.EFBIG, errno.EIO) else ExperimentError
    return kind(f"{what} ({reason.strerror})")


def read_description(folder: PathLike) -> dict[str, object]:
    """Read ``experiment.json``.

    Raises:
        ExperimentError: If the folder is no experiment, or of a newer format; names the runs below it.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        from candy_monai.experiment.below import what_is_below

        below = what_is_below(folder)
        raise ExperimentError(f"{folder}: not an experiment folder (it has no {DESCRIPTION}){below}")
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExperimentError(f"{path}: not readable as JSON ({error})") from error
    found = description.get("format") if isinstance(description, dict) else type(description).__name__
    if not isinstance(description, dict) or found not in READABLE_FORMATS:
        raise ExperimentError(f"{path}: format {found!r}, this version reads formats {READABLE_FORMATS}")
    return description


def example_shape(folder: PathLike, description: Json) -> Shape:
    """Return the shape ``(C, *spatial)`` that a run's network was built for.

    Args:
        folder: The experiment folder, for messages.
        description: What ``experiment.json`` says.

    Raises:
        ExperimentError: If it does not say that.
    """
    network = description.get("network")
    shape = network.get("example_shape") if isinstance(network, dict) else None
    if not isinstance(shape, list) or not shape:
        raise ExperimentError(f"{folder}: {DESCRIPTION} does not say the shape the network was built for")
    return tuple(int(extent) for extent in shape)


def environment() -> dict[str, str | None]:
    """Return the versions that a run depends on, and the commit of the working folder if it is a git checkout."""
    names = ("candy-monai", "torch", "monai", "numpy", "nibabel")
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {**versions, "git_commit": _git_commit()}


def _git_commit() -> str | None:
    try:
        command = ["git", "rev-parse", "HEAD"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


@contextmanager
def disk_failures_of(folder: Path) -> Iterator[None]:
    """Say of a disk that fails while a block writes which run it is and what is to be done.

    Args:
        folder: The run's folder.

    Raises:
        RunFailedError: Instead of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        what, then = "it cannot be written to", "mend that"
        if error.errno == errno.EFBIG:
            what, then = "a file would be larger than it may be", "raise the limit, or move it to another disk"
        elif error.errno in _NO_ROOM:
            what, then = "the disk is full", "make room"
        reason = error.strerror or error
        raise RunFailedError(
            f"{folder}: {what} ({reason}). The last saved state is whole: {then}, then continue this run"
        ) from error
