"""From the bricks of one case's scores to its prediction on the file's grid. Runs no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from monai.data import MetaTensor
from torch import Tensor

from candy_monai.data.preprocessing import PreprocessedCase, Preprocessor
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
    undo = preprocessor or _Nothing(paints)
    if with_probabilities or not undo.paints_in_parts:
        scores = _assembled(bricks, tuple(preprocessed.image.shape[1:]))
        labels = undo.restore_labels(scores, preprocessed, probabilities=are_probabilities)
        probabilities = None
        if with_probabilities:
            scores = scores if are_probabilities else as_probabilities(scores, paints=paints)
            probabilities = _placed(undo.restore(scores, preprocessed), case)
        return Prediction(case_id=case.case_id, labels=_placed(labels, case), probabilities=probabilities)
    painter = undo.label_painter(preprocessed, axis=axis, probabilities=are_probabilities, device=device)
    for brick in bricks:
        painter.add(brick.place, brick.scores() if painter.resamples or are_probabilities else brick.sums)
    return Prediction(case_id=case.case_id, labels=_placed(undo.painted_labels(painter, preprocessed), case))


def as_probabilities(scores: Tensor, *, paints: Sequence[int] = ()) -> Tensor:
    """Turn logits ``(K, *spatial)`` into probabilities: a softmax, or sigmoids for one channel and for regions."""
    exclusive = len(scores) > 1 and not paints
    return scores.softmax(0) if exclusive else scores.sigmoid()


def untouched(image: MetaTensor) -> PreprocessedCase:
    """Return a case that nothing preprocesses."""
    return PreprocessedCase(image=MetaTensor(image.as_tensor().float(), affine=image.affine), label=None)


class _Nothing:
    """Undoes for a case that nothing preprocessed what `Preprocessor` undoes for others."""

    paints_in_parts = True

    def __init__(self, paints: Sequence[int]) -> None:
        self._paints = tuple(paints)

    def label_painter(
        self, case: PreprocessedCase, *, axis: int = 0, probabilities: bool, device: torch.device
    ) -> LabelPainter:
        size, threshold = tuple(case.image.shape[1:]), 0.5 if probabilities else 0.0
        return LabelPainter(size, size, axis=axis, paints=self._paints, threshold=threshold, device=device)

    def painted_labels(self, painter: LabelPainter, case: PreprocessedCase) -> Tensor:
        return painter.labels()[None]

    def restore_labels(self, scores: Tensor, case: PreprocessedCase, *, probabilities: bool) -> Tensor:
        painter = self.label_painter(case, probabilities=probabilities, device=scores.device)
        painter.add(tuple(slice(0, extent) for extent in scores.shape[1:]), scores)
        return self.painted_labels(painter, case)

    def restore(self, probabilities: Tensor, case: PreprocessedCase) -> Tensor:
        return probabilities


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
