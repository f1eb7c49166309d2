from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import AsDiscreted, Compose, EnsureTyped, Invertd, Orientationd

from candy_monai.transforms import CropForegroundIfAnyd, PaintLabels, PaintLabelsd, ResampleToSpacingd
from candy_monai.transforms.painting import LabelPainter, label_ids, probabilities_of
from candy_monai.transforms.resampling import resample_scores


def _parts(source, axis, cuts):
    """Cut a grid into layers along an axis, and each layer into two parts across."""
    across = (axis + 1) % len(source)
    half = source[across] // 2
    for start, stop in zip((0, *cuts), (*cuts, source[axis]), strict=True):
        for other in (slice(0, half), slice(half, source[across])):
            place = [slice(0, extent) for extent in source]
            place[axis], place[across] = slice(start, stop), other
            yield tuple(place)


@pytest.mark.parametrize(
    ("source", "target"),
    [((7, 9, 5), (7, 9, 5)), ((7, 9, 5), (14, 5, 11)), ((6, 2, 8), (5, 7, 8)), ((9, 8), (20, 3)), ((6, 4), (1, 1))],
)
@pytest.mark.parametrize("num_classes", [1, 4])
@pytest.mark.parametrize("axis", [0, 1])
def test_labels_painted_part_by_part_are_those_of_the_whole_at_once(source, target, num_classes, axis):
    scores = torch.randn(num_classes, *source, generator=torch.Generator().manual_seed(0))
    painter = LabelPainter(source, target, axis=axis)
    for place in _parts(source, axis, cuts=(1,)):
        painter.add(place, scores[(slice(None), *place)])
    whole = resample_scores(scores, target)
    expected = whole.argmax(0) if num_classes > 1 else whole[0] > 0
    assert torch.equal(painter.labels(), expected.to(torch.uint8))


def test_a_layer_is_painted_when_all_of_it_is_there_and_in_its_turn():
    scores = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    painter = LabelPainter((4, 6), (8, 6))
    upper, lower = ((slice(start, start + 2), slice(0, 6)) for start in (0, 2))
    painter.add(lower, scores[(slice(None), *lower)])
    with pytest.raises(ValueError, match="0 of 4 planes were added"):
        painter.labels()
    painter.add(upper, scores[(slice(None), *upper)])
    assert torch.equal(painter.labels(), resample_scores(scores, (8, 6)).argmax(0).to(torch.uint8))


def test_independent_channels_paint_their_ids_in_order():
    scores = torch.tensor([[0.9, 0.9, 0.1, 0.2], [0.1, 0.8, 0.7, 0.5]])
    assert label_ids(scores, paints=(7, 3), threshold=0.5).tolist() == [7, 3, 3, 0]


def test_of_equal_scores_the_first_class_wins():
    assert label_ids(torch.tensor([[1.0, 0.0], [1.0, 2.0], [0.0, 2.0]])).tolist() == [0, 1]


def test_blocks_do_not_show():
    scores = torch.randn(3, 70_001, generator=torch.Generator().manual_seed(0))
    assert torch.equal(label_ids(scores), scores.argmax(0).to(torch.uint8))


