import math

import pytest

from candy_monai.evaluation.class_metrics import CLASS_METRICS
from candy_monai.evaluation.evaluator import Evaluator
from candy_monai.metrics.surface import SURFACE_METRICS


@pytest.mark.parametrize(("name", "value"), [("dice", 0.5), ("iou", 1 / 3)])
def test_a_metric_of_counts_is_computed_from_the_voxels_in_both_maps_and_in_each(name, value):
    assert CLASS_METRICS[name].from_counts(2, 3, 5) == pytest.approx(value)
    assert math.isnan(CLASS_METRICS[name].from_counts(0, 0, 0))


def test_every_other_metric_is_one_of_surfaces():
    assert {name for name, metric in CLASS_METRICS.items() if metric.from_counts is None} == set(SURFACE_METRICS)


@pytest.mark.parametrize("name", CLASS_METRICS)
def test_every_metric_is_documented(name):
    assert f"``{name}``" in Evaluator.__doc__
