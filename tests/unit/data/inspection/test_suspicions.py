from __future__ import annotations

import numpy as np
import pytest

from candy_monai.data.datasets.folds import Fold
from candy_monai.data.inspection.suspicions import (
    CaseFacts,
    content_of,
    labels_absent_from_folds,
    names_by_id,
    suspicions,
)


def facts(case_id: str, **changes: object) -> CaseFacts:
    values = {
        "case_id": case_id,
        "content": case_id.encode(),
        "spacing_mm": (1.0, 1.0, 3.0),
        "is_mirrored": False,
        "ranges": ((0.0, 100.0),),
        "label_ids": frozenset({0, 1}),
    }
    return CaseFacts(**{**values, **changes})


def told(*training: CaseFacts, test: tuple[CaseFacts, ...] = ()) -> str:
    return "\n".join(suspicions(training, test, channel_names=["MRI"]))


def test_ordinary_cases_raise_no_suspicion():
    assert told(*map(facts, "abcdef"), test=(facts("t"),)) == ""


def test_blank_images_are_alike_and_no_twins():
    blank = {"content": b"same", "ranges": ((0.0, 0.0),)}
    assert "same image" not in told(facts("a", **blank), facts("b", **blank))


def test_the_content_depends_on_values_and_shape_alone():
    values = np.arange(6.0)
    assert content_of([values]) == content_of([values.copy()])
    assert content_of([values.reshape(2, 3)]) != content_of([values.reshape(3, 2)])
    assert content_of([values]) != content_of([values[::-1]])


def test_few_cases_have_no_outliers_since_nothing_is_usual():
    assert told(facts("a"), facts("b"), facts("c", spacing_mm=(9.0, 9.0, 9.0), ranges=((0.0, 1e6),))) == ""


def test_a_wide_spread_of_scales_makes_no_outlier_of_each():
    scales = np.geomspace(10, 100_000, 9)  # as of MRI, which has no common scale
    assert told(*(facts(f"c{index}", ranges=((0.0, float(scale)),)) for index, scale in enumerate(scales))) == ""


@pytest.mark.parametrize("label_ids", [frozenset({0}), frozenset({0, 9}), frozenset({9})])
def test_a_label_of_background_and_ignored_voxels_alone_has_no_foreground(label_ids):
    cases = [facts("a"), facts("b", label_ids=label_ids)]
    assert suspicions(cases, [], channel_names=["MRI"], ignore_label=9) == [
        "labelsTr: no foreground in 1 of 2 cases: b"
    ]


def test_the_fewer_cases_are_the_mirrored_ones():
    mirrored = [facts(name, is_mirrored=True) for name in "abc"]
    assert "imagesTr: d: the affine is mirrored (right-handed axes" in told(*mirrored, facts("d"))


def test_a_fold_that_validates_on_the_only_case_of_a_label_is_named():
    ids = {"a": frozenset({0, 1}), "b": frozenset({0, 1, 2})}
    folds = [Fold(train=("a",), validation=("b",)), Fold(train=("b",), validation=("a",))]
    (text,) = labels_absent_from_folds(folds, ids, {1: "organ", 2: "lesion"}, first=3)
    assert text.startswith("fold 3: no training case has the label 'lesion' (id 2)")


def test_an_id_of_several_regions_has_the_names_of_all():
    assert names_by_id({"background": 0, "whole": (1, 2), "core": 2}) == {1: "whole", 2: "whole, core"}
