from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from candy_monai.data.datasets.folds import kfold
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.datasets.nnunet_description import read_dataset_description
from candy_monai.data.inspection.checks import check_dataset
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError, DatasetError, ImageReadError, SettingsError
from tests.folders import AFFINE, SHAPE, describe, label_of, make, write


def problems_of(folder: Path) -> str:
    return "\n".join(check_dataset(folder).problems)


def test_a_description_of_version_2_is_read(tmp_path):
    description = read_dataset_description(make(tmp_path / "Dataset001_X", num_channels=2))
    assert description.channel_names == ("c0", "c1")
    assert description.class_names == ("background", "liver", "tumour")
    assert (description.num_classes, description.num_channels, description.num_training) == (3, 2, 3)
    assert (description.name, description.file_ending) == ("Dataset001_X", ".nii.gz")
    assert not description.has_regions


def test_classes_are_ordered_by_id_whatever_the_order_in_the_file(tmp_path):
    make(tmp_path, labels={"tumour": 2, "background": 0, "liver": 1})
    assert read_dataset_description(tmp_path).class_names == ("background", "liver", "tumour")


def test_the_ignore_label_is_no_class(tmp_path):
    make(tmp_path, labels={"background": 0, "liver": 1, "tumour": 2, "ignore": 3})
    description = read_dataset_description(tmp_path)
    assert (description.num_classes, description.ignore_label) == (3, 3)
    assert description.label_ids == (0, 1, 2)


def test_regions_keep_their_ids_and_their_order(tmp_path):
    labels = {"whole": [1, 2, 3], "background": 0, "core": [2, 3], "active": [3], "ignore": 4}
    make(tmp_path, labels=labels, regions_class_order=[1, 2, 3])
    description = read_dataset_description(tmp_path)
    assert dict(description.labels) == {"background": 0, "whole": (1, 2, 3), "core": (2, 3), "active": 3}
    assert description.class_names == ("background", "whole", "core", "active")
    assert description.has_regions
    assert description.regions_class_order == (1, 2, 3)
    assert description.label_ids == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"background": 0, "a": 1, "c": 3}}, r"gaps, expected 0 to 2; remap .*3 -> 2"),
        ({"labels": {"a": 1, "b": 2}}, 'no label has the id 0, expected "background": 0'),
        ({"labels": {"background": 1, "a": 0}}, r"'labels' has \{'background': 1\}, expected the id 0"),
        (
            {"labels": {"background": 0, "a": [0, 1], "b": 1}, "regions_class_order": [1, 1]},
            "the region 'a' holds the id 0, the background",
        ),
        ({"numTraining": -1}, "'numTraining' is -1, expected the number of training cases"),
        ({"numTraining": "ten"}, "'numTraining' is 'ten'"),
        ({"labels": {"background": 0, "a": 1, "ignore": 5}}, "ignore label has the id 5, expected 2"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "two labels have the same id"),
        ({"labels": {"background": 0, "a": "x"}}, "label 'a' is 'x', expected an id"),
        ({"labels": {"background": 0, "a": -1}}, "label 'a' is -1"),
        ({"labels": {"background": 0, "a": "²"}}, "label 'a' is '²'"),
        ({"labels": {"0": "background", "²": "a"}}, "label '0' is 'background'"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}}, "need 'regions_class_order'"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1]}, "has 1 ids, expected 2"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1, 7]}, r"holds \[7\]"),
        (
            {"labels": {"background": 0, "a": [1, 2], "b": 2, "ignore": 3}, "regions_class_order": [1, 3]},
            "ignore label 3; leave it out",
        ),
        ({"labels": None}, "'labels' is missing"),
        ({"labels": ["a", "b"]}, r"'labels' is \['a', 'b'\], expected for example"),
        ({"channel_names": "CT"}, "'channel_names' is 'CT', expected for example"),
        (
            {"channel_names": None, "chanel_names": {"0": "CT"}},
            "'channel_names' is missing.*Did you mean 'chanel_names'",
        ),
        ({"channel_names": {"0": "a", "2": "b"}}, r"\['0', '2'\], expected 0 to 1"),
        ({"file_ending": ".xyz"}, "'file_ending' is '.xyz', expected one of .nii"),
    ],
)
def test_a_description_that_makes_no_sense_is_an_error_that_says_why(tmp_path, changes, message):
    make(tmp_path, **changes)
    with pytest.raises(DatasetError, match=message):
        read_dataset_description(tmp_path)
    with pytest.raises(DatasetError, match=message):
        NNUNetDataset(tmp_path)
    assert check_dataset(tmp_path).problems