def test_painting_then_inverting_gives_what_inverting_scores_and_then_choosing_gives():
    affine = torch.diag(torch.tensor([-1.0, 1.4, 2.1, 1.0], dtype=torch.float64))
    image = torch.rand(1, 9, 8, 7, generator=torch.Generator().manual_seed(0))
    image[:, :2] = 0.0
    preprocessing = Compose(
        [
            Orientationd("image", "RAS", labels=None),
            CropForegroundIfAnyd("image", "image"),
            ResampleToSpacingd("image", (1.2, 1.2, 1.2)),
        ]
    )
    seen = preprocessing({"image": MetaTensor(image, affine=affine)})["image"]
    logits = torch.randn(4, *seen.shape[1:], generator=torch.Generator().manual_seed(1))
    painted = Compose(
        [PaintLabelsd("pred", "image"), EnsureTyped("pred", track_meta=True), Invertd("pred", preprocessing, "image")]
    )
    chosen = Compose(
        [
            EnsureTyped("pred", track_meta=True),
            Invertd("pred", preprocessing, "image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
        ]
    )
    one, other = (pipeline({"pred": logits.clone(), "image": seen})["pred"] for pipeline in (painted, chosen))
    assert one.dtype == torch.uint8
    assert one.shape == image.shape
    assert (one.as_tensor() == other.as_tensor()).float().mean() > 0.999
    assert torch.equal(one.affine, affine)


def test_regions_and_single_channels_are_painted_above_their_threshold():
    regions = torch.tensor([[[0.9, 0.9, 0.1, 0.4]], [[0.9, 0.1, 0.9, 0.5]]])
    assert PaintLabels((1, 2), are_probabilities=True)(regions).flatten().tolist() == [2, 1, 2, 0]
    assert PaintLabels()(torch.tensor([[[-0.1, 0.1]]])).flatten().tolist() == [0, 1]
    assert PaintLabels()(torch.tensor([[[-1.0, 1.0]]]), (1, 4)).flatten().tolist() == [0, 0, 1, 1]


def test_each_region_may_have_a_threshold_of_its_own_for_probabilities_and_for_logits():
    probabilities = torch.tensor([[[0.9, 0.55, 0.45, 0.35]], [[0.65, 0.75, 0.1, 0.4]]])
    painted = PaintLabels((1, 2), are_probabilities=True, thresholds=(0.4, 0.7))(probabilities)
    assert painted.flatten().tolist() == [1, 2, 1, 0]
    assert torch.equal(PaintLabels((1, 2), thresholds=(0.4, 0.7))(probabilities.logit()), painted)
    resampled = PaintLabels((1, 2), thresholds=(0.4, 0.7))(probabilities.logit(), (1, 8))
    assert set(resampled.flatten().tolist()) == {0, 1, 2}


@pytest.mark.parametrize("target", [(7, 9, 5), (14, 5, 11), (7, 4, 5)])
@pytest.mark.parametrize(("num_classes", "paints"), [(1, ()), (4, ()), (3, (3, 1, 2))])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("are_probabilities", [False, True])
def test_labels_are_those_of_the_greatest_probability_and_the_same_without(
    target, num_classes, paints, axis, are_probabilities
):
    source = (7, 9, 5)
    scores = 3 * torch.randn(num_classes, *source, generator=torch.Generator().manual_seed(0))
    scores = scores.sigmoid() if are_probabilities else scores
    painters = [
        LabelPainter(
            source,
            target,
            axis=axis,
            paints=paints,
            are_probabilities=are_probabilities,
            with_probabilities=with_probabilities,
        )
        for with_probabilities in (True, False)
    ]
    for place in _parts(source, axis, cuts=(1, 3)):
        for painter in painters:
            painter.add(place, scores[(slice(None), *place)].clone())
    asked, plain = painters
    assert torch.equal(asked.labels(), plain.labels())
    probabilities = asked.probabilities()
    assert torch.equal(label_ids(probabilities, paints=paints, threshold=0.5), plain.labels())
    resampled = resample_scores(scores, target)
    exclusive = num_classes > 1 and not paints
    expected = resampled if are_probabilities else resampled.softmax(0) if exclusive else resampled.sigmoid()
    assert torch.allclose(probabilities, expected, atol=1e-6)
    with pytest.raises(ValueError, match="not requested"):
        plain.probabilities()


def test_scores_with_weights_become_the_probabilities_of_their_quotients():
    scores, weights = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)), torch.rand(4, 5) + 0.1
    painter = LabelPainter((4, 5), (4, 5), with_probabilities=True)
    painter.add((slice(0, 4), slice(0, 5)), scores * weights, weights=weights)
    assert torch.allclose(painter.probabilities(), scores.softmax(0), atol=1e-6)
    assert torch.equal(painter.labels(), scores.argmax(0).to(torch.uint8))


def test_logits_that_single_precision_cannot_tell_apart_as_probabilities_keep_their_order():
    scores = torch.tensor([[0.0, 0.0], [1e-9, 0.0], [-1.0, -1.0]])
    assert scores.softmax(0)[0, 0] == scores.softmax(0)[1, 0]
    ids = label_ids(scores)
    assert ids.tolist() == [1, 0]
    probabilities = probabilities_of(scores, ids)
    assert probabilities.argmax(0).tolist() == [1, 0]
    assert torch.allclose(probabilities, scores.softmax(0), atol=1e-7)


def test_a_logit_just_above_zero_is_more_likely_than_not():
    scores = torch.tensor([[1e-30, 0.0, -1e-30]])
    assert (scores.sigmoid() > 0.5).sum() == 0
    assert (probabilities_of(scores) > 0.5).tolist() == [[True, False, False]]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("nearest_axis", [0, 1, 2])
def test_scores_that_are_copied_along_an_axis_are_painted_as_if_resampled_whole(axis, nearest_axis):
    source, target = (7, 5, 6), (10, 8, 4)
    scores = torch.randn(3, *source, generator=torch.Generator().manual_seed(0))
    painter = LabelPainter(source, target, axis=axis, nearest_axis=nearest_axis, with_probabilities=True)
    for start, end in ((0, 3), (3, source[axis])):
        place = [slice(0, size) for size in source]
        place[axis] = slice(start, end)
        painter.add(tuple(place), scores[(slice(None), *place)])
    whole = resample_scores(scores, target, nearest_axis=nearest_axis)
    assert torch.equal(painter.labels().long(), whole.argmax(0))
    assert torch.allclose(painter.probabilities(), whole.softmax(0), atol=1e-5)
