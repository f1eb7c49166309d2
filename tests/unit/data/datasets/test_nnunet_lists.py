from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.inspection.checks import check_dataset
from candy_monai.errors import DatasetError
from tests.folders import SHAPE, describe, label_of, make, write


def problems_of(folder: Path) -> str:
    return "\n".join(check_dataset(folder).problems)


def test_cases_listed_in_the_description_replace_the_search(tmp_path, monkeypatch):
    make(tmp_path / "elsewhere", ["p", "q", "r"], 2)
    monkeypatch.setenv("SCANS", str(tmp_path / "elsewhere"))
    folder = tmp_path / "listed"
    folder.mkdir()

    def entry(root: str, name: str) -> dict[str, object]:
        images = [f"{root}/imagesTr/{name}_{channel:04d}.nii.gz" for channel in (0, 1)]
        return {"images": images, "label": f"{root}/labelsTr/{name}.nii.gz"}

    listed = {"z": entry("../elsewhere", "p"), "y": entry(str(tmp_path / "elsewhere"), "q"), "x": entry("$SCANS", "r")}
    describe(folder, channel_names={"0": "a", "1": "b"}, dataset=listed)
    dataset = NNUNetDataset(folder)
    assert dataset.case_ids == ("x", "y", "z")
    assert [image[1].unique().item() for image, _ in dataset] == [21, 11, 1]
    assert check_dataset(folder).problems == ()
    (tmp_path / "elsewhere" / "labelsTr" / "q.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"y: .*q\.nii\.gz is listed in dataset\.json but does not exist"):
        NNUNetDataset(folder)


def test_a_decathlon_dataset_with_4d_images_is_read_as_it_is(tmp_path):
    for case_id in ("BRATS_001", "BRATS_002"):
        write(
            tmp_path / "imagesTr" / f"{case_id}.nii.gz", np.stack([np.full(SHAPE, c, np.float32) for c in (5, 6)], -1)
        )
        write(tmp_path / "labelsTr" / f"{case_id}.nii.gz", label_of((1, 2)))
        (tmp_path / "imagesTr" / f"._{case_id}.nii.gz").write_text("")
    content = {
        "name": "BRATS",
        "modality": {"0": "FLAIR", "1": "T1"},
        "labels": {"0": "background", "1": "edema", "2": "tumour"},
        "numTraining": 2,
        "training": [
            {"image": f"./imagesTr/{case_id}.nii.gz", "label": f"./labelsTr/{case_id}.nii.gz"}
            for case_id in ("BRATS_002", "BRATS_001")
        ],
        "test": ["./imagesTs/BRATS_003.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    dataset = NNUNetDataset(tmp_path)
    assert dataset.description.class_names == ("background", "edema", "tumour")
    assert dataset.case_ids == ("BRATS_001", "BRATS_002")
    assert [channel.unique().item() for channel in dataset[0][0]] == [5, 6]
    report = check_dataset(tmp_path)
    assert report.problems == ()
    assert any("BRATS_003" in warning for warning in report.warnings)  # training does not need it


def test_an_old_nnunet_folder_lists_cases_and_stores_channels(tmp_path):
    make(tmp_path, ["a", "b"], 2)
    content = {
        "modality": {"0": "T1", "1": "T2"},
        "labels": {"0": "background", "1": "x", "2": "y"},
        "numTraining": 2,
        "training": [{"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in "ab"],
        "test": [],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert [image.shape for image, _ in NNUNetDataset(tmp_path)] == [(2, *SHAPE)] * 2


def decathlon(folder: Path, training: object, **changes: object) -> Path:
    """Turn a sound folder into the Decathlon's: images without a channel's number, listed in ``dataset.json``."""
    make(folder)
    for path in (folder / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))
    labels = {"0": "background", "1": "liver", "2": "tumour"}
    describe(folder, modality={"0": "CT"}, channel_names=None, file_ending=None, labels=labels, training=training)
    return folder


@pytest.mark.parametrize("template", ["./{}/{}.nii.gz", "{}/{}.nii.gz", ".\\{}\\{}.nii.gz", "{folder}/{}/{}.nii.gz"])
def test_a_list_of_paths_is_read_as_any_system_writes_them(tmp_path, template):
    listed = [
        {
            key: template.format(part, case_id, folder=tmp_path)
            for key, part in (("image", "imagesTr"), ("label", "labelsTr"))
        }
        for case_id in "cab"
    ]
    dataset = NNUNetDataset(decathlon(tmp_path, listed))
    assert dataset.case_ids == ("a", "b", "c")
    assert dataset.load(1)[0].max() == 10.0


@pytest.mark.parametrize(
    "training",
    [
        ["./imagesTr/a.nii.gz", "./imagesTr/b.nii.gz"],
        [{"image": "imagesTr/a.nii.gz"}, {"image": "imagesTr/b.nii.gz", "label": ""}],
    ],
)
def test_a_list_of_images_alone_is_a_problem_of_the_list(tmp_path, training):
    assert "dataset.json: the list of training cases names no label for a, b; expected image" in problems_of(
        decathlon(tmp_path, training)
    )


def test_a_case_whose_label_is_listed_as_its_image_is_a_problem(tmp_path):
    listed = [{"image": f"./labelsTr/{case_id}.nii.gz", "label": f"./labelsTr/{case_id}.nii.gz"} for case_id in "abc"]
    assert "a.nii.gz is listed in dataset.json as both image and label" in problems_of(decathlon(tmp_path, listed))


@pytest.mark.parametrize("wrong", [{"label": "labelsTr/b.nii.gz"}, ["imagesTr/b.nii.gz"], None, {"image": []}])
def test_an_entry_of_the_list_that_names_no_image_is_the_problem_and_not_the_files_beside_it(tmp_path, wrong):
    entry = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
    found = problems_of(decathlon(tmp_path, [entry, wrong]))
    assert "dataset.json: 1 of 2 entries of 'training' name no image, the first is entry 2, " in found
    assert "no channel number" not in found


def test_a_listed_file_that_is_missing_and_a_case_that_is_listed_twice_are_problems(tmp_path):
    entry = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
    found = problems_of(
        decathlon(tmp_path, [entry, entry, {"image": "imagesTr/z.nii.gz", "label": "labelsTr/b.nii.gz"}])
    )
    assert "a: is listed in dataset.json more than once" in found
    assert "z.nii.gz is listed in dataset.json but does not exist" in found


def test_a_listed_image_of_several_files_is_one_case(tmp_path):
    make(tmp_path, num_channels=2)
    images = [f"imagesTr/a_000{channel}.nii.gz" for channel in range(2)]
    describe(tmp_path, channel_names={"0": "c0", "1": "c1"}, training=[{"image": images, "label": "labelsTr/a.nii.gz"}])
    dataset = NNUNetDataset(tmp_path)
    assert dataset.case_ids == ("a",)
    assert dataset.load_image(0).shape == (2, *SHAPE)
