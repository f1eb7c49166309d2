"""Write label maps where their images are, beside the work of predicting. Predicts nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from monai.data import MetaTensor

from candy_monai.data.images.formats import READABLE
from candy_monai.data.images.names import image_suffix
from candy_monai.data.images.writing import save_image
from candy_monai.errors import BadInputError
from candy_monai.files import check_writable
from candy_monai.inference.found import InputCase
from candy_monai.inference.inputs import Inputs


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
        self.wait()
        self._pending = self._pool.submit(self._write, prediction, case, path)

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._pool.shutdown()

    def wait(self) -> None:
        """Return when nothing is being written any more."""
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
        save_image(prediction.probabilities.as_tensor(), _beside(path, case), like=prediction.labels)


def check_target(
    cases: Sequence[InputCase], paths: Sequence[Path], target: Path, source: Inputs, *, probabilities: bool = False
) -> None:
    """Refuse to write beside the images or over each other, and make the folder.

    Args:
        cases: The cases.
        paths: Where their label maps go.
        target: The folder.
        source: Where the cases come from.
        probabilities: Whether probabilities are written, too.

    Raises:
        BadInputError: If the folder holds images to predict, cannot be made, or two files would be the same.
    """
    folders = {file.resolve().parent for case in cases for file in case.files}
    is_source = isinstance(source, str | Path) and target.resolve() == Path(source).resolve()
    if is_source or target.resolve() in folders:
        raise BadInputError(
            f"{target}: holds the images to predict, and a label map would be taken for one of them the next time; "
            "choose another folder for the label maps"
        )
    written = [*paths, *(map(_beside, paths, cases) if probabilities else ())]
    twice = sorted({path.name for path in written if written.count(path) > 1})
    if twice:
        raise BadInputError(f"{target}: several cases would be written to {twice[0]}; give them different names")
    if image_suffix(target) in READABLE and not target.is_dir():
        raise BadInputError(
            f"{target}: looks like a file, and label maps are written into a folder under their images' names; "
            "name a folder"
        )
    check_writable(target)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(f"{target}: the folder cannot be made ({error.strerror}); choose another") from error


def left_over(
    paths: Mapping[str, Path], failures: Collection[str], *, probabilities: bool
) -> Iterator[tuple[Path, str]]:
    """Yield the files of an earlier prediction that do not belong to this one, and why. Nothing is removed.

    Args:
        paths: Where the label maps of all cases go.
        failures: The cases that could not be predicted.
        probabilities: Whether probabilities were written, too.
    """
    for case_id, path in paths.items():
        files = (path, _probabilities_of(path, case_id))
        if case_id in failures:
            yield from ((file, f"{case_id} could not be predicted this time") for file in files if file.exists())
        elif not probabilities and files[1].exists():
            yield files[1], "the label map beside it is new, and probabilities were not asked for this time"


def _beside(path: Path, case: InputCase) -> Path:
    """Return where the probabilities of a case go."""
    return _probabilities_of(path, case.case_id)


def _probabilities_of(path: Path, case_id: str) -> Path:
    return path.with_name(f"{case_id}_probabilities.nii.gz")


def written_suffix(case: InputCase) -> str:
    """Return the suffix for a case's label map: its image's where a label map can be written so in one file."""
    if not case.files:
        return ".nii.gz"
    suffix = image_suffix(case.files[0])
    return {".jpg": ".png", ".jpeg": ".png", ".mhd": ".mha", ".nhdr": ".nrrd"}.get(suffix, suffix)
