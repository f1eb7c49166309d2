from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from candy_monai.data.images.reading import geometry_of, load_image, read_geometry
from candy_monai.data.images.writing import save_image
from candy_monai.errors import BadInputError, ImageReadError

OBLIQUE = np.array([[-0.8, 0.3, 0.0, 12.5], [0.4, 0.6, 0.0, -40.0], [0.0, 0.0, 2.5, 7.0], [0.0, 0.0, 0.0, 1.0]])


def ramp(shape: tuple[int, ...], dtype=np.int16) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def nifti(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def test_a_volume_keeps_its_axes_values_and_affine(tmp_path):
    array = ramp((3, 4, 5))
    image = load_image(nifti(tmp_path / "a.nii.gz", array))
    assert isinstance(image, MetaTensor)
    assert image.dtype == torch.float32
    assert np.array_equal(image.numpy()[0], array)
    assert np.array_equal(image.affine.numpy(), nibabel.load(tmp_path / "a.nii.gz").affine)
    assert image.meta["spatial_shape"] == (3, 4, 5)
    assert image.meta["filename_or_obj"] == str(tmp_path / "a.nii.gz")


def test_it_reads_what_monais_own_loader_reads(tmp_path):
    from monai.transforms import LoadImage

    path = nifti(tmp_path / "a.nii.gz", ramp((3, 4, 5)), np.diag([1.0, 2.0, 3.0, 1.0]))
    theirs = LoadImage(image_only=True, ensure_channel_first=True)(path)
    ours = load_image(path)
    assert torch.equal(ours.as_tensor(), theirs.as_tensor())
    assert torch.allclose(ours.affine, theirs.affine)


def test_the_time_axis_of_a_4d_file_becomes_channels(tmp_path):
    array = ramp((3, 4, 5, 2))
    image = load_image(nifti(tmp_path / "a.nii", array))
    assert image.shape == (2, 3, 4, 5)
    assert np.array_equal(image.numpy()[1], array[..., 1])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3, 4), (1, 3, 4)), ((3, 4, 1), (1, 3, 4, 1)), ((3, 4, 5, 1), (1, 3, 4, 5)), ((3, 4, 5, 1, 2), (2, 3, 4, 5))],
    ids=["2-D stays 2-D", "one slice stays 3-D", "trailing singleton is no axis", "vector axis becomes channels"],
)
def test_the_number_of_spatial_axes_is_that_of_the_file(tmp_path, shape, expected):
    path = nifti(tmp_path / "a.nii.gz", ramp(shape))
    image = load_image(path)
    assert image.shape == expected
    assert image.spatial_ndim == len(expected) - 1
    geometry = read_geometry(path)
    assert (geometry.num_channels, *geometry.spatial_shape) == expected


def test_scaled_and_big_endian_integers_are_read_as_their_values(tmp_path):
    image = nibabel.Nifti1Image(ramp((2, 3, 4), dtype=">i2"), np.eye(4), nibabel.Nifti1Header(endianness=">"))
    image.header.set_slope_inter(2.0, 1.0)
    nibabel.save(image, tmp_path / "a.nii")
    expected = nibabel.load(tmp_path / "a.nii").get_fdata()
    assert np.array_equal(load_image(tmp_path / "a.nii").numpy()[0], expected)


def test_a_picture_is_row_then_column(tmp_path):
    array = ramp((2, 5), np.uint8)
    Image.fromarray(array).save(tmp_path / "a.PNG")
    image = load_image(str(tmp_path / "a.PNG"))
    assert np.array_equal(image.numpy(), array[None])
    assert read_geometry(tmp_path / "a.PNG").is_picture


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_colour_picture_has_one_channel_a_colour_and_keeps_its_alpha(tmp_path, channels, suffix):
    array = ramp((4, 5, channels), np.uint8)
    Image.fromarray(array).save(tmp_path / f"a{suffix}")
    image = load_image(tmp_path / f"a{suffix}")
    assert np.array_equal(image.numpy(), np.moveaxis(array, -1, 0))
    assert read_geometry(tmp_path / f"a{suffix}").num_channels == channels


