from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from candy_monai.data.images.reading import load_image, read_geometry
from candy_monai.errors import ImageReadError

_GREY, _COLOUR, _GREY_ALPHA, _COLOUR_ALPHA = 0, 2, 4, 6


def png(path: Path, rows: list[bytes], *, width: int, bits: int, kind: int) -> Path:
    """Write a PNG of these packed rows without any filter."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def wide(path: Path, array: np.ndarray, kind: int) -> Path:
    """Write 16-bit samples ``(rows, columns, channels)``."""
    return png(path, [row.astype(">u2").tobytes() for row in array], width=array.shape[1], bits=16, kind=kind)


def samples(channels: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1 << 16, (5, 7, channels), dtype=np.uint16)


@pytest.mark.parametrize(("kind", "channels"), [(_GREY, 1), (_COLOUR, 3), (_COLOUR_ALPHA, 4)])
def test_a_png_of_16_bits_keeps_all_of_them(tmp_path, kind, channels):
    array = samples(channels)
    path = wide(tmp_path / "a.png", array, kind)
    assert np.array_equal(load_image(path).numpy(), np.moveaxis(array, -1, 0))
    assert read_geometry(path).num_channels == channels


@pytest.mark.parametrize("channels", [3, 4])
def test_a_filtered_png_of_16_bits_keeps_all_of_them(tmp_path, channels):
    sitk = pytest.importorskip("SimpleITK")  # its writer filters rows, as every real one does
    array = np.cumsum(samples(channels) % 700, axis=1, dtype=np.uint16)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / "a.png"))
    assert np.array_equal(load_image(tmp_path / "a.png").numpy(), np.moveaxis(array, -1, 0))


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_with_an_opaque_alpha_is_one_channel(tmp_path, bits):
    grey = samples(1)[..., 0] >> (16 - bits)
    array = np.stack([grey, np.full_like(grey, (1 << bits) - 1)], axis=-1)
    rows = [row.astype(">u2" if bits == 16 else "u1").tobytes() for row in array]
    path = png(tmp_path / "a.png", rows, width=7, bits=bits, kind=_GREY_ALPHA)
    assert np.array_equal(load_image(path).numpy(), grey[None])
    assert load_image(path, is_label=True).shape == (1, 5, 7)
    assert read_geometry(path).num_channels == 1


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_that_is_transparent_in_part_is_refused_by_name(tmp_path, bits):
    rows = [bytes(14 * bits // 8)] * 5
    with pytest.raises(ImageReadError, match=r"a\.png: a grey picture with transparency"):
        load_image(png(tmp_path / "a.png", rows, width=7, bits=bits, kind=_GREY_ALPHA))


@pytest.mark.parametrize(
    ("bits", "row", "ids"), [(1, 0b01100000, [0, 1, 1]), (2, 0b01101100, [1, 2, 3]), (4, 0x1F, [1, 15])]
)
def test_label_ids_of_few_bits_are_read_as_they_are_stored(tmp_path, bits, row, ids):
    path = png(tmp_path / "a.png", [bytes([row])], width=len(ids), bits=bits, kind=_GREY)
    assert load_image(path, is_label=True).tolist() == [[ids]]


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_colour_tiff_of_more_than_8_bits_keeps_all_of_them(tmp_path, planar, dtype):
    tifffile = pytest.importorskip("tifffile")
    array = samples(3).astype(dtype)
    stored = array if planar == "contig" else np.moveaxis(array, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", planarconfig=planar)
    assert np.array_equal(load_image(tmp_path / "a.tif").numpy(), np.moveaxis(array, -1, 0))
    geometry = read_geometry(tmp_path / "a.tif")
    assert (geometry.num_channels, geometry.spatial_shape, geometry.is_picture) == (3, (5, 7), True)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int16, np.int32, np.uint32, np.float32, np.float64])
def test_a_grey_tiff_of_any_sample_type_is_read(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    highest = np.finfo(np.float32).max if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    array = np.array([[0, 1, 100], [7, 8, highest]], dtype)
    tifffile.imwrite(tmp_path / "a.tif", array)
    assert np.array_equal(load_image(tmp_path / "a.tif").numpy()[0], array.astype(np.float32))


@pytest.mark.parametrize("channels", [2, 5])
def test_a_tiff_keeps_channels_that_are_no_colours(tmp_path, channels):
    tifffile = pytest.importorskip("tifffile")
    array = (samples(channels) >> 8).astype(np.uint8)
    extra = ["unspecified"] * (channels - 1)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", planarconfig="contig", extrasamples=extra)
    assert np.array_equal(load_image(tmp_path / "a.tif").numpy(), np.moveaxis(array, -1, 0))


@pytest.mark.parametrize(("axes", "shape"), [("CYX", (2, 3, 5)), ("ZCYX", (2, 4, 3, 5))])
def test_channels_of_imagej_are_channels_and_no_slices(tmp_path, axes, shape):
    tifffile = pytest.importorskip("tifffile")
    if "Z" in axes:
        (tmp_path / "a.json").write_text('{"spacing": [3, 1, 1]}')
    lengths = dict(zip("CZYX", (2, 4, 3, 5), strict=True))
    array = np.arange(math.prod(shape), dtype=np.uint8).reshape([lengths[axis] for axis in axes])
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True, metadata={"axes": axes})
    image = load_image(tmp_path / "a.tif")
    assert tuple(image.shape) == shape
    assert np.array_equal(image.numpy(), np.moveaxis(array, axes.index("C"), 0))


@pytest.mark.parametrize("is_label", [False, True])
def test_slices_that_tifffile_calls_channels_for_imagej_are_slices_where_their_spacing_is_stated(tmp_path, is_label):
    tifffile = pytest.importorskip("tifffile")
    array = np.arange(30, dtype=np.uint8).reshape(5, 3, 2)
    tifffile.imwrite(tmp_path / "a.tif", array, imagej=True)
    (tmp_path / "a.json").write_text('{"spacing": [3, 1, 1]}')
    image = load_image(tmp_path / "a.tif", is_label=is_label)
    assert np.array_equal(image.numpy(), array[None])
    assert read_geometry(tmp_path / "a.tif").spacing_mm == (3, 1, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool])
def test_samples_of_a_tiff_of_which_0_is_white_are_read_as_stored(tmp_path, dtype):
    tifffile = pytest.importorskip("tifffile")
    array = (samples(1)[..., 0] % 2).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    for is_label in (False, True):
        assert np.array_equal(load_image(tmp_path / "a.tif", is_label=is_label)[0].numpy(), array)


def test_beside_a_thumbnail_the_large_picture_of_a_tiff_is_read(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    array = samples(1)[..., 0]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(array[::2, ::2])
        writer.write(array)
    assert np.array_equal(load_image(tmp_path / "a.tif")[0].numpy(), array)
    assert read_geometry(tmp_path / "a.tif").spatial_shape == array.shape


def test_slices_that_were_written_as_images_of_their_own_are_refused(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for _ in range(3):
            writer.write(samples(1)[..., 0])
    with pytest.raises(ImageReadError, match=r"a\.tif: holds 3 images of the same size; expected one"):
        load_image(tmp_path / "a.tif")


def test_pages_of_colour_are_a_volume_of_channels(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    (tmp_path / "a.json").write_text('{"spacing": [3, 1, 1]}', encoding="utf-8-sig")
    array = np.stack([samples(3), samples(3)[::-1]])
    tifffile.imwrite(tmp_path / "a_0000.tif", array, photometric="rgb")
    assert np.array_equal(load_image(tmp_path / "a_0000.tif").numpy(), np.moveaxis(array, -1, 0))
    assert read_geometry(tmp_path / "a_0000.tif").spacing_mm == (3.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "content", ["{", "[3, 1, 1]", '{"spacing": "3 1 1"}', '{"spacing": [3, 1, "x"]}', '{"spacing": [3, 0, 1]}']
)
def test_a_spacing_file_that_states_none_is_an_error_with_its_name(tmp_path, content):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a_0000.tif", np.zeros((2, 3, 5), np.uint8))
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ImageReadError, match=r"a\.json beside it"):
        read_geometry(tmp_path / "a_0000.tif")


def test_a_picture_that_asks_for_a_turn_is_read_as_stored_and_says_so(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.warns(UserWarning, match="EXIF"):
        assert load_image(tmp_path / "a.jpg").shape == (3, 4, 6)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_tiff_that_asks_for_a_turn_is_read_as_stored_and_says_so(tmp_path, orientation):
    pytest.importorskip("tifffile")
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(stored).save(tmp_path / "a.tif", exif=exif)
    with pytest.warns(UserWarning, match="EXIF"):
        assert np.array_equal(load_image(tmp_path / "a.tif")[0].numpy(), stored)
    assert read_geometry(tmp_path / "a.tif").spatial_shape == (2, 3)


@pytest.mark.parametrize("is_same", [True, False])
def test_pages_with_a_palette_are_ids_if_they_share_it_and_grey_with_a_warning(tmp_path, is_same):
    pytest.importorskip("tifffile")
    stored = np.arange(12, dtype=np.uint8).reshape(2, 2, 3) % 3
    pages = [Image.fromarray(page, mode="P") for page in stored]
    for number, page in enumerate(pages):
        page.putpalette([0, 0, 0, 255, 0, 0, 0, 255 * (is_same or number), 255])
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.warns(UserWarning, match="with a palette, which is ignored"):
        assert np.array_equal(load_image(tmp_path / "a.tif")[0].numpy(), stored)
    if is_same:
        assert np.array_equal(load_image(tmp_path / "a.tif", is_label=True)[0].numpy(), stored)
    else:
        with pytest.raises(ImageReadError, match=r"a\.tif: its pages have 2 different palettes"):
            load_image(tmp_path / "a.tif", is_label=True)


def test_a_jpeg_is_no_label_map(tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.jpg")
    with pytest.raises(ImageReadError, match=r"a\.jpg: JPEG is lossy .* as PNG"):
        load_image(tmp_path / "a.jpg", is_label=True)
    assert load_image(tmp_path / "a.jpg").shape == (1, 8, 8)


@pytest.mark.parametrize("count", [1, 3])  # one page is decoded by Pillow, several by tifffile
def test_a_tiff_with_jpeg_compression_is_no_label_map(tmp_path, count):
    pytest.importorskip("tifffile")
    pages = [Image.fromarray(np.zeros((16, 16), np.uint8))] * count
    pages[0].save(tmp_path / "a.tif", compression="jpeg", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageReadError, match=r"a\.tif: JPEG is lossy .* as PNG"):
        load_image(tmp_path / "a.tif", is_label=True)
