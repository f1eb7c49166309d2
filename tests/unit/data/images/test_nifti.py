from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from candy_monai.data.images.reading import load_image, read_geometry, scan_of_nibabel
from candy_monai.data.images.writing import save_image
from candy_monai.errors import ImageReadError

AFFINE = np.array([[0.0, -2.0, 0.0, 12.0], [3.0, 0.0, 0.0, -40.0], [0.0, 0.0, 5.0, 7.0], [0.0, 0.0, 0.0, 1.0]])
NAN = [np.nan] * 4


def stated_in(unit: str, factor: float, kind=nibabel.Nifti1Image):
    """Return a volume that lies at ``AFFINE`` (in millimetres), stated in another unit."""
    image = kind(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([factor] * 3 + [1.0]) @ AFFINE)
    image.header.set_xyzt_units(unit, "sec")
    return image


def with_header(path: Path, *, sform: int = 1, qform: int = 1, **fields) -> Path:
    """Write a volume whose header holds these fields, which nibabel itself would not write."""
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4), np.uint8), AFFINE)
    image.set_sform(AFFINE, code=sform)
    image.set_qform(AFFINE, code=qform)
    header = image.header
    header["vox_offset"], header["magic"] = 352, b"n+1"
    for name, value in fields.items():
        header[name] = value
    content = header.binaryblock + b"\0" * 4 + bytes(24)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)
    return path


UNITS = pytest.mark.parametrize(("unit", "factor"), [("meter", 1e-3), ("mm", 1.0), ("micron", 1e3), ("unknown", 1.0)])


@UNITS
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_an_affine_in_any_unit_is_read_in_millimetres(tmp_path, unit, factor, kind, suffix):
    nibabel.save(stated_in(unit, factor, kind), tmp_path / f"a{suffix}")
    for geometry in (read_geometry(tmp_path / f"a{suffix}"), scan_of_nibabel(stated_in(unit, factor, kind)).geometry):
        assert np.allclose(geometry.affine, AFFINE, rtol=1e-6)
        assert np.allclose(geometry.spacing_mm, (3.0, 2.0, 5.0), rtol=1e-6)
    assert np.allclose(load_image(tmp_path / f"a{suffix}").affine.numpy(), AFFINE, rtol=1e-6)


@UNITS
def test_what_follows_a_scan_in_any_unit_is_written_in_millimetres_at_its_place(tmp_path, unit, factor):
    nibabel.save(stated_in(unit, factor), tmp_path / "scan.nii")
    save_image(torch.zeros(2, 3, 4, dtype=torch.uint8), tmp_path / "labels.nii", like=tmp_path / "scan.nii")
    header = nibabel.load(tmp_path / "labels.nii").header
    assert header.get_xyzt_units()[0] == "mm"
    assert np.allclose(header.get_zooms(), (3.0, 2.0, 5.0), rtol=1e-6)
    assert np.allclose(header.get_sform(), AFFINE, rtol=1e-6)
    assert np.allclose(header.get_qform(), AFFINE, atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"qform": 0, "srow_x": NAN}, "srow_x.*NaN"),
        ({"qform": 0, "srow_x": [0] * 4, "srow_y": [0] * 4, "srow_z": [0] * 4}, "srow_x.*size 0"),
        ({"qform": 0, "srow_x": [0, -2, 1, 12], "srow_z": [0, 0, 0, 7]}, "srow_x.*plane"),
        ({"qform": 0, "srow_y": [0, 0, 0, np.inf]}, "srow_x.*infinite"),
        ({"sform": 0, "quatern_b": np.nan}, "quatern_b.*NaN"),
        ({"sform": 0, "quatern_b": 3.0}, "quatern_b.*rotation"),
        ({"sform": 0, "pixdim": [1, 0, 2, 5, 0, 0, 0, 0]}, r"pixdim.*0\.0, 2\.0, 5\.0"),
        ({"sform": 0, "pixdim": [1, 3, -2, 5, 0, 0, 0, 0]}, r"pixdim.*-2\.0"),
        ({"sform": 0, "qform": 0, "pixdim": [1, 3, 2, np.nan, 0, 0, 0, 0]}, "pixdim.*nan"),
        ({"srow_x": NAN, "pixdim": [1, 3, 0, 5, 0, 0, 0, 0]}, r"srow_x.*pixdim"),
    ],
)
def test_a_header_that_gives_no_position_is_an_error_with_the_file_and_the_field(tmp_path, suffix, fields, says):
    path = with_header(tmp_path / f"scan{suffix}", **fields)
    for read in (read_geometry, load_image):
        with pytest.raises(ImageReadError, match=rf"scan\{suffix}: the header gives no position: .*{says}.*converting"):
            read(path)


def test_a_broken_sform_gives_way_to_a_sound_qform_and_says_so(tmp_path):
    path = with_header(tmp_path / "a.nii", srow_x=NAN)
    with pytest.warns(UserWarning, match=r"a\.nii: the sform .* using the qform"):
        assert np.allclose(load_image(path).affine.numpy(), AFFINE, atol=1e-5)