@pytest.mark.parametrize("case_id", ["", "..", "site/a", "../a", "site\\a"])
def test_a_listed_case_id_that_is_no_file_name_is_refused(tmp_path, case_id):
    files = {"images": ["imagesTr/a_0000.nii.gz"], "label": "labelsTr/a.nii.gz"}
    make(tmp_path, dataset={case_id: files, "b": files})
    with pytest.raises(DatasetError, match=rf"the case ids {re.escape(repr(case_id))} of 'dataset' cannot be names"):
        read_dataset_description(tmp_path)


def test_a_missing_folder_a_missing_file_and_broken_json_are_told_apart(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        read_dataset_description(tmp_path / "none")
    with pytest.raises(DatasetError, match=r"dataset\.json: missing"):
        read_dataset_description(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match="not valid JSON"):
        read_dataset_description(tmp_path)


def test_the_folder_one_level_too_high_gets_a_hint(tmp_path):
    make(tmp_path / "Dataset001_X")
    with pytest.raises(DatasetError, match="did you mean the folder 'Dataset001_X' inside"):
        NNUNetDataset(tmp_path)


def test_a_description_whose_name_is_written_in_another_case_is_found(tmp_path):
    (tmp_path / "Dataset.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"dataset\.json: missing; .*; rename Dataset\.json to dataset\.json"):
        NNUNetDataset(tmp_path)


@pytest.mark.parametrize("num_channels", [1, 2, 3])
@pytest.mark.parametrize("fold", range(3))
def test_in_every_fold_the_image_and_the_label_belong_to_one_case(tmp_path, num_channels, fold):
    ids = [f"case_{index}" for index in range(1, 13)]  # not padded: case_10 sorts before case_2
    make(tmp_path, ids, num_channels)
    for index, case_id in enumerate(ids):
        write(tmp_path / "labelsTr" / f"{case_id}.nii.gz", np.full(SHAPE, index, np.uint8))
    for part in NNUNetDataset(tmp_path).fold(k=3, fold=fold):
        for case_id, (image, label) in zip(part.case_ids, part, strict=True):
            index = ids.index(case_id)
            assert label.unique().tolist() == [index]
            assert [channel.unique().item() for channel in image] == [10 * index + c for c in range(num_channels)]


@pytest.mark.parametrize("case_id", ["x_0000", "x_0001_0000", "a.b-c", "a b", "12345", "x_0000.nii"])
def test_only_the_last_number_of_an_image_name_is_its_channel(tmp_path, case_id):
    make(tmp_path, [case_id, "other"], 2)
    assert [case.case_id for case in NNUNetDataset(tmp_path).cases] == sorted([case_id, "other"])


def test_hidden_files_and_files_of_other_kinds_are_passed_over(tmp_path):
    make(tmp_path)
    for name in ("imagesTr/._a_0000.nii.gz", "imagesTr/a.json", "labelsTr/._a.nii.gz", "labelsTr/a.json"):
        (tmp_path / name).write_text("{}")
    assert len(NNUNetDataset(tmp_path)) == 3
    assert check_dataset(tmp_path).problems == ()


def test_upper_case_suffixes_work(tmp_path):
    make(tmp_path)
    (tmp_path / "imagesTr" / "a_0000.nii.gz").rename(tmp_path / "imagesTr" / "a_0000.NII.GZ")
    assert NNUNetDataset(str(tmp_path))[0][0].shape == (1, *SHAPE)


def test_every_missing_and_superfluous_file_is_listed_with_its_case(tmp_path):
    make(tmp_path, ["a", "b", "c", "d", "e"], 2)
    (tmp_path / "imagesTr" / "a_0001.nii.gz").unlink()
    (tmp_path / "labelsTr" / "b.nii.gz").unlink()
    (tmp_path / "imagesTr" / "c_0000.nii.gz").unlink()
    (tmp_path / "imagesTr" / "c_0001.nii.gz").unlink()
    write(tmp_path / "imagesTr" / "d_0002.nii.gz", np.zeros(SHAPE))
    write(tmp_path / "imagesTr" / "plain.nii.gz", np.zeros(SHAPE))
    with pytest.raises(DatasetError) as error:
        NNUNetDataset(tmp_path)
    problems = error.value.problems
    assert len(problems) == 5
    for expected in (
        "a: a_0001.nii.gz missing",
        "b: labelsTr/b.nii.gz is missing",
        "c: imagesTr/c_0000.nii.gz is missing",
        "d: found d_0002.nii.gz in imagesTr, expected only the channels",
        "imagesTr/plain.nii.gz: no channel number; rename it to plain_0000.nii.gz",
    ):
        assert any(problem.startswith(expected) for problem in problems), expected
    with pytest.raises(DatasetError, match="5 problems"):
        NNUNetDataset(tmp_path)


def test_a_case_in_two_spellings_of_the_suffix_is_a_duplicate(tmp_path):
    make(tmp_path)
    (tmp_path / "labelsTr" / "a.NII.GZ").write_bytes((tmp_path / "labelsTr" / "a.nii.gz").read_bytes())
    with pytest.raises(DatasetError, match=r"a: found both .* remove one"):
        NNUNetDataset(tmp_path)


@pytest.mark.parametrize("channels", [3, 4])
def test_one_colour_picture_serves_several_channel_names(tmp_path, channels):
    for index, case_id in enumerate("abc"):
        write(tmp_path / "imagesTr" / f"{case_id}_0000.png", np.full((5, 6, channels), index, np.uint8))
        write(tmp_path / "labelsTr" / f"{case_id}.png", np.ones((5, 6), np.uint8))
    names = {str(index): name for index, name in enumerate("RGBA"[:channels])}
    describe(tmp_path, channel_names=names, file_ending=".png", labels={"background": 0, "a": 1})
    image, label = NNUNetDataset(tmp_path)[1]
    assert (image.shape, label.shape) == ((channels, 5, 6), (1, 5, 6))
    assert check_dataset(tmp_path).problems == ()


def test_a_picture_with_more_channels_than_named_is_found(tmp_path):
    write(tmp_path / "imagesTr" / "a_0000.png", np.zeros((5, 6, 4), np.uint8))
    write(tmp_path / "labelsTr" / "a.png", np.ones((5, 6), np.uint8))
    describe(tmp_path, channel_names={"0": "R", "1": "G", "2": "B"}, file_ending=".png", numTraining=1)
    assert "imagesTr/a_0000.png: 4 channels, expected 3: R, G, B" in problems_of(tmp_path)
    with pytest.raises(ImageReadError, match="found 4 channels, expected 3"):
        NNUNetDataset(tmp_path)[0]


def test_items_have_their_types_shapes_and_ids(tmp_path):
    image, label = NNUNetDataset(make(tmp_path, num_channels=2))[1]
    assert (image.dtype, label.dtype) == (torch.float32, torch.int64)
    assert (image.shape, label.shape) == ((2, *SHAPE), (1, *SHAPE))
    assert image.meta["case_id"] == label.meta["case_id"] == "b"
    assert np.allclose(image.affine.numpy(), AFFINE)


def test_test_cases_may_lack_labels(tmp_path):
    make(tmp_path)
    write(tmp_path / "imagesTs" / "t_0000.nii.gz", np.zeros(SHAPE, np.float32))
    dataset = NNUNetDataset(tmp_path, split="Ts")
    assert dataset.load_image(0).shape == (1, *SHAPE)
    with pytest.raises(DatasetError, match="t: has no label"):
        dataset[0]


def test_a_prefix_selects_cases_and_one_that_matches_none_is_an_error(tmp_path):
    make(tmp_path, ["x1", "x2", "y1"])
    assert NNUNetDataset(tmp_path, prefix="x").case_ids == ("x1", "x2")
    with pytest.raises(DatasetError, match="no case whose id starts with 'z'"):
        NNUNetDataset(tmp_path, prefix="z")


def test_transforms_apply_to_the_image_the_label_and_then_to_both(tmp_path):
    seen = []

    def both(image, label):
        seen.append((image.mean().item(), label.max().item()))
        return image, label

    dataset = NNUNetDataset(
        make(tmp_path), image_transform=lambda x: x + 5, label_transform=lambda x: x * 2, transform=both
    )
    assert dataset[1][1].max() == 4
    assert seen == [(15.0, 4)]
    assert dataset.load(1)[1].max() == 2
    assert dataset.subset(["b"])[0][0].mean() == 15


@pytest.mark.parametrize("align_spacing", [False, True])
def test_what_is_read_is_what_is_loaded(tmp_path, align_spacing):
    folder = tmp_path / "Dataset900_Phantom"
    write_phantom_dataset(folder, num_cases=1, num_dims=3, num_channels=2)
    dataset = NNUNetDataset(folder, align_spacing=align_spacing)
    for scan, tensor in zip(dataset.read(0), dataset.load(0), strict=True):
        assert torch.equal(scan.values, tensor.as_tensor())
        assert scan.values.dtype == tensor.dtype
        assert np.allclose(scan.geometry.affine, tensor.affine.numpy())
        assert scan.geometry.spatial_shape == tensor.shape[1:]
        assert scan.file_name == tensor.meta["filename_or_obj"]


def test_a_subclass_that_loads_in_its_own_way_is_read_in_that_way(tmp_path):
    class Doubled(NNUNetDataset):
        def load_image(self, idx):
            return super().load_image(idx) * 2

    class DoubledInOne(NNUNetDataset):
        def load(self, idx):
            image, label = super().load(idx)
            return image * 2, label

    folder = make(tmp_path)
    expected = 2 * NNUNetDataset(folder).read(0)[0].values
    assert torch.equal(Doubled(folder).read(0)[0].values, expected)
    assert torch.equal(DoubledInOne(folder).read(0)[0].values, expected)


def test_the_default_folds_are_nnunets_own(tmp_path):
    ids = [f"case_{index:02d}" for index in range(10)]
    dataset = NNUNetDataset(make(tmp_path, ids))
    for number in range(5):
        train, validation = dataset.fold(fold=number)
        expected = kfold(ids, 5, seed=12345)[number]
        assert (train.case_ids, validation.case_ids) == (expected.train, expected.validation)
    assert validation.description == dataset.description


def test_fold_all_trains_and_validates_on_everything(tmp_path):
    train, validation = NNUNetDataset(make(tmp_path)).fold(fold="all")
    assert train.case_ids == validation.case_ids == ("a", "b", "c")


def test_a_single_case_trains_without_validation(tmp_path):
    train, validation = NNUNetDataset(make(tmp_path, ["a"])).fold()
    assert (len(train), len(validation)) == (1, 0)


def write_splits(path: Path, train: list[str], validation: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{"train": train, "val": validation}]))
    return path


