from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from candy_monai.columns import by_class
from candy_monai.errors import BadInputError
from candy_monai.forecasting.best_score import Forecast
from candy_monai.plotting.canvas.figures import save_figure
from candy_monai.plotting.charts.curves import class_figure, curve_figure, progress_figure

NAN = math.nan
EXPECTED = Forecast(epoch=20, score=0.9, interval=(0.8, 0.95), reason=None)


def _titles(figure: Figure, side: str = "left") -> list[str]:
    return [axes.get_title(loc=side) for axes in figure.axes]


def test_the_line_passes_through_the_values_at_epochs_from_1() -> None:
    line = curve_figure("loss", [3.0, 2.0, 1.0]).axes[0].lines[0]
    assert line.get_xdata().tolist() == [1, 2, 3]
    assert line.get_ydata().tolist() == [3, 2, 1]


def test_a_gap_stays_a_gap() -> None:
    line = curve_figure("a", [1.0, 2.0, NAN, math.inf, 5.0, 6.0]).axes[0].lines[0]
    assert np.isnan(line.get_ydata()).tolist() == [False, False, True, True, False, False]


@pytest.mark.parametrize("values", [[0.5], [NAN, 0.5, NAN]])
def test_a_single_point_is_visible(values: list[float]) -> None:
    dots = [line for line in curve_figure("a", values).axes[0].lines if line.get_marker() == "o"]
    assert [line.get_ydata().tolist() for line in dots] == [[0.5]]


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("val score", "best 0.9000 at epoch 2"),
        ("loss", "best 0.1000 at epoch 1"),
        ("dice loss", "best 0.1000 at epoch 1"),
        ("val hd100 liver", "best 0.1000 at epoch 1"),
        ("alpha", ""),
    ],
)
def test_the_best_is_marked_if_the_name_tells_what_is_better(name: str, best: str) -> None:
    assert _titles(curve_figure(name, [0.1, 0.9, 0.5]), "right") == [best]


@pytest.mark.parametrize("values", [[], [NAN], [NAN, math.inf]])
def test_no_values_is_said(values: list[float]) -> None:
    assert [text.get_text() for text in curve_figure("loss", values).axes[0].texts] == ["no values yet"]


def test_positions_may_be_given() -> None:
    assert curve_figure("loss", [1.0, 2.0], x=[10, 20]).axes[0].lines[0].get_xdata().tolist() == [10, 20]


def test_positions_of_another_length_are_refused() -> None:
    with pytest.raises(BadInputError, match="1 positions were given for 2 values"):
        curve_figure("loss", [1.0, 2.0], x=[1])


@pytest.mark.filterwarnings("ignore:Glyph")
@settings(max_examples=15)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30), st.text(max_size=80))
def test_any_values_and_any_name_are_drawn(values: list[float], name: str) -> None:
    curve_figure(name, values)._repr_png_()  # type: ignore[attr-defined]


def test_markup_in_a_name_is_shown_as_it_is() -> None:
    assert curve_figure("$\\frac{$", [1.0])._repr_png_()  # type: ignore[attr-defined]


def test_training_and_validation_of_a_metric_share_a_panel() -> None:
    figure = progress_figure({"loss": [1.0, 0.5], "val loss": [1.2, 0.9], "dice": [0.1, 0.4]})
    assert _titles(figure) == ["loss", "dice"]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]


def test_the_score_comes_first_and_the_time_last() -> None:
    names = ["epoch", "epoch duration", "learning rate", "dice", "loss", "val score"]
    assert _titles(progress_figure({name: [1.0] for name in names})) == [
        "val score",
        "loss",
        "dice",
        "learning rate",
        "epoch duration (s)",
    ]


def test_all_panels_share_the_epochs() -> None:
    figure = progress_figure({"loss": [1.0] * 9, "val score": [0.5] * 3}, forecast=EXPECTED)
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert figure.axes[0].get_xlim()[1] > 20


def test_a_forecast_is_written_beside_its_interval() -> None:
    figure = progress_figure({"val score": [0.5, 0.6]}, forecast=EXPECTED)
    assert [text.get_text() for text in figure.axes[0].texts] == ["forecast 0.900"]


def test_a_forecast_that_abstains_is_not_drawn() -> None:
    figure = progress_figure(
        {"val score": [0.5, 0.6]}, forecast=Forecast(epoch=2, score=0.6, interval=None, reason=None)
    )
    assert not figure.axes[0].texts
    assert figure.axes[0].get_xlim()[1] < 3


def test_many_metrics_fill_at_most_twelve_panels() -> None:
    metrics = {f"metric {number}": [1.0] for number in range(300)} | {"val score": [1.0], "learning rate": [1.0]}
    assert len(progress_figure(metrics).axes) == 12


@pytest.mark.parametrize("metrics", [{}, {"loss": []}, {"loss": [NAN]}])
def test_a_run_without_epochs_is_drawn(metrics: dict[str, list[float]], tmp_path: Path) -> None:
    assert save_figure(progress_figure(metrics), tmp_path / "progress.png").exists()


def test_one_wild_loss_does_not_flatten_the_rest() -> None:
    axes = curve_figure("loss", [1e6, *np.linspace(2.0, 1.0, 40)]).axes[0]
    assert axes.get_ylim()[1] < 10


def test_the_users_settings_of_matplotlib_are_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    progress_figure({"loss": [1.0, 2.0]})
    assert dict(matplotlib.rcParams) == before


def test_a_few_classes_are_drawn_by_name() -> None:
    figure = class_figure("val dice", {"_odd $x$": [0.1, 0.2], "kidney": [0.3, math.nan]})
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_odd $x$", "kidney"]
    assert figure._repr_png_()  # type: ignore[attr-defined]


def test_of_many_classes_the_median_and_the_worst_are_drawn() -> None:
    figure = class_figure("val dice", {f"organ {index}": [0.0, index / 20] for index in range(20)})
    legend = figure.axes[0].get_legend()
    assert legend is not None
    shown = [text.get_text().strip() for text in legend.get_texts()]
    assert shown == ["median of 20", *(f"organ {index}" for index in range(5))]


def test_classes_that_were_never_measured_are_drawn() -> None:
    assert class_figure("val dice", {f"{index}": [math.nan] for index in range(9)})._repr_png_()  # type: ignore[attr-defined]


def test_the_classes_of_a_metric_share_a_panel() -> None:
    metrics = {"val dice": [0.5], "val dice a": [0.4], "val dice b": [0.6]}
    assert _titles(progress_figure(metrics, classes=by_class(metrics, ["a", "b"]))) == ["val dice", "val dice by class"]
