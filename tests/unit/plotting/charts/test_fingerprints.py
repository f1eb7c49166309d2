from __future__ import annotations

from dataclasses import replace

import pytest

from candy_monai.data.inspection.inspect import inspect
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.plotting.charts.fingerprints import fingerprint_figure


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return inspect(write_phantom_dataset(tmp_path_factory.mktemp("d") / "d", num_cases=3, shape=(16, 16, 16)))


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_volumes_show_classes_spacings_and_shapes(volumes):
    classes, spacings, shapes = titles(fingerprint_figure(volumes))
    assert classes.startswith("voxels of each class")
    assert (spacings, shapes) == ("spacing in mm", "shape in voxels")


def test_pictures_have_no_spacing_to_show(tmp_path):
    found = inspect(write_phantom_dataset(tmp_path / "d", num_cases=2, num_dims=2))
    assert titles(fingerprint_figure(found))[1:] == ["shape in pixels"]


def test_of_many_classes_the_most_frequent_thirty_are_shown(volumes):
    labels = {"background": 0, **{f"organ {index}": index for index in range(1, 120)}}
    case = replace(volumes.cases[0], class_voxels={index: 120 - index for index in range(120)})
    figure = fingerprint_figure(replace(volumes, labels=labels, cases=(case,)))
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["background", *(f"organ {index}" for index in range(1, 30))]


def shares(figure):
    return [bar.get_x() + bar.get_width() for bar in figure.axes[0].patches]


def test_shares_are_of_all_voxels_though_regions_overlap_or_classes_are_left_out(volumes):
    case = replace(volumes.cases[0], class_voxels={0: 60, 1: 30, 2: 10})
    labels = {"background": 0, "whole": (1, 2), "core": (2,)}
    found = replace(volumes, labels=labels, cases=(case,))
    assert shares(fingerprint_figure(found)) == pytest.approx([0.6, 0.4, 0.1])
    labels = {"background": 0, **{f"organ {index}": index for index in range(1, 40)}}
    case = replace(case, class_voxels={0: 21, **dict.fromkeys(range(1, 40), 1)})
    assert shares(fingerprint_figure(replace(volumes, labels=labels, cases=(case,))))[0] == pytest.approx(21 / 60)


def test_names_with_dollar_signs_are_no_formulas(volumes):
    fingerprint_figure(replace(volumes, labels={"background": 0, "a$b$_{": 1})).canvas.draw()