def test_splits_hold_in_the_order_given_file_dataset_preprocessed(tmp_path, monkeypatch):
    folder = make(tmp_path / "Dataset001_X")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    write_splits(tmp_path / "preprocessed" / "Dataset001_X" / "splits_final.json", ["a"], ["b"])
    assert NNUNetDataset(folder).fold()[1].case_ids == ("b",)
    write_splits(folder / "splits_final.json", ["a"], ["c"])
    assert NNUNetDataset(folder).fold()[1].case_ids == ("c",)
    given = write_splits(tmp_path / "mine.json", ["b"], ["a"])
    assert NNUNetDataset(folder).fold(splits=given)[1].case_ids == ("a",)
    assert len(NNUNetDataset(folder).fold(k=3)[0]) == 2  # asking for folds of one's own overrides the files
    with pytest.raises(SettingsError, match="fold 1 does not exist"):
        NNUNetDataset(folder).fold(fold=1)


def test_splits_and_k_contradict_each_other(tmp_path):
    given = write_splits(tmp_path / "mine.json", ["b"], ["a"])
    with pytest.raises(SettingsError, match="splits defines the folds"):
        NNUNetDataset(make(tmp_path / "d")).fold(splits=given, k=3)
    with pytest.raises(BadInputError, match="no such file"):
        NNUNetDataset(tmp_path / "d").fold(splits=tmp_path / "none.json")