def test_a_palette_label_is_read_as_ids_and_a_palette_image_as_colours(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", is_label=True).tolist() == [[[0, 1], [2, 1]]]
    assert load_image(tmp_path / "a.png")[0].tolist() == [[0, 255], [0, 255]]


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 1), (3, 4)])
def test_itk_formats_have_the_affine_that_nibabel_gives(tmp_path, suffix, shape):
    sitk = pytest.importorskip("SimpleITK")
    pytest.importorskip("itk")
    image = sitk.GetImageFromArray(ramp(shape).T)
    image.SetSpacing([0.5, 0.75, 3.0][: len(shape)])
    image.SetOrigin([10.0, -20.0, 30.0][: len(shape)])
    if len(shape) == 3:
        image.SetDirection([0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    for path in (tmp_path / f"a{suffix}", tmp_path / "a.nii"):
        sitk.WriteImage(image, str(path))
    ours, reference = load_image(tmp_path / f"a{suffix}"), load_image(tmp_path / "a.nii")
    geometry = read_geometry(tmp_path / f"a{suffix}")
    assert torch.equal(ours.as_tensor(), reference.as_tensor())
    axes = [*range(len(shape)), 3]  # a 2-D file says nothing about the third axis
    assert np.allclose(ours.affine.numpy()[np.ix_(axes, axes)], reference.affine.numpy()[np.ix_(axes, axes)])
    assert np.allclose(geometry.affine, ours.affine.numpy())
    assert geometry.spatial_shape == shape


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_the_components_of_an_itk_file_become_channels(tmp_path, suffix):
    sitk = pytest.importorskip("SimpleITK")
    pytest.importorskip("itk")
    array = ramp((5, 4, 3, 2))
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / f"a{suffix}"))
    image = load_image(tmp_path / f"a{suffix}")
    assert np.array_equal(image.numpy(), np.moveaxis(array, -1, 0).transpose(0, 3, 2, 1))
    assert read_geometry(tmp_path / f"a{suffix}").num_channels == 2


def test_a_tiff_volume_takes_its_spacing_from_the_file_beside_it(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "case_7_0000.tif", ramp((4, 5, 6), np.uint16), photometric="minisblack")
    (tmp_path / "case_7.json").write_text(json.dumps({"spacing": [3.0, 0.5, 0.25]}))
    image = load_image(tmp_path / "case_7_0000.tif")
    assert image.shape == (1, 4, 5, 6)
    assert read_geometry(tmp_path / "case_7_0000.tif").spacing_mm == (3.0, 0.5, 0.25)


def test_a_tiff_volume_without_spacing_counts_as_one_millimetre_and_says_so(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "case.tif", ramp((4, 5, 6), np.uint16), photometric="minisblack")
    with pytest.warns(UserWarning, match="without <case>.json"):
        image = load_image(tmp_path / "case.tif", is_label=True)
    assert np.array_equal(image.affine.numpy(), np.eye(4))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".png", ".tif", ".mha", ".nrrd"])
