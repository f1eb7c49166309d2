"""What was found out about the single cases of a dataset, kept so that it is found out once.

One small file a case lies in a folder that the caller chooses, never the dataset's. Any can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.nnunet_description import DatasetDescription, NNUNetCase
from candy_monai.data.inspection.digest import case_digest, case_stamp, description_key
from candy_monai.data.inspection.fingerprint import CaseFingerprint
from candy_monai.data.inspection.inspect import MeasuredCase
from candy_monai.data.inspection.suspicions import CaseFacts
from candy_monai.data.values import frozen
from candy_monai.files import atomic_path

_FORMAT = 1
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
        facts: What is compared between cases; None where there are problems.
        measured: What the fingerprint needs; None where there are problems, and of test cases.
    """

    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    without_spacing: tuple[str, ...]
    facts: CaseFacts | None
    measured: MeasuredCase | None

    def has_samples(self, count: int) -> bool:
        """Return whether so many samples are there, or all that the case has."""
        return self.measured is None or self.measured.whole.shape[1] >= min(
            count, math.prod(self.measured.fingerprint.shape)
        )


class CaseCache:
    """The findings of a dataset's cases, one file each.

    Args:
        folder: Where derived data lie, for example that of the stores; made by the first `save`.
        description: The dataset's description, on which findings depend.
    """

    def __init__(self, folder: PathLike, description: DatasetDescription) -> None:
        self._folder = Path(folder) / f"{quote(description.name, safe=' ')}{_SUFFIX}"
        self._context = repr((_FORMAT, description_key(description)))

    def key(self, case: NNUNetCase, content: str | None = None, *, is_training: bool = True) -> str | None:
        """Return what a case's findings are kept under; None where its files cannot be read.

        A file counts as changed when it was written to, even if the result looks the same: a check is there to find
        files that are damaged in the middle.

        Args:
            case: The case.
            content: Its digest, where it is known already.
            is_training: Whether it is a training case, which are measured, too.
        """
        try:
            parts = (self._context, str(is_training), case.case_id, content or case_digest(case), case_stamp(case))
        except OSError:
            return None
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()

    def load(self, key: str) -> CaseFindings | None:
        """Return what was found in a case; None where nothing is kept, or it is damaged."""
        try:
            with np.load(self._folder / f"{key}.npz", allow_pickle=False) as arrays:
                about = json.loads(bytes(arrays["about"]))
                samples = {name: arrays[name] for name in ("foreground", "whole") if name in arrays}
            return _findings(about, samples)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return None

    def save(self, key: str, findings: CaseFindings) -> None:
        """Keep what was found in a case, if it has no problem: that may lie in what is installed."""
        if findings.problems:
            return
        measured, facts = findings.measured, findings.facts
        about = {
            "warnings": findings.warnings,
            "without_spacing": findings.without_spacing,
            "facts": None if facts is None else _plain(facts),
            "fingerprint": None if measured is None else asdict(measured.fingerprint),
            "is_picture": None if measured is None else measured.is_picture,
        }
        arrays: dict[str, Any] = {"about": np.frombuffer(json.dumps(about, allow_nan=False).encode(), np.uint8)}
        if measured is not None:
            arrays |= {"foreground": measured.foreground, "whole": measured.whole}
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._folder / f"{key}.npz", durable=False) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)


def has_been_used(folder: PathLike) -> bool:
    """Return whether a folder holds what was found out about any dataset, by this version or one before."""
    return any(any(Path(folder).glob(pattern)) for pattern in (f"*{_SUFFIX}", _OF_BEFORE))


def _plain(facts: CaseFacts) -> dict[str, Any]:
    ids = None if facts.label_ids is None else sorted(facts.label_ids)
    return {**asdict(facts), "content": facts.content.hex(), "label_ids": ids}


def _findings(about: Mapping[str, Any], samples: Mapping[str, Any]) -> CaseFindings:
    facts, fingerprint = about["facts"], about["fingerprint"]
    if facts is not None:
        ids = facts["label_ids"]
        known: dict[str, Any] = {name: frozen(value) for name, value in facts.items()}
        known |= {"content": bytes.fromhex(facts["content"]), "label_ids": None if ids is None else frozenset(ids)}
    return CaseFindings(
        problems=(),
        warnings=tuple(about["warnings"]),
        without_spacing=tuple(about["without_spacing"]),
        facts=None if facts is None else CaseFacts(**known),
        measured=None
        if fingerprint is None
        else MeasuredCase(
            fingerprint=CaseFingerprint.from_dict(fingerprint), is_picture=about["is_picture"], **samples
        ),
    )
