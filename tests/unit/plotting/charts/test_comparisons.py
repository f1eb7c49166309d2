"""Comparisons of methods as charts."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from candy_monai.plotting.charts.comparisons import ComparedMetric, PairedDifferences, comparison_figure

VALUES = {"ours": (0.8, 0.9, 0.7), "theirs": (0.7, 0.9, math.inf)}


@pytest.fixture
def figure():
    pair = PairedDifferences(name="ours - theirs", values=(0.1, 0.0, math.inf), mean=0.05, interval=(-0.02, 0.12))
    return comparison_figure([ComparedMetric(title="$dice", values=VALUES, pairs=[pair])] * 2)


def test_each_metric_has_the_values_on_the_left_and_the_differences_on_the_right(figure):
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["$dice, 1 infinite", "paired differences, and their mean, 1 infinite"] * 2
    left, right = figure.axes[:2]
    assert [text.get_text() for text in left.get_yticklabels()] == ["ours", "theirs"]
    assert [text.get_text() for text in right.get_yticklabels()] == ["ours - theirs"]


def test_every_finite_value_is_a_dot_and_the_interval_a_bar(figure):
    left, right = figure.axes[:2]
    dots = {tuple(line.get_xdata()) for line in left.lines if line.get_marker() == "o"}
    assert dots == {(0.8, 0.9, 0.7), (0.7, 0.9)}
    (bar,) = right.collections
    assert bar.get_segments()[0][:, 0] == pytest.approx([-0.02, 0.12])


def test_numbers_with_many_digits_below_the_axes_do_not_overlap():
    pair = PairedDifferences(name="a - b", values=(0.0083, 0.0179), mean=0.0123, interval=(0.0054, 0.0194))
    values = {"a": (0.0249, 0.0412), "b": (0.0155, 0.0233)}
    figure = comparison_figure([ComparedMetric(title="iou", values=values, pairs=[pair])])
    figure.draw_without_rendering()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.get_xticklabels()]
        assert len(boxes) > 3
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_a_method_without_a_finite_value_keeps_its_row():
    pair = PairedDifferences(name="a - b", values=(math.inf,), mean=math.nan, interval=None)
    figure = comparison_figure([ComparedMetric(title="hd95", values={"a": (1.0,), "b": (math.inf,)}, pairs=[pair])])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["a", "b"]


def test_long_names_keep_their_ends():
    name = "experiments/crossval-Dataset004_Hippocampus/fold_0"
    figure = comparison_figure([ComparedMetric(title="dice", values={name: (1.0,)}, pairs=[])])
    (shown,) = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert shown == "…" + name[-27:]
