from __future__ import annotations

import json
import shutil

import pytest
import torch
from monai.data import MetaTensor

from candy_monai.cli.main import main
from candy_monai.data.io import load_image, save_image
from candy_monai.data.phantom import write_phantom_dataset


@pytest.fixture
def dataset(tmp_path):
    return write_phantom_dataset(tmp_path / "Dataset001_Phantom", num_cases=4, num_test_cases=0)


@pytest.fixture
def predictions(dataset, tmp_path):
    """Return the labels, one of which misses everything."""
    folder = tmp_path / "predictions"
    shutil.copytree(dataset / "labelsTr", folder)
    missed = sorted(folder.iterdir())[2]
    save_image(torch.zeros_like(load_image(missed, is_label=True)), missed)
    return folder


def evaluate(*arguments) -> int:
    return main(["evaluate", *map(str, arguments)])


def test_the_table_names_the_classes_and_the_worst_cases(dataset, predictions, capsys):
    assert evaluate(predictions, dataset / "labelsTr") == 0
    lines = capsys.readouterr().out.splitlines()
    names = list(json.loads((dataset / "dataset.json").read_text())["labels"])
    assert lines[0].split() == ["class", "cases", "dice", "iou"]
    assert lines[1].split() == ["1", names[1], "4", "0.7500", "0.7500"]
    worst = sorted(predictions.iterdir())[2].name.removesuffix(".nii.gz")
    assert lines[-1].startswith(f"worst dice: {worst} 0.0000, ")


def test_the_summary_is_written_where_asked_and_json_prints_nothing_else(dataset, predictions, tmp_path, capsys):
    summary = tmp_path / "new" / "summary.json"
    assert evaluate(predictions, dataset / "labelsTr", "--json", "--summary", summary, "--metrics", "hd95, dice") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads(summary.read_text())
    assert shown["foreground_mean"]["HD95"] == "inf"
    assert shown["foreground_mean"]["Dice"] == 0.75


def test_two_files_are_compared(dataset, capsys):
    first = sorted((dataset / "labelsTr").iterdir())[0]
    assert evaluate(first, first, "--metrics", "dice") == 0
    assert "1.0000" in capsys.readouterr().out


def test_unmatched_names_exit_with_2_and_are_all_listed(dataset, predictions, capsys):
    first, *_, last = sorted(predictions.iterdir())
    first.rename(predictions / "stranger.nii.gz")
    last.unlink()
    assert evaluate(predictions, dataset / "labelsTr") == 2
    shown = capsys.readouterr().err
    for name in ("stranger", first.name.removesuffix(".nii.gz"), last.name.removesuffix(".nii.gz")):
        assert f"{name}: " in shown


def test_another_grid_exits_with_2_and_names_the_file(dataset, predictions, capsys):
    file = sorted(predictions.iterdir())[0]
    label = load_image(file, is_label=True)
    save_image(MetaTensor(label.as_tensor()[:, 1:], affine=label.affine), file)
    assert evaluate(predictions, dataset / "labelsTr") == 2
    assert f"{file.name}: shape" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--metrics", "dise"), "no metric 'dise'"),
        (("--metrics", ""), "no metric ''"),
        (("--metric", "dice"), "--metric"),
    ],
)
def test_options_that_cannot_work_exit_with_2(dataset, arguments, message, capsys):
    assert evaluate(dataset / "labelsTr", dataset / "labelsTr", *arguments) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_missing_exits_with_2(dataset, tmp_path, capsys):
    assert evaluate(tmp_path / "nowhere", dataset / "labelsTr") == 2
    assert "nowhere" in capsys.readouterr().err
