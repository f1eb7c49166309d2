"""How far a label map agrees with its own probabilities."""

from __future__ import annotations

import pytest
import torch

from candy_monai.inference.buffers import Tile
from candy_monai.inference.expected_overlap import ExpectedOverlap


def _expected(probabilities):
    overlap = ExpectedOverlap()
    overlap.add(probabilities, are_probabilities=True)
    return overlap.precision, overlap.recall


def test_certain_probabilities_have_both_1_and_unsure_ones_less():
    certain = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert _expected(certain) == pytest.approx((1.0, 1.0))
    unsure = torch.tensor([[0.4, 0.9], [0.6, 0.1]])  # one voxel of class 1
    assert _expected(unsure) == pytest.approx((0.6, 0.6 / 0.7))


def test_classes_count_alike_and_one_that_is_not_predicted_by_its_greatest_probability():
    probabilities = torch.tensor([[0.0, 0.6, 1.0], [1.0, 0.0, 0.0], [0.0, 0.4, 0.0]])
    assert _expected(probabilities) == pytest.approx((1.0 / 1.4, 1.0 / 1.4))


def test_where_nothing_is_predicted_both_are_0_and_it_says_so():
    overlap = ExpectedOverlap()
    overlap.add(torch.tensor([[0.9, 0.7], [0.1, 0.3]]), are_probabilities=True)
    assert overlap.is_empty
    assert (overlap.precision, overlap.recall) == (0.0, 0.0)
    assert ExpectedOverlap().recall == 0.0


@pytest.mark.parametrize(
    ("paints", "thresholds"), [((1, 2), ()), ((), ()), ((1, 2), (0.2, 0.6)), ((), (0.2,))], ids=str
)
def test_regions_and_a_single_logit_are_channels_of_their_own_with_their_thresholds(paints, thresholds):
    logits = torch.tensor([[2.0, -1.0, 0.5], [-3.0, 4.0, 0.1]])[: len(paints) or 1]
    overlap = ExpectedOverlap(paints, thresholds=thresholds)
    overlap.add(logits)
    p = logits.double().sigmoid()
    inside = p > torch.tensor(thresholds or (0.5,))[:, None]
    assert overlap.precision == pytest.approx(float(((p * inside).sum(1) / inside.sum(1)).mean()), abs=1e-6)
    assert overlap.recall == pytest.approx(float(((p * inside).sum(1) / p.sum(1)).mean()), abs=1e-6)


def test_what_exceeds_a_low_threshold_is_not_empty():
    probabilities = torch.tensor([[0.3, 0.1]])
    overlaps = [ExpectedOverlap(thresholds=thresholds) for thresholds in ((), (0.2,))]
    for overlap in overlaps:
        overlap.add(probabilities, are_probabilities=True)
    assert [overlap.is_empty for overlap in overlaps] == [True, False]


def test_tiles_pass_unchanged_and_sum_up_to_the_whole_whatever_their_weights():
    scores = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    whole = ExpectedOverlap()
    whole.add(scores)
    weights = torch.rand(6, 5) + 0.5
    tiles = [
        Tile(
            place=(rows, slice(0, 5)),
            sums=scores[:, rows] * weights[rows],
            weights=lambda rows=rows: weights[rows],
        )
        for rows in (slice(0, 2), slice(2, 6))
    ]
    before = [tile.sums.clone() for tile in tiles]
    parts = ExpectedOverlap()
    assert [tile.place for tile in parts.watched(tiles)] == [tile.place for tile in tiles]
    assert all(torch.equal(tile.sums, sums) for tile, sums in zip(tiles, before, strict=True))
    assert (parts.precision, parts.recall) == pytest.approx((whole.precision, whole.recall), abs=1e-6)


class _Elsewhere(torch.Tensor):
    """Values of a device that may not be waited for until the last part has been added."""

    waits = True

    def cpu(self):
        assert not self.waits, "the device would be waited for"
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize(("paints", "thresholds"), [((), ()), ((1, 2, 3), ()), ((1, 2, 3), (0.2, 0.5, 0.6))], ids=str)
def test_no_part_waits_for_the_device(paints, thresholds, monkeypatch):
    scores = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0))
    overlap, expected = (ExpectedOverlap(paints, thresholds=thresholds) for _ in range(2))
    for part in scores.split(2, dim=1):
        overlap.add(part.as_subclass(_Elsewhere))
        expected.add(part)
    monkeypatch.setattr(_Elsewhere, "waits", False)
    assert (overlap.precision, overlap.recall) == (expected.precision, expected.recall)