def test_a_truncated_file_is_one_error_with_its_name_and_a_remedy(tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    noise = np.random.RandomState(0).randint(0, 255, (40, 41) if suffix in (".png", ".tif") else (20, 21, 22))
    if suffix in (".mha", ".nrrd"):
        pytest.importorskip("itk")
    save_image(torch.as_tensor(noise), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(ImageReadError, match=rf"broken\{suffix}: found .*expected an image.*again"):
        load_image(path)


def test_a_compressed_file_that_lacks_only_its_checksum_is_not_accepted(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", ramp((4, 4, 4)))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ImageReadError):
        load_image(path)


def test_a_missing_file_a_folder_and_an_unknown_format_are_told_apart(tmp_path):
    (tmp_path / "a.xyz").write_text("")
    with pytest.raises(ImageReadError, match="no such file"):
        load_image(tmp_path / "none.nii")
    with pytest.raises(ImageReadError, match="found a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageReadError, match=r"known formats: \.nii"):
        read_geometry(tmp_path / "a.xyz")


def test_a_label_stored_as_whole_floats_is_read_as_integers(tmp_path):
    label = load_image(nifti(tmp_path / "a.nii.gz", np.array([[[0.0, 2.0]]], np.float32)), is_label=True)
    assert label.dtype == torch.int64
    assert label.tolist() == [[[[0, 2]]]]


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_a_label_with_a_fraction_or_nan_is_an_error_that_shows_the_value(tmp_path, value):
    with pytest.raises(ImageReadError, match=f"1 values that are not whole numbers, for example {value}"):
        load_image(nifti(tmp_path / "a.nii.gz", np.array([[[0.0, value]]], np.float32)), is_label=True)


def test_a_colour_picture_is_no_label(tmp_path):
    Image.fromarray(ramp((4, 5, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ImageReadError, match="3 channels where one"):
        load_image(tmp_path / "a.png", is_label=True)


def test_aligned_spacing_is_the_finest_one_and_invents_no_label(tmp_path):
    array = np.zeros((6, 6, 4), np.uint8)
    array[2:4, 2:4, 1:3] = 7
    path = nifti(tmp_path / "a.nii.gz", array, np.diag([1.0, 1.0, 2.5, 1.0]))
    label = load_image(path, is_label=True, align_spacing=True)
    assert geometry_of(label).spacing_mm == pytest.approx((1.0, 1.0, 1.0))
    assert label.shape[-1] == pytest.approx(4 * 2.5, abs=2)
    assert label.dtype == torch.int64
    assert set(label.unique().tolist()) == {0, 7}
    assert load_image(path, align_spacing=True).shape == label.shape


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint32, np.float64])
def test_an_mha_of_any_sample_type_is_read(tmp_path, dtype):
    sitk = pytest.importorskip("SimpleITK")
    pytest.importorskip("itk")
    sitk.WriteImage(sitk.GetImageFromArray(ramp((4, 3, 2), dtype)), str(tmp_path / "a.mha"))
    assert np.array_equal(load_image(tmp_path / "a.mha", is_label=True)[0].numpy(), ramp((4, 3, 2)).T)


def test_complex_samples_of_an_nrrd_are_refused_and_no_channels(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    pytest.importorskip("itk")
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((2, 3, 4), np.complex64)), str(tmp_path / "a.nrrd"))
    with pytest.raises(ImageReadError, match=r"a\.nrrd: complex samples"):
        load_image(tmp_path / "a.nrrd")


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("suffix", [".NII", ".Nii", ".NII.GZ", ".Nii.Gz", ".nii.GZ"])
def test_a_nifti_suffix_may_be_written_in_capitals_in_part(tmp_path, suffix, kind):
    data = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    written = tmp_path / f"a{suffix.lower()}"
    nibabel.save(kind(data, np.diag([1.0, 2, 3, 1])), written)
    path = written.rename(tmp_path / f"b{suffix}")
    assert np.array_equal(load_image(path)[0].numpy(), data)
    assert read_geometry(path).spacing_mm == (1, 2, 3)


def nrrd(path: Path, *fields: str) -> Path:
    header = "\n".join(("NRRD0004", "type: float", "dimension: 3", "sizes: 2 3 4", "endian: little", *fields))
    path.write_bytes(header.encode() + b"\nencoding: raw\n\n" + ramp((24,), np.float32).tobytes())
    return path


@pytest.mark.parametrize(("unit", "factor"), [("um", 1e3), ("mm", 1.0), ("m", 1e-3), ("\u00b5m", 1e3), ("???", 1.0)])
def test_an_nrrd_in_any_unit_is_read_in_millimetres(tmp_path, unit, factor):
    pytest.importorskip("itk")
    units = " ".join([f'"{unit}"'] * 3)
    x, y, z, origin = (value * factor for value in (1, 2, 3, 10))
    directions = f"space directions: ({x},0,0) (0,{y},0) (0,0,{z})"
    oriented = ("space: left-posterior-superior", directions, f"space origin: ({origin},0,0)", f"space units: {units}")
    straight = (f"spacings: {x} {y} {z}", f"units: {units}")
    for name, fields in (("a.nrrd", oriented), ("b.nrrd", straight)):
        path = nrrd(tmp_path / name, *fields)
        assert np.allclose(read_geometry(path).spacing_mm, (1, 2, 3))
        assert np.allclose(load_image(path).affine.numpy(), read_geometry(path).affine)
    assert np.isclose(read_geometry(tmp_path / "a.nrrd").affine[0, 3], -10)


def test_an_nrrd_of_several_units_or_without_size_is_refused_by_name(tmp_path):
    pytest.importorskip("itk")
    several = nrrd(tmp_path / "a.nrrd", "spacings: 1 1 1", 'units: "mm" "um" "mm"')
    flat = nrrd(tmp_path / "b.nrrd", "space: left-posterior-superior", "space directions: (0,0,0) (0,1,0) (0,0,1)")
    for path, says in ((several, "different units"), (flat, "header gives no position")):
        for read in (read_geometry, load_image):
            with pytest.raises(ImageReadError, match=rf"{path.name}: .*{says}"):
                read(path)


@pytest.mark.parametrize("bad", [np.nan, 0.0])
def test_a_tensor_whose_affine_gives_no_place_is_refused(bad):
    image = MetaTensor(torch.zeros(1, 2, 3, 4), affine=torch.diag(torch.tensor([1.0, bad, 1.0, 1.0])))
    with pytest.raises(BadInputError, match="the affine"):
        geometry_of(image)


def test_the_affines_of_a_batch_are_refused_with_the_function_that_takes_it_apart():
    image = MetaTensor(torch.zeros(1, 4, 4))
    image.affine = torch.eye(4).repeat(2, 1, 1)
    with pytest.raises(BadInputError, match=r"the affine has the shape \(2, 4, 4\).*decollate_batch"):
        geometry_of(image)
