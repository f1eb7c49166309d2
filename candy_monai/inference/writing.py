"""Write label maps where their images are, beside the work of predicting. Predicts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from monai.data import MetaTensor

from candy_monai.data.io import image_suffix, save_image
from candy_monai.errors import BadInputError
from candy_monai.files import check_writable
from candy_monai.inference.inputs import InputCase, Inputs


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What was predicted for one case.

    Attributes:
        case_id: The case.
        labels: Label ids ``(1, *spatial)`` on the image's own grid, with its affine.
        probabilities: ``(classes, *spatial)`` float32 on the same grid, where they were asked for.
    """

    case_id: str
    labels: MetaTensor
    probabilities: MetaTensor | None = None


class Writer:
    """Writes predictions in a thread of its own, and holds at most one that is not written yet.

    Args:
        failures: Gets what went wrong, by case.
    """

    def __init__(self, failures: dict[str, Exception]) -> None:
        self._failures = failures
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, prediction: Prediction, case: InputCase, path: Path) -> None:
        """Have a prediction written; waits for the one before."""
        self._wait()
        self._pending = self._pool.submit(self._write, prediction, case, path)

    def __exit__(self, *_: object) -> None:
        self._wait()
        self._pool.shutdown()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _write(self, prediction: Prediction, case: InputCase, path: Path) -> None:
        try:
            _write(prediction, case, path)
        except Exception as error:  # a format that cannot hold the ids, say: the other cases may be fine
            self._failures[case.case_id] = error


def _write(prediction: Prediction, case: InputCase, path: Path) -> None:
    like = case.files[0] if case.files else prediction.labels
    save_image(prediction.labels.as_tensor(), path, like=like)
    if prediction.probabilities is not None:
        name = f"{case.case_id}_probabilities.nii.gz"
        save_image(prediction.probabilities.as_tensor(), path.with_name(name), like=prediction.labels)


def check_target(cases: Sequence[InputCase], paths: Sequence[Path], target: Path, source: Inputs) -> None:
    """Refuse to write over the images or each other, and make the folder."""
    images = {file.resolve() for case in cases for file in case.files}
    is_source = isinstance(source, str | Path) and target.resolve() == Path(source).resolve()
    if is_source or any(path.resolve() in images for path in paths):
        raise BadInputError(f"{target}: holds the images to predict; choose another folder for the label maps")
    if len(set(paths)) < len(cases):
        raise BadInputError("several cases have the same name, so their label maps would overwrite each other")
    check_writable(target)
    target.mkdir(parents=True, exist_ok=True)


def written_suffix(case: InputCase) -> str:
    """Return the suffix for a case's label map: its image's where a label map can be written so in one file."""
    if not case.files:
        return ".nii.gz"
    suffix = image_suffix(case.files[0])
    return {".jpg": ".png", ".jpeg": ".png", ".mhd": ".mha", ".nhdr": ".nrrd"}.get(suffix, suffix)