@pytest.mark.parametrize(
    "fields", [{"quatern_b": np.nan}, {"quatern_b": 3.0}, {"pixdim": [0, 0, -2, np.nan, 0, 0, 0, 0]}]
)
def test_a_sound_sform_holds_whatever_the_rest_of_the_header_says(tmp_path, fields):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.allclose(read_geometry(with_header(tmp_path / "a.nii", **fields)).affine, AFFINE)


def test_without_sform_and_qform_the_voxel_size_holds_as_in_nibabel(tmp_path):
    path = with_header(tmp_path / "a.nii", sform=0, qform=0)
    assert np.array_equal(read_geometry(path).affine, nibabel.load(path).affine)
    assert read_geometry(path).spacing_mm == (3.0, 2.0, 5.0)


def test_an_image_of_nibabels_with_a_broken_affine_is_an_error():
    image = nibabel.Nifti1Image(np.zeros((2, 3, 4)), AFFINE)
    image.affine[0] = np.nan
    with pytest.raises(ImageReadError, match="affine holds NaN"):
        scan_of_nibabel(image)


def scaled(path: Path, values: np.ndarray, slope: float, inter: float = 0.0) -> Path:
    """Write stored integers with the scaling of the header."""
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.set_slope_inter(slope, inter)
    header = image.header
    header["vox_offset"], header["magic"], header["scl_slope"], header["scl_inter"] = 352, b"n+1", slope, inter
    path.write_bytes(header.binaryblock + b"\0" * 4 + values.tobytes(order="F"))
    return path


@pytest.mark.parametrize(
    ("stored", "slope", "inter"),
    [([0, 1, 2, 3], 1.0, 0.0), ([0, 10, 20, 30], 0.1, 0.0), ([1, 4, 7, 10], 1 / 3, -1 / 3), ([5, 6, 7, 8], 1.0, -5.0)],
)
def test_a_label_map_that_is_whole_after_scaling_is_read_as_its_ids(tmp_path, stored, slope, inter):
    path = scaled(tmp_path / "a.nii", np.array(stored, np.int16).reshape(1, 2, 2), slope, inter)
    assert load_image(path, is_label=True).flatten().tolist() == [0, 1, 2, 3]


def test_ids_that_nibabel_scaled_to_fill_an_integer_type_are_read_back(tmp_path):
    ids = np.arange(8, dtype=np.float64).reshape(2, 2, 2)
    image = nibabel.Nifti1Image(ids, np.eye(4))
    image.header.set_data_dtype(np.int16)  # 65536 steps over 0 to 7, so that ids lie between steps
    nibabel.save(image, tmp_path / "a.nii")
    assert not np.array_equal(nibabel.load(tmp_path / "a.nii").get_fdata(), ids)
    assert np.array_equal(load_image(tmp_path / "a.nii", is_label=True).numpy()[0], ids)


def test_a_label_map_of_fractions_is_an_error_that_names_the_scaling(tmp_path):
    path = scaled(tmp_path / "a.nii", np.array([0, 1, 2, 255], np.uint8).reshape(1, 2, 2), 1 / 255)
    with pytest.raises(ImageReadError, match=r"scl_slope 0\.0039.*2 of its values are fractions") as error:
        load_image(path, is_label=True)
    assert "truncated" not in str(error.value)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.uint64, np.float64])
def test_labels_of_every_number_type_are_exact(tmp_path, dtype):
    values = np.array([0, 1, 100, 127], dtype).reshape(1, 2, 2)
    if np.dtype(dtype).itemsize >= 8:
        values[0, 1, 1] = 16_777_217  # single precision has only its neighbours
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4), dtype=dtype), tmp_path / "a.nii")
    assert load_image(tmp_path / "a.nii", is_label=True).flatten().tolist() == values.flatten().tolist()


def test_complex_samples_are_refused_by_name(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2), np.complex64), np.eye(4)), tmp_path / "a.nii")
    for is_label in (False, True):
        with pytest.raises(ImageReadError, match="complex64"):
            load_image(tmp_path / "a.nii", is_label=is_label)


@pytest.mark.parametrize(("name", "magic"), [("a.nii", b"n+1"), ("a.nii", b"ni1"), ("a.nii.gz", b"n+1")])
def test_samples_that_are_said_to_begin_with_the_header_are_refused(tmp_path, name, magic):
    path = with_header(tmp_path / name, vox_offset=0, magic=magic)
    for read in (load_image, read_geometry):
        with pytest.raises(ImageReadError, match=r"a\.nii.*begin at byte 0 \(vox_offset\), expected 352"):
            read(path)


def test_values_beyond_single_precision_are_refused_by_name(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.full((2, 2, 2), 1e300), np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(ImageReadError, match=r"8 values exceed the range of float32, for example 1e\+300"):
        load_image(tmp_path / "a.nii")


def test_rgb_samples_are_three_channels(tmp_path):
    colours = np.zeros((2, 2, 2), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colours["G"] = 7
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "a.nii")
    assert load_image(tmp_path / "a.nii")[:, 0, 0, 0].tolist() == [0, 7, 0]
