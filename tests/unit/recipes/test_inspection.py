from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.inspection.inspect import inspect
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import SettingsError
from candy_monai.recipes.inspection import save_inspection


@pytest.mark.parametrize("num_dims", [2, 3])
def test_the_picture_of_a_dataset_shows_charts_above_its_cases(tmp_path, num_dims):
    options = {"shape": (20, 20, 16)} if num_dims == 3 else {}
    dataset = NNUNetDataset(write_phantom_dataset(tmp_path / "d", num_cases=3, num_dims=num_dims, **options))
    path = save_inspection(dataset, inspect(dataset), tmp_path / "out")
    pixels = np.asarray(Image.open(path))
    assert path == tmp_path / "out" / "inspection.png"
    assert pixels.shape[1] > 1300
    assert (pixels[-250:].mean(axis=2) < 200).mean() > 0.25  # three tiles of 220 pixels, of a width of 1412


def test_a_picture_is_never_written_into_the_dataset(tmp_path):
    dataset = NNUNetDataset(write_phantom_dataset(tmp_path / "d", num_cases=2, shape=(16, 16, 16)))
    with pytest.raises(SettingsError, match="inside the dataset"):
        save_inspection(dataset, inspect(dataset), dataset.folder / "pictures")
