from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from candy_monai.data.inspection.fingerprint import (
    CaseFingerprint,
    ChannelFingerprint,
    Fingerprint,
    IntensityStatistics,
)
from candy_monai.data.planning.plan import Plan
from candy_monai.data.planning.rules import plan
from candy_monai.errors import SettingsError

STATISTICS = IntensityStatistics(
    mean=50.0, std=10.0, median=50.0, percentile_00_5=0.0, percentile_99_5=100.0, min=-5.0, max=500.0
)
GIB = 1 << 30


def fingerprint(
    shapes,
    *,
    spacings=None,
    orientations=None,
    channels=("MRI",),
    labels=None,
    ignore_label=None,
    region_order=None,
    is_picture=False,
    nonzero=None,
):
    dims = len(shapes[0])
    cases = tuple(
        CaseFingerprint(
            case_id=f"case{index}",
            shape=shape,
            spacing_mm=spacings[index] if spacings else (1.0,) * dims,
            orientation=orientations[index] if orientations else (("R", "A", "S") if dims == 3 else None),
            nonzero_shape=nonzero[index] if nonzero else shape,
            foreground_shape=shape,
            class_voxels={0: 1, 1: 1},
        )
        for index, shape in enumerate(shapes)
    )
    return Fingerprint(
        dataset_name="Made up",
        digest="0" * 16,
        is_picture=is_picture,
        labels=labels or {"background": 0, "organ": 1},
        ignore_label=ignore_label,
        region_order=region_order,
        channels=tuple(ChannelFingerprint(name=name, foreground=STATISTICS, whole=STATISTICS) for name in channels),
        cases=cases,
    )


HIPPOCAMPUS = fingerprint([(35, 50, 36)] * 200, labels={"background": 0, "Anterior": 1, "Posterior": 2})


def test_the_hippocampus_gets_the_patch_and_depth_that_users_of_nnunet_expect():
    made = plan(HIPPOCAMPUS)
    assert made.patch_shape == (40, 56, 40)
    assert made.filters == (16, 32, 64, 128)
    assert made.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert made.kernel_sizes == ((3, 3, 3),) * 4
    assert made.divisor == (8, 8, 8)
    assert made.batch_size >= 2
    assert (made.num_classes, made.class_names) == (3, ("background", "Anterior", "Posterior"))


def test_more_memory_makes_a_wider_network_and_a_larger_batch():
    made = plan(HIPPOCAMPUS, memory_bytes=12 * GIB)
    assert made.filters == (32, 64, 128, 256)
    assert made.batch_size > plan(HIPPOCAMPUS).batch_size


def test_a_plan_is_a_pure_function():
    assert plan(HIPPOCAMPUS) == plan(HIPPOCAMPUS)


def test_a_thick_axis_keeps_kernel_one_and_is_not_halved_until_the_others_caught_up():
    made = plan(fingerprint([(256, 256, 20)] * 10, spacings=[(0.5, 0.5, 3.0)] * 10), configuration="3d")
    assert made.kernel_sizes[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))
    assert made.strides[:4] == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2))
    assert made.anisotropic_axis == 2


def thick_slices(**kwargs):
    return fingerprint([(256, 200, 20), (200, 256, 10)], spacings=[(0.5, 0.5, 3.0), (0.5, 0.5, 8.0)], **kwargs)


def test_thick_slices_are_for_a_2d_network_where_memory_is_that_of_a_cpu():
    made = plan(thick_slices())
    assert (made.configuration, made.slice_axis, made.num_dims) == ("2d", 2, 3)
    assert made.patch_shape[2] == made.divisor[2] == 1
    assert {kernel[2] for kernel in made.kernel_sizes} == {1}
    assert made.mirror_axes == (0, 1)
    assert made.anisotropic_axis == 2
    assert made.pixdim == (0.5, 0.5, -1.0), "slices are not resampled"
    assert made.median_shape == (228, 228, 15)
    assert plan(thick_slices(), memory_bytes=8 * GIB).configuration == "3d"
    assert plan(fingerprint([(40, 40, 40)])).configuration == "3d"


def test_the_2d_network_is_the_one_that_pictures_of_the_size_of_the_slices_get():
    sliced = plan(fingerprint([(128, 96, 9)] * 4), configuration="2d")
    pictures = plan(fingerprint([(128, 96)] * 36, is_picture=True))
    assert sliced.slice_axis == 2
    assert sliced.patch_shape == (*pictures.patch_shape, 1)
    assert sliced.batch_size == pictures.batch_size
    assert sliced.filters == pictures.filters
    assert sliced.strides == tuple((*stride, 1) for stride in pictures.strides)


