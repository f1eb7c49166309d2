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
    """Paint a case's label map brick by brick, and every class's probability where these are asked for.

    The label map is the same with and without them, and is that of the greatest probability (the first of equals; of
    independent channels and of regions, of those above 0.5).

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
    if preprocessor is None:
        painter = LabelPainter(
            size,
            size,
            paints=paints,
            are_probabilities=are_probabilities,
            with_probabilities=with_probabilities,
            device=device,
        )
    else:
        painter = preprocessor.label_painter(
            geometry,
            axis=axis,
            probabilities=are_probabilities,
            with_probabilities=with_probabilities,
            device=device,
        )
    for brick in bricks:
        if painter.resamples or are_probabilities:
            painter.add(brick.place, brick.scores())
        else:
            weights = brick.weights() if with_probabilities and brick.weights is not None else None
            painter.add(brick.place, brick.sums, weights=weights)
    labels = painter.labels()[None] if preprocessor is None else preprocessor.painted_labels(painter, geometry)
    probabilities = None
    if with_probabilities:
        whole = (
            painter.probabilities() if preprocessor is None else preprocessor.painted_probabilities(painter, geometry)
        )
        probabilities = _placed(whole, case)
    return Prediction(case_id=case.case_id, labels=_placed(labels, case), probabilities=probabilities)


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


def _placed(values: Tensor, case: PreparedCase) -> MetaTensor:
    return MetaTensor(values.cpu(), meta=dict(case.image))
