from __future__ import annotations

import math

import pytest

from candy_monai.forecasting.best_score import Forecast
from candy_monai.plotting.charts.forecasts import forecast_figure

EXPECTED = Forecast(epoch=20, score=0.9, interval=(0.8, 0.95), reason=None)


def test_the_band_reaches_from_the_best_so_far_to_the_interval_at_the_end_of_the_run():
    band = forecast_figure([0.5, 0.7, 0.6], EXPECTED, 30).axes[0].collections[0].get_paths()[0].vertices
    assert [3, 0.7] in band.tolist()
    assert {(30, 0.8), (30, 0.95)} <= set(map(tuple, band.tolist()))


def test_the_target_epoch_is_marked_and_the_figures_are_in_the_title():
    axes = forecast_figure([0.5, 0.7, 0.6], EXPECTED, 30).axes[0]
    assert axes.get_title(loc="right") == "best 0.9000 at epoch 20, 0.8000 to 0.9500 (80 %)"
    assert [20] in [list(line.get_xdata()) for line in axes.lines]


def test_epochs_are_numbered_from_the_first():
    axes = forecast_figure([0.5, 0.7, 0.6], EXPECTED, 30, first_epoch=0).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0, 1, 2]
    assert "epoch 19" in axes.get_title(loc="right")


@pytest.mark.parametrize("scores", [[], [math.nan], [0.5, math.inf]])
def test_without_a_forecast_the_reason_is_written_into_the_picture(scores):
    figure = forecast_figure(scores, Forecast(epoch=0, score=math.nan, interval=None, reason="too few points"), 10)
    assert "no forecast: too few points" in [text.get_text() for text in figure.axes[0].texts]
    assert figure._repr_png_()


@pytest.mark.parametrize("epoch", [3, 30])
def test_a_best_that_is_over_and_one_at_the_very_end_are_drawn(epoch):
    expected = Forecast(epoch=epoch, score=0.7, interval=(0.7, 0.7), reason=None)
    assert forecast_figure([0.5, 0.7, 0.6], expected, 30)._repr_png_()