def test_splits_that_name_an_unknown_case_are_an_error_and_a_prefix_only_leaves_cases_out(tmp_path):
    folder = make(tmp_path, ["x1", "x2", "y1"])
    write_splits(folder / "splits_final.json", ["x1", "y1"], ["x2"])
    assert NNUNetDataset(folder, prefix="x").fold()[0].case_ids == ("x1",)
    write_splits(folder / "splits_final.json", ["x1", "q"], ["x2"])
    with pytest.raises(DatasetError, match="fold 0 names cases that do not exist: q"):
        NNUNetDataset(folder).fold()
    assert "names cases that do not exist: q" in problems_of(folder)
    write_splits(folder / "splits_final.json", ["x1", "x2"], ["x2"])
    assert "'x2' in both training and validation" in problems_of(folder)


@pytest.mark.parametrize(
    ("train", "validation", "problem"),
    [([], ["c"], '"train" is empty'), (["a", "b"], [], '"val" is empty'), ([], [], '"train" is empty')],
)
def test_a_fold_without_cases_is_a_problem_that_names_file_and_fold(tmp_path, train, validation, problem):
    folder = make(tmp_path)
    splits = [{"train": ["a"], "val": ["b"]}, {"train": train, "val": validation}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    text = problems_of(folder)
    assert "splits_final.json: fold 1 has no " in text
    assert problem in text
    assert "fold 0" not in text
    with pytest.raises(DatasetError, match="fold 1 has no (training|validation) case"):
        NNUNetDataset(folder).fold()


def test_the_only_case_needs_no_validation(tmp_path):
    folder = make(tmp_path, ["a"])
    write_splits(folder / "splits_final.json", ["a"], [])
    assert problems_of(folder) == ""


def test_groups_keep_frames_of_a_patient_together(tmp_path):
    ids = [f"patient{patient}_frame{frame}" for patient in range(4) for frame in range(2)]
    train, validation = NNUNetDataset(make(tmp_path, ids)).fold(k=4, groups=r"patient(\d+)")
    assert len({case_id.split("_")[0] for case_id in validation.case_ids}) == 1
    assert (len(train), len(validation)) == (6, 2)


NFC, NFD = "M\u00fcller", "Mu\u0308ller"


def renamed(folder: Path, old: str, new: str) -> None:
    for path in folder.glob(f"*Tr/{old}*"):
        path.rename(path.with_name(path.name.replace(old, new, 1)))


def test_image_and_label_pair_in_whichever_forms_their_accents_are_stored(tmp_path):
    make(tmp_path, ids=("a", "x", "y"), num_channels=2)
    for name, form in (("imagesTr/x_0000", NFD), ("imagesTr/x_0001", NFC), ("labelsTr/x", NFC)):
        path = tmp_path / f"{name}.nii.gz"
        path.rename(path.with_name(path.name.replace("x", form, 1)))
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": ["a", "y"], "val": [NFD]}]))
    dataset = NNUNetDataset(tmp_path)
    assert dataset.case_ids == (NFC, "a", "y")
    assert dataset.load(0)[0][:, 0, 0, 0].tolist() == [10.0, 11.0]
    assert dataset.fold()[1].case_ids == (NFC,)
    assert NNUNetDataset(tmp_path, prefix="Mu\u0308").case_ids == (NFC,)
    assert problems_of(tmp_path) == ""


def test_two_files_whose_names_differ_in_the_form_of_an_accent_alone_are_a_problem_that_says_so(tmp_path):
    make(tmp_path)
    for form in (NFC, NFD):
        write(tmp_path / "labelsTr" / f"{form}.nii.gz", label_of((1, 2)))
    assert "differ only in the encoding of accents" in problems_of(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text there")
def test_a_name_in_another_encoding_is_a_problem_that_shows_it(tmp_path):
    make(tmp_path)
    write(tmp_path / "labelsTr" / "plain.nii.gz", label_of((1, 2)))
    (tmp_path / "labelsTr" / "plain.nii.gz").rename(tmp_path / "labelsTr" / os.fsdecode(b"M\xfcller.nii.gz"))
    assert r"labelsTr/M\udcfcller.nii.gz: the file name is not valid UTF-8" in problems_of(tmp_path)


def flipped(folder: Path, name: str, *, axis: int = 0) -> np.ndarray:
    """Store a file's voxels the other way round, with the affine that says so, and return them as they were."""
    array = np.random.default_rng(0).integers(0, 3, SHAPE).astype(np.uint8)
    affine = AFFINE.copy()
    affine[axis, 3] = affine[axis, axis] * (SHAPE[axis] - 1)
    affine[axis, axis] *= -1
    write(folder / name, np.flip(array, axis), affine)
    return array


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_channel_and_a_label_that_run_the_other_way_are_turned_to_the_image(tmp_path, axis):
    make(tmp_path, num_channels=2)
    expected = flipped(tmp_path, "imagesTr/a_0001.nii.gz", axis=axis)
    flipped(tmp_path, "labelsTr/a.nii.gz", axis=axis)
    dataset = NNUNetDataset(tmp_path)
    for image, label in (dataset.load(0), [scan.tensor() for scan in dataset.read(0)]):
        assert np.array_equal(image.numpy()[1], expected)
        assert np.array_equal(label.numpy()[0], expected)
        assert np.array_equal(label.affine.numpy(), AFFINE)


def test_cases_come_as_dictionaries_of_files_in_the_order_of_the_items(tmp_path):
    folder = make(tmp_path / "Dataset001_X", num_channels=2)
    dataset = NNUNetDataset(folder).subset(["c", "a"])
    assert dataset.dicts() == [
        {
            "image": [str(folder / "imagesTr" / f"{case_id}_{channel:04d}.nii.gz") for channel in range(2)],
            "label": str(folder / "labelsTr" / f"{case_id}.nii.gz"),
            "case_id": case_id,
        }
        for case_id in ("c", "a")
    ]
    assert [set(entry) for entry in dataset.dicts(label=False)] == [{"image", "case_id"}] * 2


def test_test_cases_have_a_label_in_their_dictionary_where_they_have_one(tmp_path):
    folder = make(tmp_path)
    for case_id in ("x", "y"):
        write(folder / "imagesTs" / f"{case_id}_0000.nii.gz", np.zeros(SHAPE, np.float32))
    write(folder / "labelsTs" / "y.nii.gz", label_of((1,)))
    tests = NNUNetDataset(folder, split="Ts")
    assert ["label" in entry for entry in tests.dicts()] == [False, True]
    with pytest.raises(DatasetError, match="x: has no label"):
        tests.dicts(label=True)


@pytest.mark.parametrize("num_channels", [1, 2])
def test_monai_s_reader_makes_of_a_dictionary_what_the_dataset_yields(tmp_path, num_channels):
    dataset = NNUNetDataset(make(tmp_path, num_channels=num_channels))
    keys = ["image", "label"]
    load = Compose([LoadImaged(keys, reader="NibabelReader"), EnsureChannelFirstd(keys)])
    for entry, (image, label) in zip(dataset.dicts(), dataset, strict=True):
        loaded = load(entry)
        assert torch.equal(loaded["image"].as_tensor(), image.as_tensor())
        assert torch.equal(loaded["label"].as_tensor().long(), label.as_tensor())
        assert torch.equal(loaded["image"].affine, image.affine)
