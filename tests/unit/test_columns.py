import math

import pytest

from candy_monai.columns import better_of, by_class, worth_listing
from candy_monai.evaluation.class_metrics import CLASS_METRICS


def test_which_values_are_better_follows_from_the_name():
    assert [better_of(name) for name in ("val score", "HD95", "ce loss", "soft dice", "my number")] == [
        "higher", "lower", "lower", "higher", None,
    ]  # fmt: skip


@pytest.mark.parametrize("name", CLASS_METRICS)
def test_the_names_of_the_metrics_of_evaluations_tell_which_values_are_better(name):
    metric = CLASS_METRICS[name]
    assert [better_of(name), better_of(f"val {name}"), better_of(metric.summary_name)] == [metric.better] * 3


def test_columns_of_classes_are_found_by_the_names_of_the_classes():
    columns = [
        "val dice",
        "val dice kidney",
        "val dice left kidney",
        "val hd95 kidney",
        "val score",
        "dice of a kidney",
    ]
    assert by_class(columns, ["kidney", "left kidney"]) == {
        "val dice": {"val dice kidney": "kidney", "val dice left kidney": "left kidney"}
    }


def test_numbers_are_classes_in_a_validation_alone():
    columns = ["val dice 0", "val dice 1", "loss 0", "loss 1"]
    assert by_class(columns) == {"val dice": {"val dice 0": "0", "val dice 1": "1"}}


def test_a_metric_that_has_a_class_s_name_alone_belongs_to_no_class():
    assert by_class(["kidney", "liver"], ["kidney", "liver"]) == {}


def test_of_few_classes_all_are_listed():
    metrics = {f"val dice {index}": [0.1] for index in range(12)}
    assert worth_listing(metrics) == (list(metrics), "")


def test_of_many_classes_the_lowest_that_were_measured_are_listed():
    metrics = {"val score": [0.5], **{f"val dice {index}": [0.9, index / 20] for index in range(13)}}
    metrics["val dice 0"] = [0.9, math.nan]
    names, said = worth_listing(metrics)
    assert names == ["val score", *(f"val dice {index}" for index in range(1, 6))]
    assert said == "the 5 lowest of 13 classes of val dice"