def test_a_user_chooses_configuration_and_axis():
    assert plan(thick_slices(), configuration="3d").slice_axis is None
    assert plan(thick_slices(), configuration="3d").chosen == ("slice_axis",)
    sagittal = plan(thick_slices(), overrides={"slice_axis": "0", "patch_shape": "1,64,16"})
    assert (sagittal.configuration, sagittal.patch_shape, sagittal.mirror_axes) == ("2d", (1, 64, 16), (1, 2))
    assert plan(thick_slices(), overrides={"slice_axis": "none"}).configuration == "3d"
    whole = plan(thick_slices(), overrides={"patch_shape": "64,64,8"})
    assert whole.configuration == "3d", "a patch of several slices is for a 3-D network"


def test_a_lower_resolution_makes_a_patch_cover_a_quarter_of_the_median_case():
    # nnU-Net's rule: steps of 3 %; axes finer than half of the coarsest first.
    large = fingerprint([(320, 320, 90)] * 3, spacings=[(0.6, 0.6, 3.0)] * 3)
    full, low = plan(large, configuration="3d"), plan(large, configuration="3d_lowres")
    assert (low.configuration, low.full_spacing_mm, low.network_dims) == ("3d_lowres", full.spacing_mm, 3)
    first, second, third = low.spacing_mm
    assert (first, third) == (second, 3.0)
    assert math.log(first / 0.6, 1.03) == pytest.approx(round(math.log(first / 0.6, 1.03)))
    covered = math.prod(low.patch_shape) / math.prod(low.median_shape)
    assert 0.24 < covered < 0.35
    assert covered > 4 * math.prod(full.patch_shape) / math.prod(full.median_shape)
    assert "spacing_mm" not in low.chosen
    assert Plan.from_dict(json.loads(json.dumps(low.to_dict()))) == low


def test_more_memory_makes_the_lower_resolution_finer():
    large = fingerprint([(400, 400, 400)] * 3)
    light, strong = (plan(large, configuration="3d_lowres", memory_bytes=gib * GIB) for gib in (1, 8))
    assert light.spacing_mm[0] > strong.spacing_mm[0] > 1.0


@pytest.mark.parametrize(
    ("found", "overrides", "said"),
    [
        (HIPPOCAMPUS, {}, r"patch of 40,56,40 covers 142 % of the median case, 35,50,36: use the configuration 3d"),
        (HIPPOCAMPUS, {"spacing_mm": (2.0, 2.0, 2.0)}, "3d_lowres determines spacing_mm"),
        (HIPPOCAMPUS, {"slice_axis": 2}, "slice_axis=2 contradicts the configuration 3d"),
        (fingerprint([(64, 64)] * 3, is_picture=True), {}, "pictures have no third axis"),
    ],
)
def test_a_lower_resolution_that_does_not_suit_the_data_is_refused(found, overrides, said):
    with pytest.raises(SettingsError, match=said):
        plan(found, configuration="3d_lowres", overrides=overrides)


@pytest.mark.parametrize(
    ("configuration", "overrides", "message"),
    [
        ("4d", {}, "expected auto, 2d, 3d, 3d_lowres"),
        ("3d", {"slice_axis": 1}, "contradicts the configuration 3d"),
        ("2d", {"slice_axis": "none"}, "contradicts the configuration 2d"),
        ("2d", {"slice_axis": 3}, "must be 0, 1, 2 or none, got 3"),
        ("2d", {"slice_axis": 2, "patch_shape": "64,64,8"}, "patch_shape=64,64,8 is not 1 along axis 2"),
    ],
)
def test_contradictory_configurations_are_refused(configuration, overrides, message):
    with pytest.raises(SettingsError, match=message):
        plan(thick_slices(), configuration=configuration, overrides=overrides)


def test_pictures_have_no_3d_configuration():
    pictures = fingerprint([(64, 64)] * 3, is_picture=True)
    assert plan(pictures).configuration == plan(pictures, configuration="2d").configuration == "2d"
    with pytest.raises(SettingsError, match="no third axis"):
        plan(pictures, configuration="3d")


def test_a_one_slice_axis_is_never_convolved_nor_halved():
    made = plan(fingerprint([(48, 48, 1)] * 60))
    assert made.patch_shape == (48, 48, 1)
    assert {kernel[2] for kernel in made.kernel_sizes} == {1}
    assert made.divisor[2] == 1
    assert made.mirror_axes == (0, 1)
    assert made.anisotropic_axis == made.slice_axis == 2


def test_the_coarse_axis_gets_the_tenth_percentile_of_its_spacings():
    spacings = [(1.0, 1.0, float(thickness)) for thickness in range(5, 16)]  # 5 .. 15 mm: median 10, 10 % at 6
    made = plan(fingerprint([(256, 256, 20)] * 11, spacings=spacings))
    assert made.spacing_mm == (1.0, 1.0, pytest.approx(6.0))


