"""From the scores of one case to its prediction on the file's grid, and into files beside the work of predicting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from monai.data import MetaTensor
from torch import Tensor
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.data.images import dicom
from candy_monai.data.images.formats import READABLE, codec_of
from candy_monai.data.images.geometry import Geometry
from candy_monai.data.images.names import image_suffix
from candy_monai.data.images.writing import save_image
from candy_monai.data.pipelines.preprocessing import PreprocessedCase, Preprocessor
from candy_monai.errors import BadInputError, CandyError
from candy_monai.files import atomic_path, check_writable
from candy_monai.inference.buffers import MemoryEstimate, Tile
from candy_monai.inference.dicom_seg import Segment, save_dicom_seg
from candy_monai.inference.inputs import InputCase, Inputs
from candy_monai.inference.manifest import Manifest
from candy_monai.inference.quality import CaseQuality

if TYPE_CHECKING:
    from candy_monai.data.images.reading import Scan
    from candy_monai.data.pipelines.description import Entry
    from candy_monai.transforms.painting import LabelPainter

PROBABILITIES = "_probabilities"
"""What the id of a case's file of probabilities ends with, beside its label map."""

_IN_ONE_FILE = {".jpg": ".png", ".jpeg": ".png", ".mhd": ".mha", ".nhdr": ".nrrd"}
"""Where a label map cannot be written as its image was: lossless, and in one file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedCase:
    """A case that was read and preprocessed.

    Attributes:
        case_id: The case.
        image: The image as loaded, without its voxels: affine and what else is known of its file.
        shape: Its spatial shape.
        cases: The preprocessed case; one for each of an ensemble's members where they preprocess differently.
    """

    case_id: str
    image: dict[str, object]
    shape: Shape
    cases: tuple[PreprocessedCase, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What was predicted for one case.

    Attributes:
        case_id: The case.
        labels: Label ids ``(1, *spatial)`` on the image's own grid, with its affine.
        probabilities: ``(classes, *spatial)`` float32 on the same grid, where they were asked for.
        quality: What can be said of it without a reference; None where the model does not tell.
    """

    case_id: str
    labels: MetaTensor
    probabilities: MetaTensor | None = None
    quality: CaseQuality | None = None


class PredictionListener:
    """Told how prediction goes; by default it does nothing. Called in the thread that predicts."""

    def on_started(self, num_cases: int, largest: str | None, needed: MemoryEstimate | None) -> None:
        """Prediction is about to start; the largest case and what it takes, where file headers tell."""

    def on_kept(self, num_cases: int, total: int) -> None:
        """So many cases stay as they are, by the same model from the same images; the others are predicted."""

    def on_windows(self, case_id: str, done: int, total: int) -> None:
        """So many of a case's windows were run."""

    def on_case(self, done: int, total: int, case_id: str, error: Exception | None) -> None:
        """A case was written, or ended with an error; the next one may be in the network already."""

    def on_quality(self, case_id: str, quality: CaseQuality) -> None:
        """A case was predicted, and this can be said of it without a reference; `on_case` follows."""

    def on_left_over(self, file: Path, reason: str) -> None:
        """A file of an earlier prediction stays in the folder for the results, and does not belong to this one."""


