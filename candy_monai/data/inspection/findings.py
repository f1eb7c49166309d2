"""A cache of what was found in each case of a dataset, so that only new and changed cases are decoded.

One small file a case lies in a folder that the caller chooses, never the dataset's. Any can be deleted at any time.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.nnunet_description import DatasetDescription, NNUNetCase
from candy_monai.data.inspection.digest import case_digest, case_stamp, description_key
from candy_monai.data.inspection.inspect import MeasuredCase
from candy_monai.files import atomic_path

_FORMAT = 2
"""Raised when more is looked for in a case, so that what an earlier version found is not taken for it."""

_SUFFIX = ".cases"
_OF_BEFORE = "*.fingerprint-*.json"


@dataclass(frozen=True, kw_only=True)
class CaseFindings:
    """What one decoding of a case yields.

    Attributes:
        problems: What would stop training or make it wrong.
        warnings: What is unusual and may be intended.
        without_spacing: The files that say nothing of their spacing although they could.
        measured: What the fingerprint and the comparison of cases need; None where there are problems.
    """

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    without_spacing: tuple[str, ...] = ()
    measured: MeasuredCase | None

    def has_samples(self, count: int) -> bool:
        """Return whether so many samples are there, or all that the case has."""
        return self.measured is None or self.measured.whole.shape[1] >= min(
            count, math.prod(self.measured.fingerprint.shape)
        )

    def thinned(self, count: int) -> CaseFindings:
        """Return the findings with so many samples at most."""
        return self if self.measured is None else replace(self, measured=self.measured.thinned(count))


_PARSING = threading.Lock()
"""NumPy parses each array's header by `ast`, which in Python 3.11 now and then raises SystemError if threads do so at
once (python/cpython#106905)."""


class CaseCache:
    """The findings of a dataset's cases, one file each, in a folder within ``folder``, which the first `save` makes."""

    def __init__(self, folder: PathLike, description: DatasetDescription) -> None:
        self.folder = Path(folder) / f"{quote(description.name, safe=' ')}{_SUFFIX}"
        self._context = repr((_FORMAT, description_key(description)))
        self._new = [each for each in (self.folder, *self.folder.parents) if not each.exists()]

    def key(self, case: NNUNetCase, content: str | None = None) -> str | None:
        """Return what a case's findings are kept under; None where its files cannot be read.

        A file counts as changed when it was written to, even if the result looks the same: a check is there to find
        files that are damaged in the middle. ``content`` is the case's digest, where it is known already.
        """
        try:
            parts = (self._context, case.case_id, content or case_digest(case), case_stamp(case))
        except OSError:
            return None
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()

    def load(self, key: str) -> CaseFindings | None:
        """Return what was found in a case; None where nothing is kept, or it is damaged."""
        try:
            with _PARSING, np.load(self.folder / f"{key}.npz", allow_pickle=False) as arrays:
                about: Mapping[str, Any] = json.loads(bytes(arrays["about"]))
                samples = {name: arrays[name] for name in ("foreground", "whole") if name in arrays}
            return CaseFindings(
                warnings=tuple(about["warnings"]),
                without_spacing=tuple(about["without_spacing"]),
                measured=None if about["measured"] is None else MeasuredCase.from_dict(about["measured"] | samples),
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return None

    def save(self, key: str, findings: CaseFindings) -> None:
        """Write what was found in a case without problems; a problem may lie in what is installed."""
        if findings.problems:
            return
        measured = None if findings.measured is None else findings.measured.to_dict()
        samples = {} if measured is None else {name: measured.pop(name) for name in ("foreground", "whole")}
        about = {"warnings": findings.warnings, "without_spacing": findings.without_spacing, "measured": measured}
        encoded = np.frombuffer(json.dumps(about, allow_nan=False).encode(), np.uint8)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.folder / f"{key}.npz", durable=False) as temporary, temporary.open("wb") as file:
            np.savez(file, about=encoded, **samples)

    def remove_if_new(self) -> None:
        """Remove the folder, and those above it, if they were not there when this was made."""
        if self.folder in self._new:
            shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self._new[1:]:
            with suppress(OSError):  # something else is in it by now, or it was never made
                folder.rmdir()


def has_been_used(folder: PathLike) -> bool:
    """Return whether a folder holds what was found out about any dataset, by this version or one before."""
    return any(any(Path(folder).glob(pattern)) for pattern in (f"*{_SUFFIX}", _OF_BEFORE))
