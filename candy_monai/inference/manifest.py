"""The manifest beside predictions: the model, files and settings of each label map, with volumes and quality.

``manifest.json`` contains the cases of all runs that predicted into a folder. It is rewritten atomically after cases,
but only as often as takes a small share of the time, and at the end. ``statistics.csv`` is a table of its contents.
"""

from __future__ import annotations

import csv
import io
import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock

from candy_monai.data.images.geometry import Geometry
from candy_monai.data.images.reading import geometry_of
from candy_monai.errors import BadInputError
from candy_monai.experiment.description import as_json, installed_versions
from candy_monai.files import atomic_write_text, digest_of_file
from candy_monai.text import read_json

if TYPE_CHECKING:
    from candy_monai.inference.inputs import InputCase
    from candy_monai.inference.prediction import Prediction

MANIFEST, STATISTICS = "manifest.json", "statistics.csv"
FORMAT = 1

_LOCK = ".manifest.lock"
_PAUSES = 20
"""The manifest is rewritten after at least this many times the duration of the last write, and at the end."""

Classes = Sequence[tuple[str, Sequence[int]]]
"""The name of each class or region, and its ids in a label map."""


class Manifest:
    """Collects the predictions of one run and merges them into the manifest of their folder.

    Args:
        folder: The folder of the label maps.
        models: Descriptions of the models as plain values, a mapping for each experiment.
        settings: The settings of the prediction.
        classes: The classes or regions whose voxels are counted.
        statistics: Whether to write ``statistics.csv``; an existing one is always updated.

    Raises:
        BadInputError: If ``manifest.json`` in the folder is not a manifest.
    """

    def __init__(
        self,
        folder: Path,
        *,
        models: Sequence[Mapping[str, object]],
        settings: Mapping[str, object],
        classes: Classes,
        statistics: bool = False,
    ) -> None:
        self._folder = folder
        self._classes = classes
        self._statistics = statistics
        self._run: dict[str, Any] = {
            "id": uuid.uuid4().hex[:12],
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": installed_versions("candy-monai", "torch", "monai"),
            "models": as_json(list(models)),
            "settings": as_json(settings),
            "failures": {},
        }
        self._cases: dict[str, dict[str, Any]] = {}
        self._next_s = 0.0
        self._present()

    def made_already(self, cases: Iterable[InputCase]) -> set[str]:
        """Return the cases whose files are in the folder, written by the same models with the same settings.

        The manifest must contain a run with the same versions, models and settings, and the images that it read and the
        files that it wrote must be unchanged. The machine and its memory do not matter.
        """
        content = self._present()
        what = _what_predicts(self._run)
        runs = {run["id"] for run in content["runs"] if _what_predicts(run) == what}
        return {
            case.case_id
            for case in cases
            if (entry := content["cases"].get(case.case_id)) is not None
            and entry["run"] in runs
            and self._holds(entry, case)
        }

    def _holds(self, entry: Mapping[str, Any], case: InputCase) -> bool:
        """Return whether the files that an entry records as read and written are unchanged."""
        written, read = entry.get("written", []), entry["inputs"]
        there = [self._folder / file["file"] for file in written]
        return all(
            len(known) == len(files) > 0 and all(map(_is_still, known, files))
            for known, files in ((written, there), (read, case.files))
        )

    def add(self, case: InputCase, prediction: Prediction, files: Sequence[Path], *, seconds: float) -> None:
        """Add a written case, with its files: its label map first."""
        geometry = case.geometry()
        self._cases[case.case_id] = {
            "run": self._run["id"],
            "file": files[0].name,
            "inputs": [_described_file(file) for file in case.files],
            "written": [{**_described_file(file), "file": file.name} for file in files],
            "seconds": round(seconds, 3),
            "shape": list(prediction.labels.shape[1:]),
            "spacing_mm": None if geometry is None or geometry.is_picture else geometry.spacing_mm,
            "classes": self._counted(prediction, _ml_of_a_voxel(geometry, prediction)),
            "quality": None if prediction.quality is None else prediction.quality.to_dict(),
        }
        if time.monotonic() >= self._next_s:
            with suppress(OSError):  # an error of the last write is raised
                self.save()

    def add_failure(self, case_id: str, error: Exception) -> None:
        """Add a case that could not be predicted; an earlier prediction of it is kept."""
        self._run["failures"][case_id] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        self._cases.pop(case_id, None)

    def finish(self) -> None:
        """Merge new cases, if any, into the files, and remove the lock; see `save`."""
        lacks_table = (
            self._statistics and (self._folder / MANIFEST).exists() and not (self._folder / STATISTICS).exists()
        )
        if self._cases or lacks_table:
            self.save(removes_lock=True)

    def save(self, *, removes_lock: bool = False) -> None:
        """Merge new cases into the files, and drop cases whose label maps have been removed.

        Raises:
            BadInputError: If the manifest was replaced by another file.
            OSError: If it cannot be written.
        """
        began = time.monotonic()
        with FileLock(self._folder / _LOCK):  # several runs may predict parts of the same images
            content = self._present()
            cases = dict(sorted({**content["cases"], **self._cases}.items()))
            cases = {case_id: case for case_id, case in cases.items() if (self._folder / case["file"]).exists()}
            used = {entry["run"] for entry in cases.values()} | {self._run["id"]}
            runs = [run for run in content["runs"] if run["id"] in used - {self._run["id"]}]
            made = {"format": FORMAT, "runs": [*runs, *([self._run] if self._cases else [])], "cases": cases}
            atomic_write_text(self._folder / MANIFEST, json.dumps(as_json(made), indent=1) + "\n", durable=False)
            if self._statistics or (self._folder / STATISTICS).exists():
                atomic_write_text(self._folder / STATISTICS, _table(cases), durable=False)
            if removes_lock:  # while it is locked: a waiting process then makes a new one
                with suppress(OSError):  # on systems where an open file cannot be removed
                    (self._folder / _LOCK).unlink()
        ended = time.monotonic()
        self._next_s = ended + _PAUSES * (ended - began)

    def _present(self) -> dict[str, Any]:
        """Return the existing manifest."""
        path = self._folder / MANIFEST
        if not path.exists():
            return {"runs": [], "cases": {}}
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            raise BadInputError(
                f"{path}: cannot be read as a manifest of predictions ({error}): move it away"
            ) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT or not _is_whole(content):
            raise BadInputError(
                f"{path}: found other content, expected a manifest of predictions of format {FORMAT}: move it away, or "
                "choose another folder"
            )
        return content

    def _counted(self, prediction: Prediction, ml: float | None) -> list[dict[str, Any]]:
        labels = prediction.labels.as_tensor().flatten()
        largest = max((label_id for _, ids in self._classes for label_id in ids), default=0)
        if labels.amax() > largest:  # from custom postprocessing
            labels = labels[labels <= largest]
        counts = torch.bincount(labels, minlength=largest + 1)
        found = []
        for name, ids in self._classes:
            voxels = int(counts[list(ids)].sum())
            volume = None if ml is None else round(voxels * ml, 6)
            found.append({"name": name, "ids": list(ids), "voxels": voxels, "ml": volume})
        return found


