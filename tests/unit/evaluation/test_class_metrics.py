import math

import pytest

from candy_monai.errors import BadInputError
from candy_monai.evaluation.class_metrics import (
    CLASS_METRICS,
    METRIC_GROUPS,
    ClassCounts,
    definitions_of,
    metrics_named,
)
from candy_monai.evaluation.evaluator import Evaluator
from candy_monai.metrics.lesions import LESION_METRICS
from candy_monai.metrics.surface import SURFACE_METRICS

COUNTED = [name for name, metric in CLASS_METRICS.items() if metric.from_counts is not None]


def value(name, common, predicted, referenced, num_voxels=20, voxel_ml=0.5):
    counts = ClassCounts(
        common=common, predicted=predicted, referenced=referenced, num_voxels=num_voxels, voxel_ml=voxel_ml
    )
    return CLASS_METRICS[name].from_counts(counts)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dice", 0.5),
        ("iou", 1 / 3),
        ("precision", 2 / 3),
        ("recall", 2 / 5),
        ("specificity", 14 / 15),
        ("volume_ml", 1.5),
        ("reference_volume_ml", 2.5),
        ("volume_difference_ml", -1.0),
        ("volume_error_ml", 1.0),
    ],
)
def test_a_metric_of_counts_is_computed_from_the_voxels_in_both_maps_and_in_each(name, expected):
    assert value(name, 2, 3, 5) == pytest.approx(expected)


def test_every_metric_of_counts_is_among_those_that_are_tested():
    assert len(COUNTED) == 9


@pytest.mark.parametrize(
    ("counts", "undefined"),
    [
        ((0, 0, 0), {"dice", "iou", "precision", "recall"}),
        ((0, 0, 5), {"precision"}),
        ((0, 5, 0), {"recall"}),
        ((20, 20, 20), {"specificity"}),
    ],
)
def test_a_ratio_that_has_nothing_to_be_of_is_nan_and_no_other(counts, undefined):
    assert {name for name in COUNTED if math.isnan(value(name, *counts))} == undefined


def test_without_a_place_in_space_there_are_no_volumes():
    for name in METRIC_GROUPS["volumes"]:
        assert math.isnan(value(name, 2, 3, 5, voxel_ml=math.nan))


def test_every_other_metric_is_one_of_surfaces_or_lesions():
    assert METRIC_GROUPS["surfaces"] == SURFACE_METRICS
    assert METRIC_GROUPS["lesions"] == LESION_METRICS
    assert {name for name, metric in CLASS_METRICS.items() if metric.kind == "counts"} == set(COUNTED)


def test_groups_stand_for_their_metrics_each_once():
    assert metrics_named(["dice", "surfaces", "hd95"]) == ("dice", *SURFACE_METRICS)
    assert metrics_named(["all"]) == tuple(CLASS_METRICS)
    with pytest.raises(BadInputError, match="Did you mean 'lesions'"):
        metrics_named(["lesion"])


def test_the_definitions_say_what_was_chosen():
    texts = definitions_of(
        ["dice", "hd95", "surface_dice", "lesion_f1"], tolerance="2 mm", lesions="RULE", ignore_label=7
    )
    assert list(texts)[:4] == ["Dice", "HD95", "SurfaceDice", "LesionF1"]
    assert texts["SurfaceDice"].endswith("tolerance 2 mm")
    assert texts["lesions"] == "RULE"
    assert "label id 7" in texts["ignored"]
    assert definitions_of(["dice"], tolerance="2 mm", lesions="RULE").keys() == {"Dice", "means"}


@pytest.mark.parametrize("name", CLASS_METRICS)
def test_every_metric_is_documented(name):
    assert f"``{name}``" in Evaluator.__doc__
