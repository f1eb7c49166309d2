from __future__ import annotations

import json
import shutil

import pytest
import torch
from monai.data import MetaTensor

from candy_monai.cli.main import main
from candy_monai.data.images.reading import load_image
from candy_monai.data.images.writing import save_image
from candy_monai.demo.phantom import write_phantom_dataset


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


def test_two_files_are_compared_and_one_with_itself_with_a_warning(dataset, capsys):
    first = sorted((dataset / "labelsTr").iterdir())[0]
    with pytest.warns(UserWarning, match=f"{first.name}: the prediction and the reference are the same file"):
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


@pytest.mark.parametrize("place", [".", "labelsTs", "predictions"])  # nnU-Net puts it among its predictions
def test_regions_of_dataset_json_are_scored_by_name(tmp_path, capsys, place):
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "regions_class_order": [1, 2, 3]}
    content |= {"numTraining": 1, "file_ending": ".nii.gz"}
    reference = torch.tensor([[[1, 1, 2, 2, 3, 3, 0, 4]]])
    prediction = torch.tensor([[[2, 2, 1, 1, 3, 3, 0, 1]]])  # 1 and 2 swapped; the last voxel counts for nothing
    for name, label in (("labelsTs", reference), ("predictions", prediction)):
        save_image(label, tmp_path / name / "a.nii.gz")
    (tmp_path / place / "dataset.json").write_text(json.dumps(content))
    assert evaluate(tmp_path / "predictions", tmp_path / "labelsTs", "--metrics", "dice") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    core = 2 * 2 / (4 + 4)  # the core is 2 and 3: predicted in voxels 0, 1, 4, 5, true in 2 to 5
    assert lines[1:4] == [
        ["1", "whole", "1", "1.0000"],
        ["2", "core", "1", f"{core:.4f}"],
        ["3", "enhancing", "1", "1.0000"],
    ]


@pytest.mark.parametrize(("ids", "is_noted"), [([1, 2], True), ([1], False)])
def test_predictions_of_regions_that_no_dataset_json_describes_are_noted(tmp_path, capsys, ids, is_noted):
    for folder in ("labels", "predictions"):
        save_image(torch.tensor([[[0, 1], [2, 2]]]), tmp_path / folder / "a.nii.gz")
    classes = [{"name": "whole", "ids": ids, "voxels": 3, "ml": None}]
    case = {"run": "0", "file": "a.nii.gz", "inputs": [], "classes": classes}
    manifest = {"format": 1, "runs": [{"id": "0"}], "cases": {"a": case}}
    (tmp_path / "predictions" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "labels" / "Dataset.json").write_text("{}")
    assert evaluate(tmp_path / "predictions", tmp_path / "labels") == 0
    printed = capsys.readouterr().out
    assert ("names the overlapping regions whole: to measure these" in printed) is is_noted
    assert f"ignored: {tmp_path / 'labels' / 'Dataset.json'}, which must be called dataset.json" in printed


def test_an_id_that_dataset_json_does_not_know_exits_with_2_though_both_maps_hold_it(dataset, predictions, capsys):
    file = sorted((dataset / "labelsTr").iterdir())[0]
    label = load_image(file, is_label=True)
    wrong = MetaTensor(torch.where(label.as_tensor() == 1, 9, label.as_tensor()), affine=label.affine)
    for folder in (dataset / "labelsTr", predictions):
        save_image(wrong, folder / file.name)
    assert evaluate(predictions, dataset / "labelsTr") == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.count(f"{file.name} holds the label ids 9") == 2


def test_few_predictions_of_many_labels_need_an_option_that_the_error_names(dataset, predictions, capsys):
    first, *others = sorted(predictions.iterdir())
    for file in others:
        file.unlink()
    assert evaluate(predictions, dataset / "labelsTr") == 2
    shown = " ".join(capsys.readouterr().err.split())
    assert "3 of 4 references have no partner; --common" in shown
    assert evaluate(predictions, dataset / "labelsTr", "--common") == 0
    assert f"left out, without a partner: {others[0].name.removesuffix('.nii.gz')}, " in capsys.readouterr().out
    assert first.exists()