def regions_in(folder: Path) -> list[str]:
    """Return the names of the overlapping regions that the manifest of a folder counts; none without a manifest."""
    try:
        content = read_json(folder / MANIFEST)
    except (OSError, ValueError):
        return []
    if not isinstance(content, dict) or not _is_whole(content):
        return []
    classes = {found["name"]: found["ids"] for case in content["cases"].values() for found in case["classes"]}
    return list(classes) if any(len(ids) > 1 for ids in classes.values()) else []


def _what_predicts(run: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the values of a run that determine its label maps, as in JSON."""
    models = [
        {key: value for key, value in model.items() if key != "folder"}
        | {"device": str(model.get("device")).partition(":")[0]}
        for model in run.get("models") or ()
    ]
    settings = {key: value for key, value in (run.get("settings") or {}).items() if key != "memory"}
    return tuple(json.loads(json.dumps([models, settings, run.get("versions")])))


def _is_whole(content: Mapping[str, Any]) -> bool:
    runs, cases = content.get("runs"), content.get("cases")
    return (
        isinstance(runs, list)
        and isinstance(cases, dict)
        and all(isinstance(run, dict) and isinstance(run.get("id"), str) for run in runs)
        and all(map(_is_case, cases.values()))
    )


def _is_case(case: object) -> bool:
    return (
        isinstance(case, dict)
        and all(isinstance(case.get(name), str) for name in ("run", "file"))
        and _are_described(case.get("inputs"))
        and _are_described(case.get("written", []))  # not written by earlier versions
        and isinstance(case.get("classes"), list)
        and all(
            isinstance(found, dict) and {"name", "voxels", "ml"} <= found.keys() and isinstance(found.get("ids"), list)
            for found in case["classes"]
        )
    )


def _are_described(files: object) -> bool:
    return isinstance(files, list) and all(
        isinstance(file, dict) and isinstance(file.get("file"), str) and {"bytes", "sha256"} <= file.keys()
        for file in files
    )


def _described_file(file: Path) -> dict[str, Any]:
    """Return a file's size, modification time and digest; for a DICOM series, the digest of its files' digests."""
    try:
        size, modified_ns = _stamp(file)
        digests = [digest_of_file(part) for part in _parts(file)]
        digest = sha256("".join(digests).encode()).hexdigest() if file.is_dir() else digests[0]
    except OSError:  # removed meanwhile
        return {"file": str(file), "bytes": None, "modified_ns": None, "sha256": None}
    return {"file": str(file), "bytes": size, "modified_ns": modified_ns, "sha256": digest}


def _is_still(known: Mapping[str, Any], file: Path) -> bool:
    """Return whether a file is unchanged, by its size, and by its modification time or else its content."""
    try:
        size, modified_ns = _stamp(file)
    except OSError:
        return False
    if known["sha256"] is None or known["bytes"] != size:
        return False
    return bool(known.get("modified_ns") == modified_ns or known["sha256"] == _described_file(file)["sha256"])


def _stamp(file: Path) -> tuple[int, int]:
    """Return the size and the last modification time of a file, or of the files of a series together."""
    found = [part.stat() for part in _parts(file)]
    return sum(part.st_size for part in found), max((part.st_mtime_ns for part in found), default=0)


def _parts(file: Path) -> list[Path]:
    return sorted(entry for entry in file.iterdir() if entry.is_file()) if file.is_dir() else [file]


def _ml_of_a_voxel(geometry: Geometry | None, prediction: Prediction) -> float | None:
    """Return a voxel's volume; None for an image without a position in space or with two axes."""
    if geometry is not None:
        return geometry.voxel_ml
    grid = geometry_of(prediction.labels)
    return None if np.array_equal(grid.affine, np.eye(4)) else grid.voxel_ml  # the identity: a tensor without geometry


def _table(cases: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table with a row for each case and class."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["case", "class", "ids", "voxels", "ml"])
    for case_id, case in cases.items():
        for found in case["classes"]:
            ids = " ".join(map(str, found["ids"]))
            table.writerow([case_id, found["name"], ids, found["voxels"], "" if found["ml"] is None else found["ml"]])
    return text.getvalue()
