from __future__ import annotations

import argparse
import json

import nibabel
import numpy as np
import pytest

from candy_monai.cli.main import main
from candy_monai.cli.options import as_train
from candy_monai.data.images.reading import load_image
from candy_monai.demo.phantom import write_phantom_dataset
from tests.folders import make
from tests.looks import counted_parses, counted_reads


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "Dataset001_Phantom", num_cases=4, num_test_cases=0)


def inspect(*arguments) -> int:
    return main(["inspect", *map(str, arguments), "--device", "cpu"])


def test_a_sound_dataset_is_shown_with_its_plan(dataset, capsys):
    assert inspect(dataset) == 0
    shown = capsys.readouterr()
    assert shown.out.endswith(f"Next: candy-monai train {dataset} --device cpu\n")
    for text in ("cases", "label background", "patch_shape", "No problems found: ready for training."):
        assert text in shown.out
    assert "problem" not in shown.err


def test_a_share_close_to_all_voxels_is_shown_in_full(tmp_path, capsys):
    folder = write_phantom_dataset(tmp_path / "rare", num_cases=2, num_test_cases=0, shape=(24, 24, 16))
    for path in (folder / "labelsTr").iterdir():
        image = nibabel.load(path)
        rare = np.zeros(image.shape, np.uint8)
        rare[5, 5, 5] = 1
        nibabel.save(nibabel.Nifti1Image(rare, image.affine), path)
    inspect(folder)
    assert "id 0, 99.99 % of the voxels" in capsys.readouterr().out


def test_json_holds_the_fingerprint_and_the_plan_and_nothing_else_is_printed(dataset, capsys):
    assert inspect(dataset, "--json", "--set", "batch_size=3") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["problems"] == []
    assert len(content["fingerprint"]["cases"]) == 4
    assert content["plan"]["batch_size"] == 3


def test_the_folds_that_are_asked_for_are_shown_and_passed_on_to_the_training(tmp_path, capsys):
    folder = make(tmp_path, ids=tuple(f"patient{patient}_frame{frame}" for patient in range(3) for frame in range(2)))
    assert inspect(folder) == 0
    assert "both in training and in validation" in capsys.readouterr().err
    assert inspect(folder, "--groups", "^(.+?)_frame") == 0
    shown = capsys.readouterr()
    assert "both in training and in validation" not in shown.err
    assert "Folds: 3, validation cases 2, 2, 2\n" in shown.out
    assert shown.out.endswith(f"Next: candy-monai train {folder} --groups '^(.+?)_frame' --device cpu\n")
    assert inspect(folder, "--num-folds", "2", "--json") == 0
    assert [len(fold["val"]) for fold in json.loads(capsys.readouterr().out)["folds"]] == [3, 3]


def test_folds_that_do_not_suit_the_cases_are_refused_before_images_are_read(dataset, monkeypatch, capsys):
    reads = counted_reads(monkeypatch)
    assert inspect(dataset, "--num-folds", "5") == 2
    assert "5" in capsys.readouterr().err
    assert reads == []


def test_inspecting_writes_nothing_into_the_dataset(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(dataset.rglob("*"))
    inspect(dataset)
    assert sorted(dataset.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_with_problems_exits_with_2_and_lists_them(tmp_path, capsys):
    assert inspect(tmp_path) == 2
    assert "problem: " in (shown := capsys.readouterr().err)
    assert "dataset.json" in shown


def test_problems_are_listed_in_json_too(tmp_path, capsys):
    assert inspect(tmp_path, "--json") == 2
    content = json.loads(capsys.readouterr().out)
    assert len(content["problems"]) == 1
    assert content["fingerprint"] is content["plan"] is None


def test_problems_that_only_measuring_shows_count_too(tmp_path, capsys):
    folder = write_phantom_dataset(tmp_path / "d", num_cases=3, shape=(16, 16, 16), num_test_cases=0)
    for path in sorted(folder.glob("*Tr/*"))[::3]:  # one case of pictures among volumes
        image = load_image(path, is_label="labels" in path.parent.name)
        nibabel.save(nibabel.Nifti1Image(image[0, :, :, 8].numpy().astype("int16"), np.eye(4)), path)
    assert inspect(folder) == 2
    assert "problem: found images with [2, 3] spatial axes" in capsys.readouterr().err


def test_a_dataset_is_parsed_and_each_file_decoded_once(dataset, monkeypatch, capsys):
    parses, reads = counted_parses(monkeypatch), counted_reads(monkeypatch)
    assert inspect(dataset, "--jobs", "2") == 0
    assert len(parses) == 1
    assert sorted(path.name for path in reads) == sorted(
        path.name for part in ("imagesTr", "labelsTr") for path in (dataset / part).iterdir()
    )


def test_an_unknown_override_exits_with_2_and_a_suggestion(dataset, capsys):
    assert inspect(dataset, "--set", "batchsize=3") == 2
    assert "Did you mean 'batch_size'?" in capsys.readouterr().err


def test_names_with_brackets_are_shown_verbatim(dataset, capsys):
    description = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    renamed = {**description, "name": "[red]name[/red]"}
    (dataset / "dataset.json").write_text(json.dumps(renamed), encoding="utf-8")
    try:
        inspect(dataset)
    finally:
        (dataset / "dataset.json").write_text(json.dumps(description), encoding="utf-8")
    assert "Dataset [red]name[/red]" in capsys.readouterr().out


def test_explain_says_why_and_how_to_change_each_choice(dataset, capsys):
    assert inspect(dataset, "--explain") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "patch_shape: " in shown
    assert "To change it: --set batch_size=" in shown


def test_out_gets_the_picture_and_the_same_json(dataset, tmp_path, capsys):
    assert inspect(dataset, "--out", tmp_path / "new" / "folder", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "new" / "folder" / "inspection.json").read_text()) == printed
    assert {entry["name"] for entry in printed["explanation"]} >= {"batch_size", "spacing_mm"}
    assert (tmp_path / "new" / "folder" / "inspection.png").stat().st_size > 10_000


def test_out_inside_the_dataset_is_refused(dataset, capsys):
    assert inspect(dataset, "--out", dataset / "pictures") == 2
    assert "never written to" in capsys.readouterr().err


def test_the_next_command_for_a_cascade_trains_its_first_stage_too(dataset, capsys):
    assert inspect(dataset, "--configuration", "3d_cascade", "--num-folds", "2") == 0
    said = capsys.readouterr().out
    words = "--num-folds 2 --device cpu --configurations 3d_lowres,3d_cascade"
    assert said.endswith(f"Next: candy-monai crossval {dataset} {words}\n")


def test_the_next_command_trains_with_the_options_that_training_has_as_well():
    words = ["--debug", "inspect", "inspect", "--explain", "--set", "a=1", "--out", "o", "--out=p", "--bundle", "unet"]
    args = argparse.Namespace(words=words, command="inspect")
    trained = as_train(args, but={"--explain": False, "--out": True})
    assert trained == ["candy-monai", "--debug", "train", "inspect", "--set", "a=1", "--bundle", "unet"]
