"""What was found out about a dataset, kept so that it is found out once: its fingerprint and that it is sound.

Owns two small files a dataset, in a folder that the caller chooses, never the dataset's. Both can be deleted at any
time. What is found out is up to ``candy_monai.data.inspection`` and ``candy_monai.data.nnunet_checks``.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from urllib.parse import quote

from candy_monai.aliases import PathLike
from candy_monai.data.digest import CaseSource, dataset_digest
from candy_monai.data.fingerprint import Fingerprint
from candy_monai.data.inspection import inspect
from candy_monai.data.nnunet import NNUNetDataset
from candy_monai.data.nnunet_checks import DatasetReport, check_dataset
from candy_monai.data.nnunet_files import find_cases
from candy_monai.errors import BadInputError, DatasetError
from candy_monai.files import atomic_write_text

_INSPECTION = 4
"""Raised when ``inspect`` changes what it finds, so that what an earlier version found is not taken for it."""

_CHECK = 4
"""Raised when ``check_dataset`` looks for more."""


def inspect_once(dataset: CaseSource, folder: PathLike, *, num_workers: int | None = None) -> Fingerprint:
    """Return a dataset's fingerprint: the stored one as long as the dataset's content is the same.

    Args:
        dataset: The dataset.
        folder: Where derived data lie, for example that of the stores; made when missing.
        num_workers: For ``inspect``, where it is needed.

    Raises:
        DatasetError: As ``inspect`` does; nothing is stored then.
    """
    digest, name = dataset_digest(dataset), dataset.description.name
    path = _file(folder, name, digest, f"fingerprint-{_INSPECTION}")
    try:
        stored = Fingerprint.from_json(path.read_text(encoding="utf-8"))
        if (stored.digest, stored.dataset_name) == (digest, name):
            return stored
    except (OSError, UnicodeDecodeError, BadInputError):
        pass  # there is none, or it is damaged: it can be made again
    fingerprint = inspect(dataset, num_workers=num_workers)
    if fingerprint.digest == digest:  # otherwise somebody is writing to the dataset
        _store(path, fingerprint.to_json())
    return fingerprint


def has_been_used(folder: PathLike) -> bool:
    """Say whether a folder holds what was found out about any dataset."""
    return any(Path(folder).glob("*.fingerprint-*.json"))


def check_once(dataset: PathLike, folder: PathLike, *, num_workers: int | None = None) -> DatasetReport:
    """Return what ``check_dataset`` finds, without decoding a dataset again that was found sound and has not changed.

    Only a report without problems is stored: problems may lie in what is installed, and are about to be mended.

    Args:
        dataset: The dataset's folder.
        folder: Where derived data lie, for example that of the stores; made when missing.
        num_workers: For ``check_dataset``, where it is needed.
    """
    before = _state(Path(dataset))
    if before is None:
        return check_dataset(dataset, num_workers=num_workers)
    path = _file(folder, Path(dataset).resolve().name, before, f"check-{_CHECK}")
    try:
        warnings = json.loads(path.read_text(encoding="utf-8"))["warnings"]
        return DatasetReport(problems=(), warnings=tuple(str(warning) for warning in warnings))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or it is damaged: it can be made again
    report = check_dataset(dataset, num_workers=num_workers)
    if not report.problems and _state(Path(dataset)) == before:
        _store(path, json.dumps({"warnings": report.warnings}, indent=1))
    return report


def _state(folder: Path) -> str | None:
    """Return a digest of all that a check looks at; ``None`` where even the list of files has problems.

    A file counts as changed when it was written to, even if the result looks the same: a check is there to find files
    that are damaged in the middle.
    """
    try:
        dataset = NNUNetDataset(folder)
        digest = hashlib.blake2b(dataset_digest(dataset).encode(), digest_size=8)
        test_cases, problems = find_cases(folder, dataset.description, "Ts")
        digest.update(repr(problems).encode())
        for case in (*dataset.cases, *test_cases):
            for path in (*case.images, *([case.label] if case.label else [])):
                status = path.stat()
                digest.update(f"{case.case_id}\0{path.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        for name in ("dataset.json", "splits_final.json"):
            path = folder / name
            digest.update(path.read_bytes() if path.is_file() else b"\0")
    except (OSError, DatasetError):
        return None
    return digest.hexdigest()


def _file(folder: PathLike, name: str, digest: str, kind: str) -> Path:
    return Path(folder) / f"{quote(name, safe=' ')}-{digest}.{kind}.json"


def _store(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, text, durable=False)
