"""Images for the comparison of a bundle with its experiment."""

import numpy as np
import pytest
import SimpleITK
import torch

from candy_monai.data.images.reading import load_image
from candy_monai.export.monai_bundle.parity import _copy_image


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_an_image_of_two_files_is_copied_with_its_samples(tmp_path, suffix):
    values = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    image = SimpleITK.GetImageFromArray(values)
    image.SetSpacing((1.0, 1.5, 3.0))
    SimpleITK.WriteImage(image, str(scan := tmp_path / f"scan{suffix}"))
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "copies").mkdir()
    _copy_image(scan, copied := tmp_path / "copies" / f"case_0000{suffix}")
    assert list(copied.parent.iterdir()) == [copied]
    found, expected = load_image(copied), load_image(scan)
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert torch.allclose(found.affine, expected.affine)