def test_tolerances_lesions_and_surfaces_are_chosen_and_stand_in_the_summary(dataset, predictions, capsys):
    name = list(json.loads((dataset / "dataset.json").read_text())["labels"])[1]
    options = ("--metrics", "surfaces,lesions", "--tolerance", f"{name}=2.5", "--lesions", "brats", "--subvoxels")
    assert evaluate(predictions, dataset / "labelsTr", *options, "--json") == 0
    definitions = json.loads(capsys.readouterr().out)["definitions"]
    assert f"2.5 mm for {name}" in definitions["SurfaceDice"]
    assert "dilation of 3 voxels" in definitions["lesions"]
    assert "DeepMind" in definitions["surfaces"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--tolerance", "two", "expected a number, or CLASS=MM"),
        ("--tolerance", "a=two", "expected CLASS=MM"),
        ("--tolerance", "liver=2", "no class 'liver'"),
        ("--lesions", "bratz", "Did you mean 'brats'"),
    ],
)
def test_tolerances_and_rules_that_are_none_exit_with_2(dataset, predictions, capsys, option, value, message):
    assert evaluate(predictions, dataset / "labelsTr", "--metrics", "all", option, value) == 2
    assert message in capsys.readouterr().err


def test_a_row_a_case_and_class_is_written_and_intervals_are_shown(dataset, predictions, tmp_path, capsys):
    table, summary = tmp_path / "new" / "cases.csv", tmp_path / "summary.json"
    options = ("--csv", table, "--summary", summary, "--intervals", "bootstrap", "--jobs", "2")
    assert evaluate(predictions, dataset / "labelsTr", *options) == 0
    shown = capsys.readouterr().out
    assert f"Table: {table}" in shown
    assert "by the bootstrap" in shown
    assert len(table.read_text().splitlines()) == 1 + 4 * 2
    assert json.loads(summary.read_text())["statistics"]["interval"]["method"] == "bootstrap"


@pytest.mark.parametrize("option", ["--summary", "--csv", "--page"])
@pytest.mark.parametrize(
    "place", ["labels/a.nii.gz", "predictions/a.nii.gz", "dataset.json", "predictions/dataset.json"]
)
def test_no_result_takes_the_place_of_what_is_read(tmp_path, capsys, option, place):
    for name in ("labels", "predictions"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.nii.gz").write_bytes(b"as it was")
    for folder in (tmp_path, tmp_path / "predictions"):
        (folder / "dataset.json").write_text("{}")
    before = (tmp_path / place).read_bytes()
    assert (
        main(["evaluate", str(tmp_path / "predictions"), str(tmp_path / "labels"), option, str(tmp_path / place)]) == 2
    )
    assert f"{option}: {tmp_path / place} is an input file and would be overwritten" in capsys.readouterr().err
    assert (tmp_path / place).read_bytes() == before


def test_two_results_are_not_written_into_one_file(tmp_path, capsys):
    for name in ("labels", "predictions"):
        (tmp_path / name).mkdir()
    both = ["--summary", str(tmp_path / "x.json"), "--csv", str(tmp_path / "x.json")]
    assert main(["evaluate", str(tmp_path / "predictions"), str(tmp_path / "labels"), *both]) == 2
    assert "--summary and --csv name the same file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tolerance", "2"], "--tolerance has no effect on --metrics dice,iou; leave it out, or add surface_dice"),
        (["--metrics", "hd95", "--tolerance", "1=2"], "--tolerance has no effect on --metrics hd95"),
        (["--metrics", "dice,lesions", "--subvoxels"], "--subvoxels has no effect on --metrics dice,lesions"),
        (["--metrics", "surfaces", "--lesions", "brats"], "--lesions has no effect on --metrics surfaces"),
        (["--metrics", "surfaces", "--tolerance", "a=2,a=3"], "--tolerance a is given twice: '2' and '3'"),
    ],
)
def test_an_option_that_decides_nothing_is_refused(tmp_path, capsys, words, said):
    for name in ("labels", "predictions"):
        (tmp_path / name).mkdir()
    assert main(["evaluate", str(tmp_path / "predictions"), str(tmp_path / "labels"), *words]) == 2
    assert said in capsys.readouterr().err