class PredictionError(CandyError):
    """Some cases could not be predicted; the others were.

    Args:
        failures: What went wrong, by case.
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
    """No case could be predicted, and each of them is bad input."""


def prediction_error(failures: dict[str, Exception], written: Sequence[Path]) -> PredictionError:
    """Return the error for cases that could not be predicted; bad input if nothing was fit to be predicted."""
    is_input = not written and all(isinstance(error, BadInputError) for error in failures.values())
    return (NothingPredictedError if is_input else PredictionError)(failures, written)


def build_prediction(
    case: PreparedCase,
    tiles: Iterable[Tile],
    preprocessor: Preprocessor,
    *,
    axis: int = 0,
    are_probabilities: bool = False,
    with_probabilities: bool = False,
    device: torch.device,
) -> Prediction:
    """Paint a case's label map tile by tile, and every class's probability where these are asked for.

    The label map is the same with and without them, and is that of the greatest probability (the first of equals; of
    independent channels and of regions, of those above 0.5).

    Args:
        case: The case.
        tiles: Its scores, on the grid of its first preprocessed case; in layers along ``axis`` where this is resampled.
        preprocessor: What preprocessed it.
        axis: The axis along which the tiles come.
        are_probabilities: Whether the scores are probabilities instead of logits.
        with_probabilities: Whether to return every class's probability.
        device: Where the scores are.
    """
    preprocessed = case.cases[0]
    if preprocessor.paints_in_parts:
        painter = preprocessor.label_painter(
            preprocessed,
            axis=axis,
            probabilities=are_probabilities,
            with_probabilities=with_probabilities,
            device=device,
        )
        for tile in tiles:
            if painter.resamples or are_probabilities:
                painter.add(tile.place, tile.scores())
            else:
                weights = tile.weights() if with_probabilities and tile.weights is not None else None
                painter.add(tile.place, tile.sums, weights=weights)
        labels = preprocessor.painted_labels(painter, preprocessed)
        whole = preprocessor.painted_probabilities(painter, preprocessed) if with_probabilities else labels
    else:
        scores = _put_together(tiles, tuple(preprocessed.image.shape[1:]))
        labels, whole = preprocessor.restore_whole(scores, preprocessed, are_probabilities=are_probabilities)
    return Prediction(
        case_id=case.case_id,
        labels=MetaTensor(labels.cpu(), meta=dict(case.image)),
        probabilities=MetaTensor(whole.cpu(), meta=dict(case.image)) if with_probabilities else None,
    )


def _put_together(tiles: Iterable[Tile], size: Shape) -> Tensor:
    scores: Tensor | None = None
    for tile in tiles:
        if scores is None:
            scores = tile.sums.new_empty((len(tile.sums), *size), device="cpu")
        scores[(slice(None), *tile.place)] = tile.scores().cpu()
    if scores is None:
        raise ValueError("no scores came for this case")
    return scores


class NoPreprocessing(Preprocessor):
    """Leaves cases of runs without a plan as they are, and their results.

    Args:
        paints: The id that each channel paints where classes are overlapping regions; empty where they are not.
    """

    paints: tuple[int, ...] = ()
    paints_in_parts = True

    def __init__(self, paints: Sequence[int] = ()) -> None:
        self.paints = tuple(paints)
        self.pipelines = {"preprocessing": [], "augmentation": [], "postprocessing": []}

    @property
    @override
    def own_postprocessing(self) -> list[Entry]:
        return []

    @override
    def apply(self, image: Scan | Tensor, label: Tensor | None = None) -> PreprocessedCase:
        assert isinstance(image, MetaTensor)
        return PreprocessedCase(image=MetaTensor(image.as_tensor().float(), affine=image.affine), label=label)

    @override
    def shape_on_grid(self, geometry: Geometry) -> Shape:
        return geometry.spatial_shape

    @override
    def painted_labels(self, painter: LabelPainter, case: PreprocessedCase) -> Tensor:
        return painter.labels()[None]

    @override
    def painted_probabilities(self, painter: LabelPainter, case: PreprocessedCase) -> Tensor:
        return painter.probabilities()


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
    """Write a prediction like its image, with what else is asked for; what goes wrong is added to the failures."""
    labels, probabilities = prediction.labels, prediction.probabilities
    segmentation, files = _segmentation_of(path, case.case_id), [path]
    try:
        with nullcontext() if segments is None else atomic_path(segmentation, durable=False) as apart:
            if apart is not None:
                # Made first, since its headers may be refused, and put in its place last. An earlier one goes before
                # the label map changes: an interruption leaves none that belongs to another label map.
                save_dicom_seg(labels.as_tensor(), apart, series=case.files[0], segments=segments or ())
                segmentation.unlink(missing_ok=True)
            save_image(labels.as_tensor(), path, like=case.files[0] if case.files else labels)
            if probabilities is not None:
                files.append(_probabilities_of(path, case.case_id))
                save_image(probabilities.as_tensor(), files[-1], like=labels)
        manifest.add(case, prediction, [*files, *([] if segments is None else [segmentation])], seconds=seconds)
    except Exception as error:  # a format that cannot hold the ids, say: the other cases may be fine
        failures[case.case_id] = error


def target_paths(
    cases: Sequence[InputCase], target: Path, source: Inputs, *, probabilities: bool = False
) -> dict[str, Path]:
    """Return where the label map of each case goes, and make the folder.

    Raises:
        BadInputError: If the folder holds images to predict, cannot be made, or two files would be the same.
    """
    files = [file.resolve() for case in cases for file in case.files]
    folders = {*files, *(file.parent for file in files)}
    is_source = isinstance(source, str | Path) and target.resolve() == Path(source).resolve()
    if is_source or target.resolve() in folders:
        raise BadInputError(
            f"{target}: holds the images to predict, and a label map would be taken for one of them the next time; "
            "choose another folder for the label maps"
        )
    paths = [target / f"{case.case_id}{_suffix(case)}" for case in cases]
    written = [path.name for path in paths]
    if probabilities:
        written += [_probabilities_of(path, case.case_id).name for path, case in zip(paths, cases, strict=True)]
    if twice := sorted(name for name, count in Counter(written).items() if count > 1):
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
    return {case.case_id: path for case, path in zip(cases, paths, strict=True)}


def left_over(
    paths: Mapping[str, Path], failures: Collection[str], *, probabilities: bool, dicom_seg: bool = False
) -> Iterator[tuple[Path, str]]:
    """Yield the files of an earlier prediction that do not belong to this one, and why. Nothing is removed."""
    for case_id, path in paths.items():
        files = (path, _probabilities_of(path, case_id), _segmentation_of(path, case_id))
        if case_id in failures:
            yield from ((file, f"{case_id} could not be predicted this time") for file in files if file.exists())
        elif not probabilities and files[1].exists():
            yield files[1], "the label map beside it is new, and probabilities were not asked for this time"
        elif not dicom_seg and files[2].exists():
            yield files[2], "the label map beside it is new, and no DICOM SEG was asked for this time"


def _probabilities_of(path: Path, case_id: str) -> Path:
    return path.with_name(f"{case_id}{PROBABILITIES}.nii.gz")


def _segmentation_of(path: Path, case_id: str) -> Path:
    return path.with_name(f"{case_id}_seg.dcm")


def _suffix(case: InputCase) -> str:
    """Return the suffix for a case's label map: its image's where a label map can be written so in one file."""
    if not case.files:
        return ".nii.gz"
    if codec_of(case.files[0]) is dicom:
        return ".png" if (grid := case.geometry()) is not None and grid.is_picture else ".nii.gz"
    suffix = image_suffix(case.files[0])
    return _IN_ONE_FILE.get(suffix, suffix)
