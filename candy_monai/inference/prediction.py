"""From the scores of one preprocessed case to its prediction on the file's grid, and listeners of predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from monai.data import MetaTensor
from torch import Tensor
from typing_extensions import override

from candy_monai.aliases import Shape
from candy_monai.data.images.geometry import Geometry
from candy_monai.data.pipelines.preprocessing import PreprocessedCase, Preprocessor
from candy_monai.inference.buffers import MemoryEstimate, Tile
from candy_monai.inference.quality import CaseQuality

if TYPE_CHECKING:
    from candy_monai.data.images.reading import Scan
    from candy_monai.data.pipelines.description import Entry
    from candy_monai.transforms.painting import LabelPainter


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedCase:
    """A case after reading and preprocessing.

    Attributes:
        case_id: The case.
        image: The loaded image without its voxels: affine and other metadata of its file.
        shape: Its spatial shape.
        cases: The preprocessed case; one for each member of an ensemble if they preprocess differently.
    """

    case_id: str
    image: dict[str, object]
    shape: Shape
    cases: tuple[PreprocessedCase, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """The prediction for one case.

    Attributes:
        case_id: The case.
        labels: Label ids ``(1, *spatial)`` on the image's own grid, with its affine.
        probabilities: ``(classes, *spatial)`` float32 on the same grid, if requested.
        quality: The estimated quality without a reference; None if the model has no estimate.
    """

    case_id: str
    labels: MetaTensor
    probabilities: MetaTensor | None = None
    quality: CaseQuality | None = None


class PredictionListener:
    """Callbacks for the progress of prediction, which by default do nothing. Called in the thread that predicts."""

    def on_started(self, num_cases: int, largest: str | None, needed: MemoryEstimate | None) -> None:
        """Called before prediction starts.

        Args:
            num_cases: The number of cases to predict.
            largest: The id of the case that needs the most memory; None if the file headers do not say.
            needed: The memory that it needs, in bytes; None if unknown.
        """

    def on_kept(self, num_cases: int, total: int) -> None:
        """Called when some cases of ``total`` are kept from the same model and images; the others are predicted."""

    def on_windows(self, case_id: str, done: int, total: int) -> None:
        """Called when ``done`` of the ``total`` windows of a case were run."""

    def on_case(self, done: int, total: int, case_id: str, error: Exception | None) -> None:
        """Called when a case was written or has failed; the next one may already be in the network.

        Args:
            done: The number of cases so far, with those that failed.
            total: The number of cases.
            case_id: The case.
            error: Why it failed; None if it was written.
        """

    def on_quality(self, case_id: str, quality: CaseQuality) -> None:
        """Called when a case was predicted, with its quality without a reference; `on_case` follows."""

    def on_left_over(self, file: Path, reason: str) -> None:
        """Called for a file of an earlier prediction that is kept in the folder but does not belong to this one."""


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
    """Build the prediction of a case tile by tile: its label map, and the probability of each class if requested.

    The label map does not depend on whether they are requested. It has the class with the greatest probability (the
    first of equals); for independent channels and for regions, those above 0.5.

    The tiles contain its logits or probabilities on the grid of its first preprocessed case; in layers along ``axis``
    if this is resampled.
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
        raise ValueError("the network returned no scores for this case")
    return scores


class NoPreprocessing(Preprocessor):
    """Leaves cases of runs without a plan, and their results, unchanged."""

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
    def apply(
        self, image: Scan | Tensor, label: Tensor | None = None, *, previous: Tensor | None = None
    ) -> PreprocessedCase:
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
