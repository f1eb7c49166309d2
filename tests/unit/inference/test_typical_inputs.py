"""In what an image is unlike the training set."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from candy_monai.data.images.geometry import Geometry
from candy_monai.data.inspection.fingerprint import CaseFingerprint
from candy_monai.inference.typical_inputs import ClassSize, TypicalInputs


def _image(seed, shape=(20, 24, 16), scale=1.0):
    return np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32) * scale


def _case(spacing_mm=(1.0, 1.0, 3.0), *, voxels=100, is_empty=False):
    return CaseFingerprint(
        case_id="a",
        shape=(20, 24, 16),
        spacing_mm=spacing_mm,
        orientation=("R", "A", "S"),
        nonzero_shape=(20, 24, 16),
        foreground_shape=None if is_empty else (3, 3, 3),
        class_voxels={} if is_empty else {0: 1, 1: voxels, 2: voxels // 2},
    )


def _geometry(*spacing_mm):
    return Geometry.in_space((20, 24, 16), np.diag([*spacing_mm, 1.0]), num_channels=1)


@pytest.fixture
def inputs():
    return TypicalInputs.of(
        [_image(seed) for seed in range(4)],
        [_case(), _case(voxels=400), _case((0.9, 1.1, 3.5), voxels=200)],
        channel_names=("T1", "T2"),
        classes=[("whole", (1, 2)), ("core", (2,)), ("rare", (7,))],
        is_picture=False,
    )


def test_an_image_of_the_same_kind_is_not_unlike(inputs):
    assert inputs.differences(_image(9), _geometry(1.0, 1.0, 3.0)) == []
    assert inputs.differences(_image(9), _geometry(3.0, 1.0, 1.0)) == []  # stored along other axes
    assert inputs.differences(_image(9), None) == []


def test_another_spacing_or_size_is_named_with_both_numbers(inputs):
    (spacing,) = inputs.differences(_image(9), _geometry(1.0, 1.0, 9.0))
    assert spacing == "its spacing is 1 x 1 x 9 mm, in the training images 0.9 to 1 x 1 to 1.1 x 3 to 3.5 mm"
    (size,) = inputs.differences(_image(9, shape=(20, 24, 40)), _geometry(1.0, 1.0, 3.0))
    assert size == "its size after preprocessing is 20 x 24 x 40, in the training images 20 x 24 x 16"


def test_a_channel_with_other_intensities_is_named(inputs):
    image = _image(9)
    image[1] *= 4
    (found,) = inputs.differences(image, _geometry(1.0, 1.0, 3.0))
    assert "quantile of channel 'T2' after normalization" in found


def test_it_is_the_same_after_a_round_trip_through_json(inputs):
    assert TypicalInputs.from_dict(json.loads(json.dumps(asdict(inputs)))) == inputs
    assert not inputs.has_empty_cases


def test_pictures_have_no_spacing_and_empty_cases_are_noticed():
    inputs = TypicalInputs.of(
        [_image(0, shape=(8, 8))],
        [_case(is_empty=True), _case(voxels=768)],
        channel_names=("R", "G"),
        classes=[("organ", (1,))],
        is_picture=True,
    )
    assert inputs.spacing_mm == ()
    assert inputs.has_empty_cases
    assert inputs.classes["organ"].median == pytest.approx(768 / (20 * 24 * 16))
    half = torch.zeros(1, 10, 10, dtype=torch.uint8)
    half[0, :5] = 1
    share, (found,) = inputs.usual_size(half, None)
    assert share == pytest.approx(0.1 / 0.5)
    assert found == "its organ occupies 50 % of the picture, in the training cases 10"


def _labels(first, second):
    labels = torch.zeros(1, 20, 24, 16, dtype=torch.int16)
    labels.view(-1)[:first] = 1
    labels.view(-1)[first : first + second] = 2
    return labels


def test_sizes_of_classes_are_compared_with_the_median_in_ml(inputs):
    geometry = _geometry(1.0, 1.0, 3.0)
    assert list(inputs.classes) == ["whole", "core"]  # no case has the other one
    assert inputs.classes["core"].low == pytest.approx(0.15)
    middle = inputs.classes["core"].median / 0.003
    share, found = inputs.usual_size(_labels(round(2 * middle), round(middle)), geometry)
    assert share == pytest.approx(1.0, abs=0.02)
    assert found == []
    assert inputs.usual_size(_labels(0, 0), geometry) == (0.0, [])
    assert inputs.usual_size(_labels(9, 9), None) == (1.0, [])  # of unknown size


def test_a_class_of_another_size_is_named_with_both_numbers(inputs):
    share, found = inputs.usual_size(_labels(1000, 2000), _geometry(1.0, 1.0, 3.0))
    assert share < 0.3
    assert found[1] == "its core occupies 6 ml, in the training cases 0.15 to 0.6"


def test_ids_of_no_class_take_no_memory_however_large(inputs):
    labels, geometry = _labels(1000, 500).long(), _geometry(1.0, 1.0, 3.0)
    expected = inputs.usual_size(labels, geometry)
    labels.view(-1)[-1] = 1 << 40
    assert inputs.usual_size(labels, geometry) == expected


def test_sizes_that_differ_much_in_training_may_lie_further_beyond_its_range():
    size = ClassSize(ids=(1,), low=0.1, median=0.2, high=0.4)
    inputs = TypicalInputs(spacing_mm=(), shape=(), intensities={}, has_empty_cases=False, classes={"lesion": size})
    flat = torch.zeros(1, 10, 10, dtype=torch.uint8)
    for count, is_usual in ((2, False), (3, True), (100, True)):
        labels = flat.clone()
        labels.view(-1)[:count] = 1
        assert (inputs.usual_size(labels, None)[1] == []) == is_usual
