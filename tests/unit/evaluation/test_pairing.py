from __future__ import annotations

import torch

from candy_monai.data.datasets.files import SimpleDataset
from candy_monai.data.images.writing import save_image
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