def test_a_coarse_axis_of_many_slices_keeps_its_median():
    spacings = [(1.0, 1.0, float(thickness)) for thickness in range(5, 16)]
    made = plan(fingerprint([(256, 256, 300)] * 11, spacings=spacings))
    assert made.spacing_mm == (1.0, 1.0, 10.0)


def test_the_majority_decides_the_orientation_and_axes_follow_it():
    found = fingerprint(
        [(10, 20, 30), (10, 20, 30), (30, 10, 20)],
        spacings=[(1.0, 2.0, 3.0), (1.0, 2.0, 3.0), (3.0, 1.0, 2.0)],
        orientations=[("L", "A", "S"), ("L", "A", "S"), ("S", "R", "A")],
    )
    made = plan(found)
    assert made.orientation == ("L", "A", "S")
    assert made.spacing_mm == (1.0, 2.0, 3.0)
    assert made.median_shape == (10, 20, 30)


def test_pictures_have_neither_spacing_nor_orientation():
    made = plan(fingerprint([(584, 565)] * 20, channels=("R", "G", "B"), is_picture=True))
    assert (made.num_dims, made.spacing_mm, made.orientation) == (2, None, None)
    assert len(made.normalization) == 3


def test_the_normalisation_follows_the_channels_names():
    made = plan(fingerprint([(40, 40, 40)], channels=("CT", "T2")))
    assert [channel.scheme for channel in made.normalization] == ["ct", "zscore"]
    assert (made.normalization[0].lower, made.normalization[0].mean) == (0.0, 50.0)


def test_images_that_are_mostly_blank_are_normalised_over_their_nonzero_voxels():
    blanked = fingerprint([(40, 40, 40)] * 3, nonzero=[(40, 40, 29)] * 3)  # 72 % kept
    assert plan(blanked).normalization[0].nonzero_only
    assert not plan(HIPPOCAMPUS).normalization[0].nonzero_only


def test_the_ignore_label_is_no_class():
    made = plan(fingerprint([(40, 40, 40)], labels={"background": 0, "organ": 1, "ignore": 2}, ignore_label=2))
    assert (made.num_classes, made.class_names, made.ignore_label) == (2, ("background", "organ"), 2)


def test_regions_have_a_channel_each_and_say_what_they_paint():
    labels = {"background": 0, "whole": (1, 2), "core": 2}
    made = plan(fingerprint([(40, 40, 40)], labels=labels, region_order=(1, 2)))
    assert made.num_classes == 2
    assert [(region.name, region.ids, region.paints) for region in made.regions] == [
        ("whole", (1, 2), 1),
        ("core", (2,), 2),
    ]


def test_memory_bounds_the_patch():
    small = plan(fingerprint([(181, 217, 181)]), memory_bytes=GIB)
    large = plan(fingerprint([(181, 217, 181)]), memory_bytes=4 * GIB)
    assert all(low <= high for low, high in zip(small.patch_shape, large.patch_shape, strict=True))
    assert small.patch_shape != large.patch_shape


