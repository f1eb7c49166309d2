"""DICOM series as images: where they lie, what their values are, and what is refused."""

import sys
import warnings
import zlib

import numpy as np
import pydicom
import pytest
import SimpleITK
from monai.transforms import LoadImage
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from candy_monai import CheckedReader, load_image
from candy_monai.data.images.reading import read_geometry, read_scan
from candy_monai.errors import ImageReadError, MissingExtraError
from tests.dicom_series import DX, base, multi_frame, oblique, save, slices, volume

VALUES, AFFINE = volume(), oblique()
NAMES = [f"slice{index}" for index in range(VALUES.shape[2])]


def itk(folder):
    """Return the array ``(column, row, slice)`` and the RAS affine of a series as SimpleITK reads it."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, np.diag([-1.0, -1, 1, 1]) @ affine


SCALINGS = {
    "stored values": {},
    "rescaled": {"RescaleSlope": "2", "RescaleIntercept": "-1024"},
    "each slice its own": {"RescaleSlope": lambda index: str(0.5 + index / 4), "RescaleIntercept": "0"},
    "12 bits": {"BitsStored": 12, "HighBit": 11},
}


@pytest.mark.parametrize("scaling", SCALINGS.values(), ids=SCALINGS)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16])
def test_a_series_lies_and_counts_as_simpleitk_reads_it(tmp_path, scaling, dtype):
    folder = save(tmp_path / "series", slices(VALUES.astype(dtype), AFFINE, **scaling))
    image = load_image(folder)
    expected, affine = itk(folder)
    assert image.shape[1:] == VALUES.shape
    assert np.array_equal(image[0], expected.astype(np.float32))
    assert np.allclose(image.affine, affine, atol=1e-6)
    assert np.allclose(image.affine, AFFINE, atol=1e-6)


def test_slices_are_ordered_by_position_and_not_by_name_or_number(tmp_path):
    for count, order in enumerate(([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3])):
        datasets = slices(VALUES, AFFINE)
        names = [f"{order.index(index)}.dcm" for index in range(5)]
        image = load_image(save(tmp_path / str(count), datasets, names))
        assert np.array_equal(image[0], VALUES)


@pytest.mark.parametrize("turn", [np.diag([1.0, 1, -1, 1]), np.diag([-1.0, 1, 1, 1])])
def test_a_left_handed_affine_becomes_the_same_places_in_the_order_of_simpleitk(tmp_path, turn):
    folder = save(tmp_path / "series", slices(VALUES, AFFINE @ turn))
    image = load_image(folder)
    expected, affine = itk(folder)
    assert np.array_equal(image[0], expected)
    assert np.array_equal(image[0], VALUES[:, :, ::-1])
    assert np.allclose(image.affine, affine, atol=1e-6)


def test_a_real_ct_is_read_as_simpleitk_reads_it(real_dataset, tmp_path):
    scan = load_image(next((real_dataset("Dataset060_TotalSegCTExample") / "imagesTr").glob("*.nii.gz")))
    stored = (scan[0].numpy() + 1100).astype(np.uint16)
    folder = save(tmp_path / "ct", slices(stored, scan.affine.numpy(), RescaleSlope="1", RescaleIntercept="-1100"))
    image = load_image(folder)
    expected, affine = itk(folder)
    assert np.array_equal(image, scan)
    assert np.array_equal(image[0], expected)
    assert np.allclose(image.affine, affine, atol=1e-5)
    assert np.allclose(image.affine, scan.affine, atol=1e-5)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 1, 0, 2, 4]])
def test_a_multi_frame_file_is_the_volume_of_its_frames(tmp_path, order):
    folder = save(tmp_path / "series", [multi_frame(VALUES, AFFINE, order=order)])
    for path in (folder, next(folder.iterdir())):
        image = load_image(path)
        assert np.array_equal(image[0], VALUES)
        assert np.allclose(image.affine, AFFINE, atol=1e-6)


def test_each_frame_has_its_own_scale(tmp_path):
    slopes = [1, 2, 3, 0.5, 0.25]
    image = load_image(save(tmp_path / "series", [multi_frame(VALUES, AFFINE, slopes=slopes, order=[4, 3, 2, 1, 0])]))
    assert np.array_equal(image[0], (VALUES * np.array(slopes) - 10).astype(np.float32))


COMPRESSED = {"RLE": RLELossless, "JPEG 2000": JPEG2000Lossless, "JPEG-LS": JPEGLSLossless}


@pytest.mark.parametrize("syntax", COMPRESSED.values(), ids=COMPRESSED)
def test_compressed_pixels_are_the_same_pixels(tmp_path, syntax):
    values = volume((33, 34, 3))  # JPEG 2000 takes no less
    for kind in (slices(values, AFFINE, RescaleSlope="1", RescaleIntercept="-5"), [multi_frame(values, AFFINE)]):
        for dataset in kind:
            dataset.compress(syntax, generate_instance_uid=False)
        image = load_image(save(tmp_path / f"series{len(kind)}", kind))
        assert np.array_equal(image[0], values - 5 * (len(kind) > 1))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_the_byte_order_of_a_file_is_its_own(tmp_path, syntax):
    datasets = slices(VALUES, AFFINE)
    for dataset in datasets:
        dataset.file_meta.TransferSyntaxUID = syntax
        if syntax is ExplicitVRBigEndian:
            dataset.PixelData = np.frombuffer(dataset.PixelData, np.int16).byteswap().tobytes()
            dataset["PixelData"].VR = "OW"
    assert np.array_equal(load_image(save(tmp_path / "series", datasets))[0], VALUES)


def test_a_lossy_jpeg_is_what_pillow_reads(tmp_path):
    from io import BytesIO

    from PIL import Image
    from pydicom.encaps import encapsulate

    picture, buffer = volume((16, 24, 1), dtype=np.uint8)[:, :, 0], BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG")
    dataset = base(picture, kind=DX, series=generate_uid(), modality="DX")
    dataset.PixelData = encapsulate([buffer.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    image = load_image(save(tmp_path / "dx", [dataset]))
    assert np.abs(image[0].numpy() - np.asarray(Image.open(buffer))).max() <= 1  # decoders round in their own way


def test_a_projection_is_a_picture_of_rows_and_columns(tmp_path):
    picture = volume((9, 4, 1), dtype=np.uint16)[:, :, 0]
    folder = save(tmp_path / "dx", [base(picture, kind=DX, series=generate_uid(), modality="DX", PixelSpacing=[2, 2])])
    image = load_image(folder)
    assert np.array_equal(image[0], picture)
    assert image.meta["is_picture"]
    assert read_geometry(next(folder.iterdir())).spatial_shape == (9, 4)


@pytest.mark.parametrize(("bits", "highest"), [(16, 65535), (12, 4095)])
def test_where_low_values_are_bright_they_are_turned_over_as_in_itk(tmp_path, bits, highest):
    picture = volume((9, 4, 1), dtype=np.uint16)[:, :, 0]
    changes = {"BitsStored": bits, "HighBit": bits - 1, "RescaleSlope": "2", "RescaleIntercept": "-5"}
    dataset = base(picture, kind=DX, series=generate_uid(), PhotometricInterpretation="MONOCHROME1", **changes)
    folder = save(tmp_path / "dx", [dataset])
    assert np.array_equal(load_image(folder)[0], (highest - picture.astype(int)) * 2 - 5)
    assert np.array_equal(load_image(folder)[0], itk(folder)[0].squeeze().T)


def test_colours_are_three_channels(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (6, 4, 3)).astype(np.uint8)
    changes = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    folder = save(tmp_path / "us", [base(colours, kind=DX, series=generate_uid(), **changes)])
    assert np.array_equal(load_image(folder), np.moveaxis(colours, -1, 0))
    assert read_geometry(folder).num_channels == 3


def test_a_palette_is_looked_up(tmp_path):
    picture = np.array([[0, 1], [2, 1]], np.uint8)
    dataset = base(picture, kind=DX, series=generate_uid(), PhotometricInterpretation="PALETTE COLOR")
    levels = {"Red": [10, 20, 30, 0], "Green": [1, 2, 3, 0], "Blue": [0, 0, 200, 0]}
    for colour, values in levels.items():
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, 8])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", bytes(values))
    image = load_image(save(tmp_path / "us", [dataset]))
    assert np.array_equal(image, np.moveaxis(np.stack(list(levels.values()), -1)[picture], -1, 0))


def test_a_single_slice_is_a_volume_of_the_thickness_that_its_header_states(tmp_path):
    dataset = slices(VALUES[:, :, :1], AFFINE)[0]
    dataset.SliceThickness = "2.5"
    image = load_image(save(tmp_path / "series", [dataset]))
    assert image.shape == (1, *VALUES.shape[:2], 1)
    assert np.allclose(image.affine, AFFINE, atol=1e-6)


def test_a_tilted_gantry_gives_a_slanted_grid_with_a_word(tmp_path):
    leaning = AFFINE.copy()
    leaning[:3, 2] += 0.8 * leaning[:3, 1]
    folder = save(tmp_path / "series", slices(VALUES, leaning))
    with pytest.warns(UserWarning, match=r"slices are sheared by 2\d\.\d degrees"):
        image = load_image(folder)
    assert np.allclose(image.affine, leaning, atol=1e-6)


def test_other_files_are_left_out_with_a_word(tmp_path):
    folder = save(tmp_path / "series", slices(VALUES, AFFINE))
    report = Dataset()
    report.file_meta = pydicom.dataset.FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    report.save_as(folder / "report.dcm", enforce_file_format=True)
    (folder / "notes.txt").write_text("seen by Dr No")
    (folder / ".hidden").write_text("of a file manager")
    with pytest.warns(UserWarning, match="left out files that are not DICOM images: notes.txt, report.dcm"):
        assert np.array_equal(load_image(folder)[0], VALUES)


def test_a_file_names_its_series_among_several(tmp_path):
    other = volume(seed=1)
    folder = save(tmp_path / "both", slices(VALUES, AFFINE), [f"a{name}" for name in NAMES])
    save(folder, slices(other, AFFINE, SeriesDescription="late"), [f"b{name}" for name in NAMES])
    assert np.array_equal(load_image(folder / "aslice2")[0], VALUES)
    assert np.array_equal(load_image(folder / "bslice0")[0], other)
    with pytest.raises(ImageReadError, match="both: found 2 series, expected one: .*name a file of the wanted") as told:
        load_image(folder)
    assert "(CT, a series, 5 files, such as aslice0)" in str(told.value)
    assert "(CT, late, 5 files, such as bslice0)" in str(told.value)


def test_what_was_read_once_is_read_again_when_it_has_changed(tmp_path):
    folder = save(tmp_path / "series", slices(VALUES, AFFINE), NAMES)
    assert read_geometry(folder).spatial_shape[2] == 5
    (folder / "slice4").unlink()
    assert read_geometry(folder).spatial_shape[2] == 4


def test_monai_s_loadimage_reads_a_series_by_our_reader(tmp_path):
    folder = save(tmp_path / "series", slices(VALUES, AFFINE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of readers that MONAI tries to load
        image = LoadImage(CheckedReader(), ensure_channel_first=True)(folder)
    assert np.array_equal(image[0], VALUES)
    assert np.allclose(image.affine, AFFINE, atol=1e-6)


def _gap(datasets):
    del datasets[2]


def _gap_in_three(datasets):
    del datasets[4], datasets[2]


def _uneven(datasets):
    datasets[4].ImagePositionPatient = datasets[3].ImagePositionPatient
    position = np.array(datasets[3].ImagePositionPatient, float)
    step = position - np.array(datasets[2].ImagePositionPatient, float)
    datasets[4].ImagePositionPatient = [f"{number:.8g}" for number in position + 1.3 * step]


def _same_place(datasets):
    datasets[3].ImagePositionPatient = datasets[2].ImagePositionPatient


def _copy(datasets):
    for part in (datasets[3], datasets[3].file_meta):
        key = "SOPInstanceUID" if part is datasets[3] else "MediaStorageSOPInstanceUID"
        setattr(part, key, datasets[1].SOPInstanceUID)


def _beside(datasets):
    position = np.array(datasets[2].ImagePositionPatient, float)
    position += 3 * np.array(datasets[2].ImageOrientationPatient[:3], float)
    datasets[2].ImagePositionPatient = [f"{number:.8g}" for number in position]


def _turned(datasets):
    datasets[2].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]


def _smaller(datasets):
    datasets[2].Rows -= 1


def _with_localizer(datasets):
    datasets[0].Rows -= 1
    datasets[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]


def _coarser(datasets):
    datasets[2].PixelSpacing = [9, 9]


def _without(*keywords):
    def change(datasets):
        for keyword in keywords:
            delattr(datasets[2], keyword)

    return change


def _with(**values):
    def change(datasets):
        for keyword, value in values.items():
            setattr(datasets[2], keyword, value)

    return change


BROKEN = {
    "gap": (_gap, r"found 5 mm from slice1 to slice2, expected 2.5 mm .* missing; export the whole series"),
    "gap in three": (_gap_in_three, r"found 5 mm from slice1 to slice2, expected 2.5 mm .* missing; export the whole"),
    "uneven": (_uneven, r"found 3.25 mm from slice3 to slice4, expected 2.5 mm .*not evenly spaced"),
    "two at one position": (_same_place, r"found slice2 and slice3 at the same position .*1 such pair"),
    "a copy": (_copy, r"slice3: found the same image as in slice1 \(SOPInstanceUID"),
    "a slice beside the others": (_beside, r"slice2: found a slice 3 mm off the line"),
    "another orientation": (
        _turned,
        r"found 2 stacks .*: 4 slices of Image.*, such as slice0; "
        r"1 slice of ImageOrientationPatient \[1.0, 0.0, .*, such as slice2; move",
    ),
    "another size": (
        _smaller,
        "found 2 stacks of slices in one series, .*: 4 slices of 6 x 7 pixels, such as slice0; 1 slice of 5 x 7 "
        "pixels, such as slice2; move each stack",
    ),
    "another spacing": (_coarser, r"found 2 .*, such as slice0; 1 slice of PixelSpacing \[9.0, 9.0\], such as slice2"),
    "a localizer first": (
        _with_localizer,
        r"found 2 stacks .*: 4 slices of 6 x 7 pixels, ImageOri.*, such as slice1; "
        r"1 slice of 5 x 7 pixels, Image.*, such as slice0; move",
    ),
    "no position": (_without("ImagePositionPatient"), "slice2: found no ImagePositionPatient, which gives"),
    "no place at all": (
        _without("ImagePositionPatient", "ImageOrientationPatient"),
        "slice2: found no ImagePositionPatient or .* 5 slices",
    ),
    "no spacing": (_without("PixelSpacing"), "slice2: found no PixelSpacing"),
    "no rows": (_without("Rows"), "slice2: found an image without Rows; it may be truncated"),
    "no pixels": (_without("PixelData"), "slice2: found no pixel data, expected 6 x 7 pixels"),
    "few pixels": (_with(PixelData=b"\0" * 10), "slice2: found a file of .* bytes that cannot be decoded"),
    "huge": (_with(Rows=65535, Columns=65535), "slice2: found 65535 rows of 65535 pixels, expected 1 to"),
    "empty": (_with(Rows=0), "slice2: found 0 rows"),
    "no slope": (_with(RescaleSlope="0"), "slice2: RescaleSlope is 0"),
    "endless slope": (_with(RescaleSlope="1e300"), "slice2: values exceed the range of float32 .* by RescaleSlope 1e"),
    "a position of two": (
        _with(ImagePositionPatient=["1", "2"]),
        r"slice2: ImagePositionPatient is .*expected 3 finite",
    ),
    "no spacing but zero": (_with(PixelSpacing=[0, 1]), "slice2: PixelSpacing is .0.0, 1.0., expected two positive"),
    "skewed axes": (
        _with(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
        "slice2: ImageOrientationPatient is .*perpendic",
    ),
    "a film": (_with(NumberOfFrames=3), "slice2: found 3 frames without functional groups"),
    "a mosaic": (_with(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "slice2: found a mosaic"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_whole_stack_is_refused_with_its_files(tmp_path, change, message):
    datasets = slices(VALUES, AFFINE)
    change(datasets)
    folder = save(tmp_path / "series", datasets, NAMES)
    with pytest.raises(ImageReadError, match=f"^{folder}: {message}"):
        read_scan(folder)


def _truncate(share):
    return lambda content: content[: int(len(content) * share)]


HOSTILE = {
    "truncated pixels": (_truncate(0.95), "slice2: found (a file of|no pixel data)"),
    "truncated header": (_truncate(0.5), "slice2: found"),
    "truncated at once": (lambda content: content[:140], "slice2: found"),
    "preamble alone": (lambda content: content[:132], "slice2: found"),
    "noise": (lambda content: content[:132] + bytes(np.random.default_rng(0).bytes(4000)), "slice2: found"),
    "an element of 4 GB": (
        lambda content: content.replace(b"\x08\x00\x16\x00UI", b"\x08\x00\x16\x00OB\0\0\xff\xff\xff\xfe"),
        "slice2: found",
    ),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_file_ends_in_one_error_that_names_it(tmp_path, change, message):
    folder = save(tmp_path / "series", slices(VALUES, AFFINE), NAMES)
    content = (folder / "slice2").read_bytes()
    (folder / "slice2").write_bytes(change(content))
    with pytest.raises(ImageReadError, match=f"^{folder}: {message}") as refused:
        read_scan(folder)
    assert "\n" not in str(refused.value)


def test_what_is_no_dicom_under_its_name_is_refused(tmp_path):
    (tmp_path / "a.dcm").write_text("import os; os.abort()")
    for path in (tmp_path, tmp_path / "a.dcm"):
        with pytest.raises(
            ImageReadError, match=rf"^{tmp_path}.*a\.dcm: found a file of 21 bytes that cannot be decoded"
        ):
            read_scan(path)


def test_a_deflated_file_is_not_unpacked(tmp_path):
    folder = save(tmp_path / "series", slices(VALUES, AFFINE), NAMES)
    head = pydicom.dcmread(folder / "slice2").file_meta
    head.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with (folder / "slice2").open("wb") as file:
        file.write(b"\0" * 128 + b"DICM")
        pydicom.filewriter.write_file_meta_info(file, head)
        file.write(zlib.compress(b"\0" * 10**7)[2:-4])
    with pytest.raises(ImageReadError, match="slice2: found a deflated file, which is not supported"):
        read_scan(folder)


@pytest.mark.parametrize("syntax", [UID("1.2.840.10008.1.2.4.100"), JPEGLosslessSV1], ids=["MPEG-2", "JPEG lossless"])
def test_pixels_without_a_decoder_are_refused_with_what_to_do(tmp_path, syntax):
    from pydicom.encaps import encapsulate

    if syntax is JPEGLosslessSV1 and get_decoder(syntax).is_available:
        pytest.skip("a decoder for it is installed")
    datasets = slices(VALUES, AFFINE)
    datasets[2].PixelData = encapsulate([b"\0" * 100])
    datasets[2]["PixelData"].VR = "OB"
    datasets[2].file_meta.TransferSyntaxUID = syntax
    folder = save(tmp_path / "series", datasets, NAMES)
    advice = "pip install pylibjpeg-libjpeg .*decompress the series" if syntax is JPEGLosslessSV1 else "decompress the"
    with pytest.raises(
        ImageReadError, match=f"slice2: found pixels compressed as .* no decoder is installed; {advice}"
    ):
        read_scan(folder)


def test_frames_and_functional_groups_of_other_numbers_are_refused(tmp_path):
    dataset = multi_frame(VALUES, AFFINE)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(dataset.PerFrameFunctionalGroupsSequence[:3])
    with pytest.raises(ImageReadError, match="a: found functional groups for 3 frames, and NumberOfFrames is 5"):
        read_scan(save(tmp_path / "series", [dataset], ["a"]))


def test_a_folder_without_dicom_and_a_missing_file_say_so(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ImageReadError, match="found a folder without DICOM files"):
        read_scan(tmp_path)
    with pytest.raises(ImageReadError, match="no such file"):
        read_scan(tmp_path / "a.dcm")


def test_without_the_extra_the_error_names_it(tmp_path, monkeypatch):
    folder = save(tmp_path / "series", slices(VALUES, AFFINE))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r'pydicom is needed to read .*pip install "candy-monai\[dicom\]"'):
        read_scan(folder)
