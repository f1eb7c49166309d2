from __future__ import annotations

import numpy as np
import pytest
import torch

from candy_monai.data.datasets.files import SimpleDataset
from candy_monai.data.images.writing import save_image
from candy_monai.errors import BadInputError
from candy_monai.evaluation.pairing import pair_up

NFC, NFD = "M\u00fcller", "Mu\u0308ller"


def test_names_pair_in_whichever_form_their_accents_are_stored(tmp_path):
    for folder, form in (("predictions", NFD), ("labels", NFC)):
        for name in (form, "other"):
            save_image(torch.ones(1, 2, 2, 2, dtype=torch.uint8), tmp_path / folder / f"{name}.nii")
    pairs = list(pair_up(tmp_path / "predictions", tmp_path / "labels", names=("prediction", "label")).pairs)
    assert [[path.name for path in (pair.first, pair.second)] for pair in pairs] == [
        [f"{NFD}.nii", f"{NFC}.nii"],
        ["other.nii", "other.nii"],
    ]
    dataset = SimpleDataset(tmp_path / "predictions", tmp_path / "labels")
    assert set(dataset.case_ids) == {NFD, "other"}


@pytest.mark.parametrize("source", [None, np.zeros((1, 2, 2)), (part for part in ())])
def test_what_cannot_be_compared_is_named(source):
    with pytest.raises(BadInputError, match=f"cannot compare a {type(source).__name__}"):
        pair_up(source, torch.zeros(1, 2, 2), names=("prediction", "label"))


def test_the_ids_of_a_mapping_may_be_numbers():
    case = torch.zeros(1, 2, 2)
    assert [pair.case_id for pair in pair_up({3: case}, {3: case}, names=("prediction", "label")).pairs] == ["3"]


@pytest.mark.parametrize("given", ["labels", "./labels", "folder", "files"])
def test_of_labels_that_are_given_as_their_own_predictions_is_warned(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        save_image(torch.ones(1, 2, 2, 2, dtype=torch.uint8), tmp_path / "labels" / f"{name}.nii")
    (tmp_path / "folder").symlink_to(tmp_path / "labels")
    (tmp_path / "files").mkdir()
    for name in ("a", "b"):
        (tmp_path / "files" / f"{name}.nii").symlink_to(tmp_path / "labels" / f"{name}.nii")
    with pytest.warns(UserWarning, match=r"a\.nii, b\.nii: the prediction and the label are the same file"):
        pair_up(given, tmp_path / "labels", names=("prediction", "label"))