@given(
    shape=st.tuples(*[st.integers(1, 400)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 8.0)] * 3),
    memory=st.sampled_from([GIB // 2, GIB, 8 * GIB]),
)
@settings(max_examples=60)
def test_any_volume_gets_a_patch_that_its_network_divides(shape, spacing, memory):
    made = plan(fingerprint([shape] * 3, spacings=[spacing] * 3), memory_bytes=memory)
    assert all(size % step == 0 for size, step in zip(made.patch_shape, made.divisor, strict=True))
    assert len(made.filters) == len(made.strides) == len(made.kernel_sizes)
    assert made.batch_size >= 2


def test_filters_given_as_text_set_the_depth():
    made = plan(HIPPOCAMPUS, overrides={"filters": "8,16,32"})
    assert made.filters == (8, 16, 32)
    assert len(made.strides) == len(made.kernel_sizes) == 3
    assert made.divisor == (4, 4, 4)


def test_one_level_more_than_usual_is_possible_and_rounds_the_patch_accordingly():
    made = plan(HIPPOCAMPUS, overrides={"filters": (8, 16, 32, 64, 128)})
    assert made.divisor == (16, 16, 16)
    assert made.patch_shape == (48, 64, 48)


def test_more_levels_than_the_patch_allows_is_a_clear_error():
    with pytest.raises(SettingsError, match="cannot be halved that often"):
        plan(HIPPOCAMPUS, overrides={"filters": "2,2,2,2,2,2,2,2"})


def test_a_plan_says_which_of_its_entries_the_user_chose():
    assert plan(HIPPOCAMPUS).chosen == ()
    assert plan(HIPPOCAMPUS, overrides={"num_epochs": "3", "batch_size": 4}).chosen == ("batch_size", "num_epochs")


def test_overrides_in_text_are_converted():
    made = plan(
        HIPPOCAMPUS,
        overrides={
            "patch_shape": "32x48x32",
            "batch_size": "9",
            "mirror_axes": "0,2",
            "foreground_share": "0.5",
            "deep_supervision": "false",
            "spacing_mm": "1,1,2",
            "orientation": "lps",
            "num_validation_cases": "all",
            "normalization": "ct",
        },
    )
    assert (made.patch_shape, made.batch_size, made.mirror_axes) == ((32, 48, 32), 9, (0, 2))
    assert (made.foreground_share, made.deep_supervision, made.num_validation_cases) == (0.5, False, None)
    assert (made.spacing_mm, made.orientation) == ((1.0, 1.0, 2.0), ("L", "P", "S"))
    assert made.normalization[0].scheme == "ct"


def test_strides_given_as_text_shape_the_network():
    made = plan(HIPPOCAMPUS, overrides={"strides": "1,1,1;2,2,1;2,2,2"})
    assert made.strides == ((1, 1, 1), (2, 2, 1), (2, 2, 2))
    assert len(made.filters) == 3
    assert made.divisor == (4, 4, 2)


def test_mirroring_can_be_switched_off():
    assert plan(HIPPOCAMPUS, overrides={"mirror_axes": "none"}).mirror_axes == ()


def test_one_sigmoid_instead_of_two_classes_is_the_users_choice():
    assert plan(fingerprint([(40, 40, 40)]), overrides={"num_classes": 1}).num_classes == 1
    with pytest.raises(SettingsError, match="contradicts the dataset's 3 labels"):
        plan(HIPPOCAMPUS, overrides={"num_classes": 1})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"patchshape": "8"}, "Did you mean 'patch_shape'"),
        ({"batch_size": "two"}, "batch_size: got 'two', expected a positive whole number"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"patch_shape": "36,56,40"}, "use 40x56x40"),
        ({"patch_shape": "40,56"}, "2 entries for 3 spatial axes"),
        ({"filters": "8,16", "strides": "1,1,1;2,2,2;2,2,2"}, "filters has 2"),
        ({"filters": ""}, "filters: got '', expected positive whole numbers"),
        ({"strides": []}, r"strides: got \[\], expected whole numbers for each axis"),
        ({"spacing_mm": "1,1"}, r"spacing_mm has 2 entries for 3 spatial axes: \(1.0, 1.0\)"),
        ({"spacing_mm": "0,1,1"}, "spacing_mm: got '0,1,1', expected positive numbers in mm"),
        ({"spacing_mm": "1,inf,1"}, "spacing_mm: got '1,inf,1', expected positive numbers in mm"),
        ({"strides": "1,1;2,2"}, r"strides\[0\] has 2 entries for 3 spatial axes"),
        ({"learning_rate": "nan"}, "learning_rate: got 'nan', expected a positive number"),
        ({"learning_rate": 0}, "learning_rate: got 0, expected a positive number"),
        ({"weight_decay": "-1"}, "weight_decay: got '-1', expected a number, 0 or more"),
        ({"weight_decay": float("inf")}, "weight_decay: got inf"),
        ({"batch_size": float("inf")}, "batch_size: got inf, expected a positive whole number"),
        ({"foreground_share": 1.5}, "foreground_share: got 1.5, expected a number from 0 to 1"),
        ({"mirror_axes": "3"}, "mirror_axes must be from 0 to 2"),
        ({"orientation": "RAX"}, "codes of three axes"),
        ({"deep_supervision": "maybe"}, "expected true or false"),
        ({"normalization": "zscore,ct"}, "2 schemes for 1 channels"),
    ],
)
def test_a_bad_override_says_what_is_wrong(overrides, message):
    with pytest.raises(SettingsError, match=message):
        plan(HIPPOCAMPUS, overrides=overrides)


def test_resampling_is_planned_where_a_case_would_change_its_shape():
    cases = fingerprint([(40, 40, 40)] * 3)
    assert plan(cases).resampling == "none"
    assert plan(cases, overrides={"spacing_mm": "0.5,1,1"}).resampling == "extent"
    assert plan(cases, overrides={"resampling": "stock"}).resampling == "stock"
    assert (
        plan(fingerprint([(40, 40, 40)] * 3, spacings=[(1.0, 1.0, size) for size in (1.0, 1.0, 2.0)])).resampling
        == "extent"
    )
