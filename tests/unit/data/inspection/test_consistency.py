from __future__ import annotations

import numpy as np
import pytest

from candy_monai.data.datasets.folds import Fold
from candy_monai.data.inspection.consistency import (
    inconsistencies,
    labels_absent_from_folds,
    names_by_id,
    sides_among_labels,
)
from candy_monai.data.inspection.fingerprint import CaseFingerprint
from candy_monai.data.inspection.inspect import MeasuredCase


def measured(case_id, *, spacing_mm=(1.0, 1.0, 3.0), label_ids=(0, 1), **changes):
    fingerprint = CaseFingerprint(
        case_id=case_id,
        shape=(4, 4, 4),
        spacing_mm=spacing_mm,
        orientation=("R", "A", "S"),
        nonzero_shape=(4, 4, 4),
        foreground_shape=None,
        class_voxels=dict.fromkeys(label_ids, 1),
    )
    values = {"is_picture": False, "is_mirrored": False, "content": case_id, "ranges": ((0.0, 100.0),)}
    samples = np.zeros((1, 0))
    return MeasuredCase(fingerprint=fingerprint, foreground=samples, whole=samples, **{**values, **changes})


def told(*training, test=()):
    return "\n".join(inconsistencies(training, test, channel_names=["MRI"]))


def test_ordinary_cases_give_no_warning():
    assert told(*map(measured, "abcdef"), test=(measured("t"),)) == ""


def test_blank_images_are_alike_and_no_duplicates():
    blank = {"content": "same", "ranges": ((0.0, 0.0),)}
    assert "same image" not in told(measured("a", **blank), measured("b", **blank))


def test_few_cases_have_no_outliers_since_nothing_is_usual():
    assert told(measured("a"), measured("b"), measured("c", spacing_mm=(9.0, 9.0, 9.0), ranges=((0.0, 1e6),))) == ""


def test_a_wide_spread_of_scales_makes_no_outlier_of_each():
    scales = np.geomspace(10, 100_000, 9)  # as of MRI, which has no common scale
    assert told(*(measured(f"c{index}", ranges=((0.0, float(scale)),)) for index, scale in enumerate(scales))) == ""


@pytest.mark.parametrize("label_ids", [(0,), (0, 9), (9,)])
def test_a_label_of_background_and_ignored_voxels_alone_has_no_foreground(label_ids):
    cases = [measured("a"), measured("b", label_ids=label_ids)]
    assert inconsistencies(cases, [], channel_names=["MRI"], ignore_label=9) == [
        "labelsTr: no foreground in 1 of 2 cases: b"
    ]


def test_the_fewer_cases_are_the_mirrored_ones():
    mirrored = [measured(name, is_mirrored=True) for name in "abc"]
    assert "imagesTr: d: the affine is mirrored (right-handed axes" in told(*mirrored, measured("d"))


def test_a_fold_that_validates_on_the_only_case_of_a_label_is_named():
    ids = {"a": frozenset({0, 1}), "b": frozenset({0, 1, 2})}
    folds = [Fold(train=("a",), validation=("b",)), Fold(train=("b",), validation=("a",))]
    (text,) = labels_absent_from_folds(folds, ids, {1: "organ", 2: "lesion"}, first=3)
    assert text.startswith("fold 3: no training case has the label 'lesion' (id 2)")


def test_an_id_of_several_regions_has_the_names_of_all():
    assert names_by_id({"background": 0, "whole": (1, 2), "core": 2}) == {1: "whole", 2: "whole, core"}


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["background", "Precentral_L", "Precentral_R"], "Precentral_L and Precentral_R"),
        (["kidney left", "Kidney right"], "kidney left and Kidney right"),
        (["lung-right", "lung-left"], "lung-left and lung-right"),
    ],
)
def test_labels_of_two_sides_are_a_warning_since_mirroring_swaps_them(names, pair):
    (warning,) = sides_among_labels(names)
    assert pair in warning
    assert "--set mirror_axes" in warning


@pytest.mark.parametrize("names", [["background", "LV", "RV", "MYO"], ["left atrium"], ["cleft", "cright"], ["l", "x"]])
def test_labels_of_one_side_or_of_none_are_no_warning(names):
    assert sides_among_labels(names) == []
