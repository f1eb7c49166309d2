"""One label map of several."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch

from candy_monai.cli.main import main
from candy_monai.errors import BadInputError, DatasetError, SettingsError
from candy_monai.inference.label_fusion import fuse_folders, fuse_label_maps

SHAPE = (12, 10, 8)


def _truth():
    labels = torch.zeros(1, *SHAPE, dtype=torch.int64)
    labels[0, 2:8, 2:8, 2:6] = 1
    labels[0, 4:6, 4:6, 3:5] = 40
    return labels


def _with_errors(seed, share):
    labels = _truth()
    wrong = torch.rand(labels.shape, generator=torch.Generator().manual_seed(seed)) < share
    return torch.where(wrong, torch.where(labels == 1, 40, 1), labels)


def _written(folder, affine=None, **cases):
    folder.mkdir(exist_ok=True)
    for case_id, labels in cases.items():
        image = nibabel.Nifti1Image(labels[0].numpy().astype(np.uint8), np.eye(4) if affine is None else affine)
        nibabel.save(image, folder / f"{case_id}.nii.gz")
    return folder


def test_the_majority_is_the_most_frequent_id_and_the_lowest_of_equals():
    maps = [torch.tensor([[[0, 1, 7, 2]]]), torch.tensor([[[0, 7, 7, 5]]]), torch.tensor([[[0, 7, 3, 300]]])]
    assert fuse_label_maps(maps).tolist() == [[[0, 7, 7, 2]]]
    assert fuse_label_maps([labels.to(torch.int16) for labels in maps]).dtype == torch.int16


def test_ids_that_the_first_map_s_type_cannot_hold_stay_what_they_are():
    first, other = torch.tensor([[[0, 1]]], dtype=torch.uint8), torch.tensor([[[0, 300]]])
    assert fuse_label_maps([first, other, other]).tolist() == [[[0, 300]]]


def test_staple_trusts_the_maps_that_agree_and_outdoes_two_bad_ones():
    pytest.importorskip("SimpleITK")
    maps = [_with_errors(seed, share) for seed, share in enumerate((0.02, 0.02, 0.02, 0.45, 0.45))]
    staple, majority = (fuse_label_maps(maps, method=method) for method in ("staple", "majority"))
    assert (staple != _truth()).sum() < (majority != _truth()).sum()
    assert (staple != _truth()).sum() < (maps[0] != _truth()).sum()


@pytest.mark.parametrize("method", ["majority", "staple"])
def test_maps_that_agree_stay_as_they_are(method):
    pytest.importorskip("SimpleITK")
    assert torch.equal(fuse_label_maps([_truth(), _truth()], method=method), _truth())


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([torch.zeros(1, 4, 4)], "expected two label maps or more, got 1"),
        ([torch.zeros(1, 4, 4), torch.zeros(1, 4, 5)], "label map 2 has shape"),
        ([torch.zeros(1, 4, 4), torch.full((1, 4, 4), 0.5)], "label map 2"),
    ],
)
def test_what_are_no_label_maps_of_one_shape_is_refused(maps, message):
    with pytest.raises(BadInputError, match=message):
        fuse_label_maps(maps)


def test_an_unknown_method_is_refused():
    with pytest.raises(SettingsError, match="one of majority, staple, got 'mean'"):
        fuse_label_maps([_truth(), _truth()], method="mean")


def test_folders_are_fused_case_by_case_on_the_grid_of_the_first(tmp_path):
    first = _written(tmp_path / "a", p=_truth(), q=_truth())
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = SHAPE[0] - 1
    second = _written(tmp_path / "b", flipped, p=_truth().flip(1), q=_truth().flip(1))
    third = _written(tmp_path / "c", p=_with_errors(0, 0.3), q=_truth(), p_probabilities=_truth())
    assert main(["ensemble", str(first), str(second), str(third), str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["p.nii.gz", "q.nii.gz"]
    fused = nibabel.load(tmp_path / "out" / "p.nii.gz")
    assert np.array_equal(fused.get_fdata(), _truth()[0])
    assert np.array_equal(fused.affine, np.eye(4))


def test_cases_and_grids_that_do_not_match_are_all_named_before_anything_is_written(tmp_path):
    first = _written(tmp_path / "a", p=_truth(), q=_truth())
    second = _written(tmp_path / "b", np.diag([2.0, 2, 2, 1]), p=_truth(), r=_truth())
    with pytest.raises(DatasetError) as refused:
        fuse_folders([first, second], tmp_path / "out")
    message = str(refused.value)
    assert f"{first}: label maps of r are missing" in message
    assert f"{second}: label maps of q are missing" in message
    assert f"{second / 'p.nii.gz'}: spacing (2.0, 2.0, 2.0) mm" in message
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_given_twice_or_is_the_target_is_refused(tmp_path):
    first = _written(tmp_path / "a", p=_truth())
    second = _written(tmp_path / "b", p=_truth())
    for sources, target in (([first, first], tmp_path / "out"), ([first, second], second)):
        with pytest.raises(BadInputError, match="is given twice"):
            fuse_folders(sources, target)
    with pytest.raises(BadInputError, match="two folders of label maps or more, got 1"):
        fuse_folders([first], tmp_path / "out")
