"""From the bricks of one case's scores to its prediction on the file's grid. Runs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from monai.data import MetaTensor
from torch import Tensor

from candy_monai.data.pipelines.preprocessing import PreprocessedCase, Preprocessor
from candy_monai.inference.blending import Brick
from candy_monai.inference.cases import PreparedCase
from candy_monai.inference.writing import Prediction
from candy_monai.transforms.painting import LabelPainter


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
    undo = preprocessor or _Nothing(paints)
    if preprocessor is not None and not preprocessor.paints_in_parts:
        scores = _assembled(bricks, tuple(preprocessed.image.shape[1:]))
        labels, whole = preprocessor.restore_whole(scores, preprocessed, are_probabilities=are_probabilities)
    else:
        painter = undo.label_painter(
            preprocessed,
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
        labels = undo.painted_labels(painter, preprocessed)
        whole = undo.painted_probabilities(painter, preprocessed) if with_probabilities else labels
    probabilities = _placed(whole, case) if with_probabilities else None
    return Prediction(case_id=case.case_id, labels=_placed(labels, case), probabilities=probabilities)


def untouched(image: MetaTensor) -> PreprocessedCase:
    """Return a case that nothing preprocesses."""
    return PreprocessedCase(image=MetaTensor(image.as_tensor().float(), affine=image.affine), label=None)


class _Nothing:
    """Undoes for a case that nothing preprocessed what `Preprocessor` undoes for others."""

    def __init__(self, paints: Sequence[int]) -> None:
        self._paints = tuple(paints)

    def label_painter(
        self, case: PreprocessedCase, *, axis: int, probabilities: bool, with_probabilities: bool, device: torch.device
    ) -> LabelPainter:
        size = tuple(case.image.shape[1:])
        return LabelPainter(
            size,
            size,
            axis=axis,
            paints=self._paints,
            are_probabilities=probabilities,
            with_probabilities=with_probabilities,
            device=device,
        )

    def painted_labels(self, painter: LabelPainter, case: PreprocessedCase) -> Tensor:
        return painter.labels()[None]

    def painted_probabilities(self, painter: LabelPainter, case: PreprocessedCase) -> Tensor:
        return painter.probabilities()


def _assembled(bricks: Iterable[Brick], size: tuple[int, ...]) -> Tensor:
    scores: Tensor | None = None
    for brick in bricks:
        if scores is None:
            scores = brick.sums.new_empty((len(brick.sums), *size), device="cpu")
        scores[(slice(None), *brick.place)] = brick.scores().cpu()
    if scores is None:
        raise ValueError("no scores came for this case")
    return scores


def _placed(values: Tensor, case: PreparedCase) -> MetaTensor:
    return MetaTensor(values.cpu(), meta=dict(case.image))
