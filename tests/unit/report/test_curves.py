import math

import numpy as np
import pytest

from candy_monai.report.curves import class_of_metric, figures, hex_color, kept_points, rounded

NAMES = {0: "background", 1: "left kidney", 2: "kidney"}


def drawn(metrics, names=NAMES):
    return {figure.key: figure for figure in figures(metrics, names)}


def test_training_and_validation_of_a_metric_share_a_figure():
    figure = drawn({"combined loss": [2.0, 1.0], "val combined loss": [2.5, 1.5]})["combined loss"]
    assert [(one.name, one.color) for one in figure.series] == [("training", "training"), ("validation", "validation")]
    assert figure.better == "lower"
    assert (figure.series[0].x, figure.series[0].y) == ([1, 2], [2.0, 1.0])


def test_the_score_comes_first_and_the_time_last():
    metrics = {
        name: [1.0]
        for name in ("epoch duration", "learning rate", "soft dice", "val dice 1", "combined loss", "val score")
    }
    assert [figure.key for figure in figures(metrics, NAMES)] == [
        "val score", "combined loss", "classes:val dice", "soft dice", "learning rate", "epoch duration",
    ]  # fmt: skip


@pytest.mark.parametrize("columns", [("val dice 1", "val dice 2"), ("val dice left kidney", "val dice kidney")])
def test_classes_are_curves_of_one_figure_by_name_and_in_their_colour(columns):
    figure = drawn({columns[0]: [0.1, 0.2], columns[1]: [0.3, 0.4]})["classes:val dice"]
    assert [one.name for one in figure.series] == ["left kidney", "kidney"]
    assert [one.color for one in figure.series] == [hex_color(1), hex_color(2)] == ["#56b4e9", "#e69f00"]


def test_a_metric_belongs_to_the_class_with_the_longest_name_that_it_ends_with():
    assert class_of_metric("dice left kidney", NAMES) == ("dice", 1)
    assert class_of_metric("dice left kidney", {1: "kidney", 2: "left kidney"}) == ("dice", 2)
    assert class_of_metric("dice segment 1", {1: "liver", 2: "segment 1"}) == ("dice", 2)
    assert class_of_metric("dice 1", {1: "liver", 2: "segment 1"}) == ("dice", 1)
    assert class_of_metric("dice", NAMES) is None


def test_a_number_at_the_end_of_a_training_s_metric_is_no_class():
    assert {"loss 1", "loss 2"} <= set(drawn({"loss 1": [0.5], "loss 2": [0.5]}))


def test_an_epoch_without_a_value_is_left_out():
    figure = drawn({"val score": [math.nan, 0.5, math.nan, 0.75], "learning rate": [math.nan] * 4})
    assert figure["val score"].series[0].x == [2, 4]
    assert "learning rate" not in figure


def test_many_classes_are_quantiles_and_the_five_worst_at_the_end():
    metrics = {f"val dice {i}": [0.5, i / 100] for i in range(1, 101)}
    figure = drawn(metrics, {i: f"organ {i}" for i in range(101)})["classes:val dice"]
    assert [one.name for one in figure.series] == ["median", *(f"organ {i}" for i in range(1, 6))]
    assert figure.series[0].y == [0.5, 0.505]
    assert [(band.low[1], band.high[1]) for band in figure.bands] == [(0.0595, 0.9505), (0.2575, 0.7525)]
    assert "100 classes" in figure.note


def test_of_distances_the_largest_are_the_worst_and_the_background_is_not_folded_in():
    metrics = {f"val hd95 {i}": [float(i)] for i in range(21)}
    figure = drawn(metrics, {})["classes:val hd95"]
    assert [one.name for one in figure.series[1:]] == [f"class {i}" for i in (20, 19, 18, 17, 16)]
    assert figure.series[0].y == [10.5]


def test_quantiles_leave_out_classes_that_an_epoch_does_not_have_and_epochs_without_any():
    metrics = {f"val dice {i}": [math.nan, i / 10 if i % 2 else math.nan] for i in range(1, 20)}
    figure = drawn(metrics, {})["classes:val dice"]
    assert (figure.series[0].x, figure.series[0].y) == ([2], [1.0])


def test_of_many_epochs_the_extremes_are_kept_and_the_points_are_few():
    values = np.sin(np.arange(10_000) / 50)
    values[5_001], values[7_123] = 9.0, -9.0
    places = kept_points(values, 600)
    assert len(places) <= 602
    assert {0, 5_001, 7_123, 9_999} <= set(places.tolist())
    assert kept_points(values[:600], 600).tolist() == list(range(600))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.123456789, -123456.789, 1e-9, 3.0e20, 99999.96])
def test_numbers_are_written_with_five_digits(value):
    assert rounded(np.array([value])) == [float(f"{value:.5g}")]


def test_numbers_at_the_ends_of_the_range_stay_as_they_are(recwarn):
    values = [1.7976931348623157e308, 1e300, -1e300, 1e-310, 5e-324]
    assert rounded(np.array(values)) == values
    assert not recwarn.list
