"""A cache of the findings of each case of a dataset, so that only new and changed cases are decoded.

It has one small file per case in a folder chosen by the caller, never the dataset's. Files may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import threading
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.nnunet_description import DatasetDescription, NNUNetCase
from candy_monai.data.inspection.digest import case_digest, case_stamp, description_key
from candy_monai.data.inspection.inspect import MeasuredCase
from candy_monai.files import atomic_path

_FORMAT = 3
"""Increased when a case is checked for more, so that findings of earlier versions are not used."""

_SUFFIX = ".cases"
_OF_BEFORE = "*.fingerprint-*.json"


@dataclass(frozen=True, kw_only=True)
class CaseFindings:
    """The result of decoding a case.

    Attributes:
        problems: Problems that would prevent or invalidate training.
        warnings: Unusual properties, which may be intended.
        without_spacing: Files without spacing whose format supports it.
        measured: Measurements for the fingerprint and the comparison of cases; None if there are problems.
        colours: The colour of each id in the label map, if that has a palette.
    """

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    without_spacing: tuple[str, ...] = ()
    measured: MeasuredCase | None
    colours: Mapping[int, str] = field(default_factory=dict)

    def has_samples(self, count: int) -> bool:
        """Return whether there are at least this many samples, or all of the case."""
        return self.measured is None or self.measured.whole.shape[1] >= min(
            count, math.prod(self.measured.fingerprint.shape)
        )

    def thinned(self, count: int) -> CaseFindings:
        """Return the findings with at most this many samples."""
        return self if self.measured is None else replace(self, measured=self.measured.thinned(count))


_PARSING = threading.Lock()
"""NumPy parses each array's header by `ast`, which in Python 3.11 occasionally raises SystemError in several threads
(python/cpython#106905)."""


class CaseCache:
    """The findings of a dataset's cases, one file each, in a folder within ``folder``, created by the first `save`."""

    def __init__(self, folder: PathLike, description: DatasetDescription) -> None:
        self.folder = Path(folder) / f"{quote(description.name, safe=' ')}{_SUFFIX}"
        self._context = repr((_FORMAT, description_key(description)))
        self._new = [each for each in (self.folder, *self.folder.parents) if not each.exists()]

    def key(self, case: NNUNetCase, content: str | None = None) -> str | None:
        """Return the key of a case's findings; None if its files cannot be read.

        A file counts as changed when it was written to, even if its digest is the same: the check must find files that
        are damaged in the middle. ``content`` is the case's digest, if it is known already.
        """
        try:
            parts = (self._context, case.case_id, content or case_digest(case), case_stamp(case))
        except OSError:
            return None
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()

    def load(self, key: str) -> CaseFindings | None:
        """Read the findings of a case; None if there are none, or they are damaged."""
        try:
            with _PARSING, np.load(self.folder / f"{key}.npz", allow_pickle=False) as arrays:
                about: Mapping[str, Any] = json.loads(bytes(arrays["about"]))
                samples = {name: arrays[name] for name in ("foreground", "whole") if name in arrays}
            return CaseFindings(
                warnings=tuple(about["warnings"]),
                without_spacing=tuple(about["without_spacing"]),
                measured=None if about["measured"] is None else MeasuredCase.from_dict(about["measured"] | samples),
                colours={int(label_id): colour for label_id, colour in about["colours"].items()},
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return None

    def save(self, key: str, findings: CaseFindings) -> None:
        """Write the findings of a case without problems; problems may be due to the installed packages."""
        if findings.problems:
            return
        measured = None if findings.measured is None else findings.measured.to_dict()
        samples = {} if measured is None else {name: measured.pop(name) for name in ("foreground", "whole")}
        about = {name: getattr(findings, name) for name in ("warnings", "without_spacing", "colours")}
        about["measured"] = measured
        encoded = np.frombuffer(json.dumps(about, allow_nan=False).encode(), np.uint8)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / f"{key}.npz", durable=False) as temporary, temporary.open("wb") as file:
            np.savez(file, about=encoded, **samples)

    def remove_if_new(self) -> None:
        """Remove the folder and its parents, if they did not exist when this object was created."""
        if self.folder in self._new:
            shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self._new[1:]:
            with suppress(OSError):  # it is not empty, or was never created
                folder.rmdir()


def has_been_used(folder: PathLike) -> bool:
    """Return whether a folder contains findings of any dataset, of this or an earlier version."""
    return any(any(Path(folder).glob(pattern)) for pattern in (f"*{_SUFFIX}", _OF_BEFORE))
