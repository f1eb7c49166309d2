"""From the bricks of one case's scores to its prediction on the file's grid. Runs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from monai.data import MetaTensor
from torch import Tensor

from candy_monai.data.preprocessing import CaseGeometry, PreprocessedCase, Preprocessor
from candy_monai.data.restoration import LabelPainter
from candy_monai.inference.blending import Brick
from candy_monai.inference.cases import PreparedCase
from candy_monai.inference.writing import Prediction


def build_prediction(
    case: PreparedCase,
    bricks: Iterable[Brick],
    preprocessor: Preprocessor | None,
    *,
    axis: int = 0,
    paints: Sequence[int] = (),
    are_probabilities: bool = False,
    with_probabilities: bool = False,
    device: torch.device,
) -> Prediction:
    """Paint a case's label map brick by brick, or put all scores together where probabilities are asked for.

    Args:
        case: The case.
        bricks: Its scores, on the grid of its first preprocessed case.
        preprocessor: What preprocessed it; None if nothing did.
        axis: The axis along which the bricks come.
        paints: The id that each channel paints where classes are overlapping regions.
        are_probabilities: Whether the scores are probabilities instead of logits.
        with_probabilities: Whether to return every class's probability.
        device: Where the scores are.
    """
    preprocessed = case.cases[0]
    geometry, size = preprocessed.geometry, tuple(preprocessed.image.shape[1:])
    if with_probabilities:
        scores = _assembled(bricks, size)
        labels = _labels(scores, geometry, preprocessor, paints, are_probabilities=are_probabilities)
        probabilities = scores if are_probabilities else as_probabilities(scores, paints=paints)
        del scores
        if preprocessor is not None:
            probabilities = preprocessor.restore(probabilities, geometry, probabilities=True)
        return Prediction(
            case_id=case.case_id,
            labels=_placed(labels, case),
            probabilities=_placed(probabilities, case),
        )
    painter = _painter(
        geometry, size, preprocessor, paints, axis=axis, are_probabilities=are_probabilities, device=device
    )
    for brick in bricks:
        painter.add(brick.place, brick.scores() if painter.resamples or are_probabilities else brick.sums)
    return Prediction(case_id=case.case_id, labels=_placed(_painted(painter, geometry, preprocessor), case))


def as_probabilities(scores: Tensor, *, paints: Sequence[int] = ()) -> Tensor:
    """Turn logits ``(K, *spatial)`` into probabilities: a softmax, or sigmoids for one channel and for regions."""
    exclusive = len(scores) > 1 and not paints
    return scores.softmax(0) if exclusive else scores.sigmoid()


def untouched(image: MetaTensor) -> PreprocessedCase:
    """Return a case that nothing preprocesses."""
    shape = tuple(image.shape[1:])
    geometry = CaseGeometry(
        file_name=str(image.meta.get("filename_or_obj", "")),
        affine=tuple(tuple(float(entry) for entry in row) for row in image.affine),
        shape=shape,
        axis_codes=None,
        order=tuple(range(len(shape))),
        flips=(),
        crop=tuple((0, extent) for extent in shape),
        resampled_shape=shape,
    )
    return PreprocessedCase(image=image.as_tensor().float(), label=None, geometry=geometry)


def _assembled(bricks: Iterable[Brick], size: tuple[int, ...]) -> Tensor:
    scores: Tensor | None = None
    for brick in bricks:
        if scores is None:
            scores = brick.sums.new_empty((len(brick.sums), *size), device="cpu")
        scores[(slice(None), *brick.place)] = brick.scores().cpu()
    if scores is None:
        raise ValueError("no scores came for this case")
    return scores


def _labels(
    scores: Tensor,
    geometry: CaseGeometry,
    preprocessor: Preprocessor | None,
    paints: Sequence[int],
    *,
    are_probabilities: bool,
) -> Tensor:
    if preprocessor is not None:
        return preprocessor.restore_labels(scores, geometry, probabilities=are_probabilities)
    size = tuple(scores.shape[1:])
    painter = _painter(geometry, size, None, paints, axis=0, are_probabilities=are_probabilities, device=scores.device)
    painter.add(tuple(slice(0, extent) for extent in size), scores)
    return _painted(painter, geometry, None)


def _painter(
    geometry: CaseGeometry,
    size: tuple[int, ...],
    preprocessor: Preprocessor | None,
    paints: Sequence[int],
    *,
    axis: int,
    are_probabilities: bool,
    device: torch.device,
) -> LabelPainter:
    if preprocessor is None:
        return LabelPainter(size, size, paints=paints, threshold=0.5 if are_probabilities else 0.0, device=device)
    return preprocessor.label_painter(geometry, axis=axis, probabilities=are_probabilities, device=device)


def _painted(painter: LabelPainter, geometry: CaseGeometry, preprocessor: Preprocessor | None) -> Tensor:
    if preprocessor is None:
        return painter.labels()[None]
    return preprocessor.painted_labels(painter, geometry)


def _placed(values: Tensor, case: PreparedCase) -> MetaTensor:
    return MetaTensor(values.cpu(), meta=dict(case.image))
