from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from candy_monai.data.images.reading import load_image, read_geometry
from candy_monai.data.images.writing import save_image
from candy_monai.errors import BadInputError

OBLIQUE = np.array([[-0.8, 0.3, 0.0, 12.5], [0.4, 0.6, 0.0, -40.0], [0.0, 0.0, 2.5, 7.0], [0.0, 0.0, 0.0, 1.0]])


def ramp(shape: tuple[int, ...], dtype=np.int16) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def nifti(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 8), (6, 7, 8, 1)])
@pytest.mark.parametrize("by_path", [True, False])
def test_a_prediction_has_the_scans_shape_dimensions_and_affine(tmp_path, shape, by_path):
    path = nifti(tmp_path / "scan.nii.gz", ramp(shape))
    image = load_image(path)
    prediction = (image.as_tensor() > 3).long()
    save_image(prediction, tmp_path / "new" / "folder" / "p.nii.gz", like=path if by_path else image)
    scan, written = nibabel.load(path), nibabel.load(tmp_path / "new" / "folder" / "p.nii.gz")
    assert written.shape == scan.shape
    assert written.get_data_dtype() == np.uint8
    assert np.allclose(written.affine, scan.affine, atol=1e-5)
    assert np.array_equal(np.asanyarray(written.dataobj), np.asanyarray(scan.dataobj) > 3)


def test_simpleitk_sees_the_same_geometry_as_in_the_scan(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    rotation = np.linalg.qr(np.array([[1.0, 0.2, 0.1], [-0.1, 1.0, 0.3], [0.0, -0.2, 1.0]]))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation @ np.diag([0.7, 0.9, 4.0]), [11.0, -22.0, 33.0]
    path = nifti(tmp_path / "scan.nii.gz", ramp((6, 7, 8)), affine)
    save_image(torch.ones(6, 7, 8, dtype=torch.uint8), tmp_path / "p.nii.gz", like=path)
    scan, written = (sitk.ReadImage(str(tmp_path / name)) for name in ("scan.nii.gz", "p.nii.gz"))
    assert written.GetSize() == scan.GetSize()
    for attribute in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(written, attribute)(), getattr(scan, attribute)(), atol=1e-5)
    header = nibabel.load(tmp_path / "p.nii.gz").header
    assert np.allclose(header.get_qform(), header.get_sform(), atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".nrrd"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_is_written_is_read_back(tmp_path, suffix, channels, dtype):
    if suffix in (".mha", ".nrrd"):
        pytest.importorskip("itk")
    image = torch.arange(channels * 24).reshape(channels, 2, 3, 4).to(dtype)
    affine = np.diag([0.5, 1.5, 2.5, 1.0])
    affine[:3, 3] = [1.0, 2.0, 3.0]
    save_image(MetaTensor(image, affine=torch.as_tensor(affine)), tmp_path / f"a{suffix}")
    again = load_image(tmp_path / f"a{suffix}")
    assert torch.equal(again.as_tensor(), image.float())
    assert np.allclose(again.affine.numpy(), affine)


@pytest.mark.parametrize("high", [300, 70000])
@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_label_ids_beyond_a_byte_are_stored_whole(tmp_path, high, suffix):
    if suffix == ".mha":
        pytest.importorskip("itk")
    save_image(torch.tensor([[[[0, 1], [2, high]]]]), tmp_path / f"a{suffix}")
    assert load_image(tmp_path / f"a{suffix}", is_label=True).max() == high


def test_pictures_are_written_with_the_type_that_holds_the_ids(tmp_path):
    for high in (255, 256):
        save_image(torch.tensor([[0, high]]), tmp_path / f"{high}.png")
        assert load_image(tmp_path / f"{high}.png", is_label=True).tolist() == [[[0, high]]]
    save_image(torch.full((3, 4, 5), 9, dtype=torch.uint8), tmp_path / "colour.png")
    assert read_geometry(tmp_path / "colour.png").num_channels == 3


def test_a_tiff_volume_is_written_with_its_spacing_beside_it(tmp_path):
    pytest.importorskip("tifffile")
    image = MetaTensor(torch.ones(1, 3, 4, 5, dtype=torch.uint8), affine=torch.diag(torch.tensor([3.0, 1.0, 2.0, 1.0])))
    save_image(image, tmp_path / "a.tif")
    assert read_geometry(tmp_path / "a.tif").spacing_mm == (3.0, 1.0, 2.0)
    assert load_image(tmp_path / "a.tif", is_label=True).shape == (1, 3, 4, 5)


def test_a_prediction_of_another_shape_than_the_scan_is_refused(tmp_path):
    path = nifti(tmp_path / "scan.nii", ramp((6, 7, 8)))
    with pytest.raises(BadInputError, match="undo resampling"):
        save_image(torch.zeros(1, 6, 7, 7), tmp_path / "p.nii", like=path)
    assert not (tmp_path / "p.nii").exists()


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (torch.zeros(4, 5), "a.png"),
        (torch.zeros(1, 4, 5, 6, dtype=torch.uint8), "a.png"),
        (torch.zeros(4, 5, dtype=torch.uint8), "a.jpg"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_leaves_no_file(tmp_path, image, name):
    with pytest.raises(BadInputError, match=r"choose another format"):
        save_image(image, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("image", [torch.zeros(1, 2, 3, 4, dtype=torch.complex64), torch.tensor(1), torch.zeros(3)])
def test_what_is_no_image_of_real_numbers_is_refused_and_leaves_no_file(tmp_path, image):
    with pytest.raises(BadInputError, match=r"a\.nii: .*(complex|expected 2 or 3 spatial axes)"):
        save_image(image, tmp_path / "a.nii")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".MHA", ".Mha", ".NRRD"])
def test_a_suffix_in_capitals_is_written_and_read_as_that_in_small_letters(tmp_path, suffix):
    pytest.importorskip("itk")
    image = torch.arange(24.0).reshape(1, 2, 3, 4)
    save_image(image, tmp_path / f"a{suffix}")
    assert [path.name for path in tmp_path.iterdir()] == [f"a{suffix}"]
    assert torch.equal(load_image(tmp_path / f"a{suffix}").as_tensor(), image)


def test_ids_of_64_bits_are_written_as_nifti(tmp_path):
    save_image(torch.full((1, 2, 2, 2), 2**40), tmp_path / "a.nii")
    assert load_image(tmp_path / "a.nii", is_label=True).unique().tolist() == [2**40]


def test_signed_ids_are_written_signed(tmp_path):
    pytest.importorskip("itk")
    for name in ("a.mha", "a.nii"):
        save_image(torch.tensor([[[[-1, 1]]]]), tmp_path / name)
        assert load_image(tmp_path / name, is_label=True).flatten().tolist() == [-1, 1]


@pytest.mark.parametrize(("suffix", "instead"), [(".mhd", ".mha"), (".nhdr", ".nrrd"), (".MHD", ".mha")])
def test_a_format_of_two_files_is_not_written_and_leaves_none(tmp_path, suffix, instead):
    with pytest.raises(BadInputError, match=f"write {instead}, which holds both"):
        save_image(torch.zeros(1, 3, 4, 5), tmp_path / f"a{suffix}")
    assert list(tmp_path.iterdir()) == []
