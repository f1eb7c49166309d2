"""The files of predictions: their paths, how they are written, and the errors for failed cases."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from candy_monai.data.images import dicom
from candy_monai.data.images.formats import DETACHED, READABLE, codec_of
from candy_monai.data.images.names import image_suffix
from candy_monai.data.images.writing import save_image
from candy_monai.data.values import repeated
from candy_monai.errors import BadInputError, CandyError
from candy_monai.files import atomic_path, check_writable
from candy_monai.inference.dicom_seg import Segment, save_dicom_seg
from candy_monai.inference.inputs import InputCase, Inputs
from candy_monai.inference.manifest import Manifest
from candy_monai.inference.prediction import Prediction

PROBABILITIES = "_probabilities"
"""The suffix of the case id in the name of a file of probabilities, beside the label map."""

IN_ONE_FILE = {".jpg": ".png", ".jpeg": ".png", **DETACHED}
"""The format of label maps whose image format is lossy or needs several files."""


class PredictionError(CandyError):
    """Some cases could not be predicted; the others were predicted.

    Args:
        failures: The errors, by case.
        written: The files of the other cases.
    """

    def __init__(self, failures: dict[str, Exception], written: Sequence[Path]) -> None:
        self.failures = dict(failures)
        self.written = tuple(written)
        lines = ""
        for case_id, error in failures.items():
            kind = "" if isinstance(error, CandyError) else f"{type(error).__name__}: "
            lines += f"\n  - {case_id}: {kind}{' '.join(str(error).split())}"
        count = len(failures) + len(written)
        others = "the others are done" if written else "none is done"
        super().__init__(f"{len(failures)} of {count} cases could not be predicted; {others}:{lines}")


class NothingPredictedError(PredictionError, BadInputError):
    """No case could be predicted, because each of them is bad input."""


def prediction_error(failures: dict[str, Exception], written: Sequence[Path]) -> PredictionError:
    """Return the error for cases that could not be predicted; bad input if all cases were."""
    is_input = not written and all(isinstance(error, BadInputError) for error in failures.values())
    return (NothingPredictedError if is_input else PredictionError)(failures, written)


def write_prediction(
    prediction: Prediction,
    case: InputCase,
    path: Path,
    failures: dict[str, Exception],
    manifest: Manifest,
    segments: Sequence[Segment] | None = None,
    *,
    seconds: float,
) -> None:
    """Write a prediction in the format of its image, with other requested files; record errors in the failures."""
    labels, probabilities = prediction.labels, prediction.probabilities
    segmentation, files = _segmentation_of(path, case.case_id), [path]
    try:
        with nullcontext() if segments is None else atomic_path(segmentation, durable=False) as apart:
            if apart is not None:
                # Written first, since its headers may be invalid, and put in place last. An earlier file is removed
                # before the label map changes: an interruption leaves none of another label map.
                save_dicom_seg(labels.as_tensor(), apart, series=case.files[0], segments=segments or ())
                segmentation.unlink(missing_ok=True)
            save_image(labels.as_tensor(), path, like=case.files[0] if case.files else labels)
            if probabilities is not None:
                files.append(_probabilities_of(path, case.case_id))
                save_image(probabilities.as_tensor(), files[-1], like=labels)
        manifest.add(case, prediction, [*files, *([] if segments is None else [segmentation])], seconds=seconds)
    except Exception as error:  # such as a format that cannot hold the ids: other cases may succeed
        failures[case.case_id] = error


def target_paths(
    cases: Sequence[InputCase], target: Path, source: Inputs, *, probabilities: bool = False
) -> dict[str, Path]:
    """Return the path for the label map of each case, and create the folder.

    Raises:
        BadInputError: If the folder holds images to predict, cannot be created, or two cases have the same path.
    """
    files = [file.resolve() for case in cases for file in case.files]
    folders = {*files, *(file.parent for file in files)}
    is_source = isinstance(source, str | Path) and target.resolve() == Path(source).resolve()
    if is_source or target.resolve() in folders:
        raise BadInputError(
            f"{target}: contains the images to predict, and a label map there would be taken for an image in the next "
            "prediction; choose another folder for the label maps"
        )
    paths = [target / f"{case.case_id}{_suffix(case)}" for case in cases]
    written = [path.name for path in paths]
    if probabilities:
        written += [_probabilities_of(path, case.case_id).name for path, case in zip(paths, cases, strict=True)]
    if twice := repeated(written):
        raise BadInputError(f"{target}: several cases would be written to {twice[0]}; give them different names")
    if image_suffix(target) in READABLE and not target.is_dir():
        raise BadInputError(
            f"{target}: looks like a file, but label maps are written into a folder, under the names of their images; "
            "name a folder"
        )
    check_writable(target)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInputError(f"{target}: the folder cannot be created ({error.strerror}); choose another") from error
    return {case.case_id: path for case, path in zip(cases, paths, strict=True)}


def left_over(
    paths: Mapping[str, Path], failures: Collection[str], *, probabilities: bool, dicom_seg: bool = False
) -> Iterator[tuple[Path, str]]:
    """Yield the files of an earlier prediction that do not belong to this one, with the reason. Removes nothing."""
    for case_id, path in paths.items():
        files = (path, _probabilities_of(path, case_id), _segmentation_of(path, case_id))
        if case_id in failures:
            yield from ((file, f"{case_id} could not be predicted this time") for file in files if file.exists())
        elif not probabilities and files[1].exists():
            yield files[1], "the label map beside it is new, and probabilities were not requested this time"
        elif not dicom_seg and files[2].exists():
            yield files[2], "the label map beside it is new, and no DICOM SEG was requested this time"


def _probabilities_of(path: Path, case_id: str) -> Path:
    return path.with_name(f"{case_id}{PROBABILITIES}.nii.gz")


def _segmentation_of(path: Path, case_id: str) -> Path:
    return path.with_name(f"{case_id}_seg.dcm")


def _suffix(case: InputCase) -> str:
    """Return the suffix for a case's label map: that of its image, if a label map can be one file of that format."""
    if not case.files:
        return ".nii.gz"
    if codec_of(case.files[0]) is dicom:
        return ".png" if (grid := case.geometry()) is not None and grid.is_picture else ".nii.gz"
    suffix = image_suffix(case.files[0])
    return IN_ONE_FILE.get(suffix, suffix)
