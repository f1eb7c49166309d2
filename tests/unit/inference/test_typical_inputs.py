"""In what an image is unlike the training set."""

from __future__ import annotations

import json

import numpy as np
import pytest

from candy_monai.data.images.geometry import Geometry
from candy_monai.data.inspection.fingerprint import CaseFingerprint
from candy_monai.inference.typical_inputs import TypicalInputs


def _image(seed, shape=(20, 24, 16), scale=1.0):
    return np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32) * scale


def _case(spacing_mm=(1.0, 1.0, 3.0), *, is_empty=False):
    return CaseFingerprint(
        case_id="a",
        shape=(20, 24, 16),
        spacing_mm=spacing_mm,
        orientation=("R", "A", "S"),
        nonzero_shape=(20, 24, 16),
        foreground_shape=None if is_empty else (3, 3, 3),
        class_voxels={0: 1},
    )


def _geometry(*spacing_mm):
    return Geometry.in_space((20, 24, 16), np.diag([*spacing_mm, 1.0]), num_channels=1)


@pytest.fixture
def inputs():
    return TypicalInputs.of(
        [_image(seed) for seed in range(4)],
        [_case(), _case((0.9, 1.1, 3.5))],
        channel_names=("T1", "T2"),
        is_picture=False,
    )


def test_an_image_of_the_same_kind_is_not_unlike(inputs):
    assert inputs.differences(_image(9), _geometry(1.0, 1.0, 3.0)) == []
    assert inputs.differences(_image(9), _geometry(3.0, 1.0, 1.0)) == []  # stored along other axes
    assert inputs.differences(_image(9), None) == []


def test_another_spacing_or_size_is_named_with_both_numbers(inputs):
    (spacing,) = inputs.differences(_image(9), _geometry(1.0, 1.0, 9.0))
    assert spacing == "its spacing is 1 x 1 x 9 mm, that of the training images 0.9 to 1 x 1 to 1.1 x 3 to 3.5 mm"
    (size,) = inputs.differences(_image(9, shape=(20, 24, 40)), _geometry(1.0, 1.0, 3.0))
    assert size == "its size after preprocessing is 20 x 24 x 40, that of the training images 20 x 24 x 16"


def test_a_channel_with_other_intensities_is_named(inputs):
    image = _image(9)
    image[1] *= 4
    (found,) = inputs.differences(image, _geometry(1.0, 1.0, 3.0))
    assert "quantile of channel 'T2' after normalization" in found


def test_it_is_the_same_after_a_round_trip_through_json(inputs):
    assert TypicalInputs.from_dict(json.loads(json.dumps(inputs.to_dict()))) == inputs
    assert not inputs.has_empty_cases


def test_pictures_have_no_spacing_and_empty_cases_are_noticed():
    inputs = TypicalInputs.of(
        [_image(0, shape=(8, 8))], [_case(is_empty=True)], channel_names=("R", "G"), is_picture=True
    )
    assert inputs.spacing_mm == ()
    assert inputs.has_empty_cases
