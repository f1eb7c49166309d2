from __future__ import annotations

import math

import nibabel
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor, PersistentDataset, decollate_batch
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Flip,
    Invertd,
    LoadImage,
    LoadImaged,
    Orientation,
    Orientationd,
    SaveImage,
    SaveImaged,
    Spacingd,
)
from PIL import Image

from candy_monai import CheckedReader, CheckedWriter, load_image, save_image
from candy_monai.data.images.reading import geometry_of, read_geometry
from candy_monai.errors import BadInputError, ImageReadError

OBLIQUE = np.array([[-0.8, 0.3, 0.0, 12.5], [0.4, 0.6, 0.0, -40.0], [0.0, 0.0, 2.5, 7.0], [0.0, 0.0, 0.0, 1.0]])


def ramp(*shape: int, dtype=np.float32) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def nifti(path, array, affine=OBLIQUE, *, unit="mm"):
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


def _nifti_2d(folder):
    return nifti(folder / "a.nii.gz", ramp(5, 6))


def _nifti_3d(folder):
    return nifti(folder / "a.nii.gz", ramp(4, 5, 6))


def _nifti_4d(folder):
    return nifti(folder / "a.nii", ramp(4, 5, 6, 2))


def _png(folder):
    Image.fromarray(ramp(5, 7, dtype=np.uint8)).save(folder / "a.png")
    return folder / "a.png"


def _rgb(folder):
    Image.fromarray(ramp(5, 6, 3, dtype=np.uint8)).save(folder / "a.png")
    return folder / "a.png"


def _tiff(folder):
    Image.fromarray(ramp(5, 7, dtype=np.uint8)).save(folder / "a.tif")
    return folder / "a.tif"


def _mha(folder):
    pytest.importorskip("itk")
    save_image(MetaTensor(torch.from_numpy(ramp(1, 4, 5, 6)), affine=OBLIQUE), folder / "a.mha")
    return folder / "a.mha"


def _nrrd(folder):
    pytest.importorskip("itk")
    save_image(MetaTensor(torch.from_numpy(ramp(2, 4, 5, 6)), affine=OBLIQUE), folder / "a.nrrd")
    return folder / "a.nrrd"


@pytest.mark.parametrize("make", [_nifti_2d, _nifti_3d, _nifti_4d, _png, _rgb, _tiff, _mha, _nrrd])
def test_monais_loader_gives_what_load_image_gives(tmp_path, make):
    path = make(tmp_path)
    expected = load_image(path)
    item = Compose([LoadImaged("image", reader=CheckedReader()), EnsureChannelFirstd("image")])({"image": path})
    loaded = item["image"]
    assert isinstance(loaded, MetaTensor)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.as_tensor(), expected.as_tensor())
    assert torch.equal(loaded.affine, expected.affine)
    assert set(loaded.meta) == set(expected.meta)
    for key in ("filename_or_obj", "space", "spatial_shape", "trailing_axes", "is_picture"):
        assert loaded.meta[key] == expected.meta[key]
    assert torch.equal(LoadImage(reader=CheckedReader(), ensure_channel_first=True)(path), loaded)


def test_channels_have_an_axis_where_monais_readers_give_one(tmp_path):
    single, several = _nifti_3d(tmp_path), nifti(tmp_path / "b.nii", ramp(4, 5, 6, 2))
    load, theirs = LoadImage(reader=CheckedReader()), LoadImage()
    assert load(single).shape == theirs(single).shape == (4, 5, 6)
    assert math.isnan(load(single).meta["original_channel_dim"])
    assert load(several).shape == (2, 4, 5, 6)
    assert load(several).meta["original_channel_dim"] == 0
    assert load(single).meta["space"] == theirs(single).meta["space"]
    assert np.array_equal(load(single).meta["original_affine"], theirs(single).meta["original_affine"])


def test_the_files_of_a_list_are_channels_on_the_grid_of_the_first(tmp_path):
    array, turned = ramp(4, 5, 6), np.diag([-1.0, 1, 1, 1])
    turned[0, 3] = 3
    first = nifti(tmp_path / "a_0000.nii.gz", array)
    second = nifti(tmp_path / "a_0001.nii.gz", array[::-1] + 1000, OBLIQUE @ turned)
    loaded = LoadImage(reader=CheckedReader(num_channels=2), ensure_channel_first=True)([first, second])
    assert np.array_equal(loaded.numpy(), np.stack([array, array + 1000]))
    elsewhere = nifti(tmp_path / "a_0002.nii.gz", array, np.diag([1.0, 1, 1, 1]))
    with pytest.raises(ImageReadError, match=r"a_0002.*the channel a_0000\.nii\.gz has"):
        LoadImage(reader=CheckedReader())([first, elsewhere])


def test_another_number_of_channels_than_expected_is_an_error(tmp_path):
    with pytest.raises(ImageReadError, match=r"a\.png: found 3 channels, expected 1"):
        LoadImage(reader=CheckedReader(num_channels=1))(_rgb(tmp_path))


def test_a_header_in_micrometres_lies_where_its_millimetres_say(tmp_path):
    path = nifti(tmp_path / "a.nii", ramp(4, 5, 6), np.diag([500.0, 500, 2000, 1]), unit="micron")
    assert LoadImage(reader=CheckedReader())(path).affine.diag().tolist() == [0.5, 0.5, 2.0, 1.0]


def test_labels_are_whole_ids_of_any_size(tmp_path):
    load = LoadImage(reader=CheckedReader(is_label=True), dtype=np.int64)
    ids = np.array([[[0, 1, 2**24 + 1]]], np.float64)
    label = load(nifti(tmp_path / "a.nii", ids))
    assert label.dtype == torch.int64
    assert label.tolist() == ids.tolist()
    with pytest.raises(ImageReadError, match="not whole numbers, for example 0.5"):
        load(nifti(tmp_path / "b.nii", ids + 0.5))


def test_a_palette_is_colours_of_an_image_and_ids_of_a_label(tmp_path):
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "a.png")
    assert LoadImage(reader=CheckedReader())(tmp_path / "a.png").shape == (3, 2, 2)
    assert LoadImage(reader=CheckedReader(is_label=True))(tmp_path / "a.png").tolist() == [[0, 1], [2, 1]]


def test_monai_finds_the_reader_by_its_name_as_a_config_states_it(tmp_path):
    load = LoadImaged("label", reader="candy_monai.CheckedReader", is_label=True)
    with pytest.raises(ImageReadError, match="not whole numbers"):
        load({"label": nifti(tmp_path / "a.nii", ramp(3, 4) + 0.5)})


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (lambda folder: truncated(_nifti_3d(folder)), r"a\.nii\.gz: found .*cannot be decoded.*copy or export it"),
        (lambda folder: truncated(_rgb(folder)), r"a\.png: found .*cannot be decoded"),
        (lambda folder: folder / "none.nii.gz", r"none\.nii\.gz: no such file"),
        (lambda folder: nifti(folder / "a.nii", np.ones((3, 4, 5), np.complex64)), "complex numbers"),
    ],
    ids=["truncated NIfTI", "truncated PNG", "missing", "complex"],
)
def test_the_reason_reaches_whoever_loads(tmp_path, file, says):
    path = file(tmp_path)
    with pytest.raises(ImageReadError, match=says):
        LoadImaged("image", reader=CheckedReader())({"image": path})
    with pytest.raises(RuntimeError) as caught:  # in a pipeline it is MONAI's error, and ours the cause
        Compose([LoadImaged("image", reader=CheckedReader())])({"image": path})
    assert isinstance(caught.value.__cause__, ImageReadError)


def test_a_format_of_others_goes_on_to_monais_own_readers(tmp_path):
    np.save(tmp_path / "a.npy", ramp(3, 4))
    reader = CheckedReader()
    assert not reader.verify_suffix([tmp_path / "a.nii.gz", tmp_path / "a.npy"])
    assert reader.verify_suffix(tmp_path / "A.NII.GZ")
    assert np.array_equal(LoadImage(reader=reader)(tmp_path / "a.npy").numpy(), ramp(3, 4))
    (tmp_path / "a.xyz").write_text("")
    with pytest.raises(RuntimeError, match=r"cannot read '\.xyz'; known formats: \.nii"):
        LoadImage(reader=reader)(tmp_path / "a.xyz")


@pytest.fixture
def cases(tmp_path):
    """Return the files of three cases, whose images have trailing axes in turn and whose labels are image > 50."""
    made = []
    for number in range(3):
        array = ramp(4, 5, 6) + number
        image = nifti(tmp_path / f"{number}_0000.nii.gz", array[..., None] if number == 1 else array)
        made.append({"image": image, "label": nifti(tmp_path / f"{number}.nii.gz", (array > 50).astype(np.uint8))})
    return made


def loading():
    return Compose(
        [
            LoadImaged("image", reader=CheckedReader(), ensure_channel_first=True),
            LoadImaged("label", reader=CheckedReader(is_label=True), ensure_channel_first=True, dtype=np.int64),
        ]
    )


def assert_whole(batch, start=0):
    for number, item in enumerate(decollate_batch(batch), start=start):
        assert np.array_equal(item["image"][0].numpy(), ramp(4, 5, 6) + number)
        assert item["label"].dtype == torch.int64
        assert torch.equal(item["label"] == 1, item["image"] > 50)
        geometry = geometry_of(item["image"])
        assert geometry.file_shape == ((4, 5, 6, 1) if number == 1 else (4, 5, 6))
        assert not geometry.is_picture


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_load_what_the_process_itself_loads(cases, method):
    loader = DataLoader(Dataset(cases, loading()), batch_size=3, num_workers=1, multiprocessing_context=method)
    (batch,) = loader
    assert_whole(batch)


def test_an_error_in_a_worker_names_the_file(cases):
    truncated(cases[2]["image"])
    coming = iter(DataLoader(Dataset(cases, loading()), batch_size=1, num_workers=1))
    with pytest.raises(RuntimeError, match=r"2_0000\.nii\.gz: found a file of \d+ bytes that cannot be decoded"):
        list(coming)
    assert list(coming) == []  # and the worker ends


def test_monais_caches_hold_what_it_reads(cases, tmp_path):
    (batch,) = DataLoader(CacheDataset(cases, loading(), num_workers=2, progress=False), batch_size=3)
    assert_whole(batch)
    for _ in range(2):  # the second one from the disk
        stored = PersistentDataset(cases, loading(), tmp_path / "cache", track_meta=True, weights_only=False)
        (batch,) = DataLoader(stored, batch_size=3)
        assert_whole(batch)


def written_by_monai(image, folder, **options):
    options = {"output_postfix": "seg", "separate_folder": False, "print_log": False, **options}
    SaveImage(output_dir=folder, writer=CheckedWriter, **options)(image)
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 8), (6, 7, 8, 1)])
def test_a_label_map_is_written_with_shape_axes_and_affine_of_its_scan(tmp_path, shape):
    scan = nifti(tmp_path / "scan.nii.gz", ramp(*shape))
    image = LoadImage(reader=CheckedReader(), ensure_channel_first=True)(scan)
    path = written_by_monai((image > 3).long(), tmp_path / "out")
    written, expected = nibabel.load(path), nibabel.load(scan)
    assert path.name == "scan_seg.nii.gz"
    assert written.shape == expected.shape
    assert written.get_data_dtype() == np.uint8
    assert np.allclose(written.affine, expected.affine, atol=1e-5)
    assert np.array_equal(np.asanyarray(written.dataobj), np.asanyarray(expected.dataobj) > 3)


def test_axes_that_were_turned_are_turned_back_without_interpolation(tmp_path):
    scan = nifti(tmp_path / "scan.nii.gz", ramp(4, 5, 6), np.diag([-1.0, 2, 3, 1]))
    turned = Orientation("SRA", labels=None)(LoadImage(reader=CheckedReader(), ensure_channel_first=True)(scan))
    assert turned.shape == (1, 6, 4, 5)
    written = nibabel.load(written_by_monai(turned.long(), tmp_path / "out"))
    assert np.allclose(written.affine, np.diag([-1.0, 2, 3, 1]))
    assert np.array_equal(np.asanyarray(written.dataobj), ramp(4, 5, 6))


@pytest.mark.parametrize("resample", [True, False])
def test_another_grid_is_left_or_resampled_as_monais_saver_says(tmp_path, resample):
    ids = np.zeros((8, 8, 8), np.float32)
    ids[2:6, 2:6, 2:6] = 3
    scan = nifti(tmp_path / "scan.nii.gz", ids, np.eye(4))
    load = Compose(
        [
            LoadImaged("image", reader=CheckedReader(), ensure_channel_first=True),
            Spacingd("image", (2.0, 2.0, 2.0), mode="nearest", align_corners=True),
        ]
    )
    coarse = load({"image": scan})["image"].long()
    path = written_by_monai(coarse, tmp_path / "out", resample=resample)
    written = nibabel.load(path)
    assert np.allclose(written.affine, np.eye(4) if resample else coarse.affine)
    assert written.shape == ((8, 8, 8) if resample else tuple(coarse.shape[1:]))
    assert written.get_data_dtype() == np.uint8
    assert set(np.unique(np.asanyarray(written.dataobj))) == {0, 3}


def test_an_inverted_prediction_of_a_batch_is_saved_beside_its_scan(cases, tmp_path):
    load = Compose([*loading().transforms, Orientationd("image", "LPS", labels=None)])
    (batch,) = DataLoader(Dataset(cases, load), batch_size=3)
    back = Compose(
        [
            Invertd("pred", transform=load, orig_keys="image", nearest_interp=True),
            SaveImaged("pred", output_dir=tmp_path / "out", separate_folder=False, writer=CheckedWriter),
        ]
    )
    for item in decollate_batch({**batch, "pred": (batch["image"] > 50).long()}):
        back(item)
    for number, case in enumerate(cases):
        written, scan = nibabel.load(tmp_path / "out" / f"{number}_0000_trans.nii.gz"), nibabel.load(case["image"])
        assert written.shape == scan.shape
        assert np.allclose(written.affine, scan.affine, atol=1e-5)
        assert np.array_equal(np.asanyarray(written.dataobj), np.asanyarray(scan.dataobj) > 50)


def test_a_label_map_of_a_picture_is_written_as_rows_and_columns(tmp_path):
    image = LoadImage(reader=CheckedReader(), ensure_channel_first=True)(_rgb(tmp_path))
    path = written_by_monai((image[:1] > 40).long() * 300, tmp_path / "out", output_ext=".png")
    assert np.array_equal(load_image(path, is_label=True), (image[:1] > 40).long() * 300)
    assert read_geometry(path).spatial_shape == (5, 6)


@pytest.mark.parametrize(
    ("values", "asked", "stored"),
    [
        (torch.tensor([0, 2]), np.float32, np.uint8),
        (torch.tensor([0, 2]), np.int16, np.int16),
        (torch.tensor([0, 300]), np.uint8, np.uint16),
        (torch.tensor([-1, 2]), np.uint8, np.int16),
        (torch.tensor([0.0, 2.0]), np.uint8, np.uint8),
        (torch.tensor([0.0, 2.0]), "float32", np.float32),
        (torch.tensor([0.5, 1e300], dtype=torch.float64), np.float32, np.float64),
        (torch.tensor([0.5, 0.25], dtype=torch.float16), np.float16, np.float32),
    ],
)
def test_the_type_to_store_never_changes_a_value(tmp_path, values, asked, stored):
    path = written_by_monai(values.reshape(1, 1, 2, 1), tmp_path / "out", output_dtype=asked)
    written = nibabel.load(path)
    assert written.get_data_dtype() == stored
    assert np.asanyarray(written.dataobj).flatten().tolist() == values.tolist()


@pytest.mark.parametrize("bad", [0.5, math.nan, math.inf])
def test_fractions_are_not_cut_to_integers(tmp_path, bad):
    with pytest.raises(BadInputError, match=r"p\.nii: uint8 cannot hold fractions"):
        save_image(torch.tensor([[[[0.0, bad]]]]), tmp_path / "p.nii", dtype=np.uint8)
    with pytest.raises(RuntimeError, match="uint8 cannot hold fractions"):  # MONAI's, with our text in it
        written_by_monai(torch.tensor([[[[0.0, bad]]]]), tmp_path / "out", output_dtype=np.uint8)


def test_a_scaled_picture_has_the_greys_that_its_shares_say(tmp_path):
    path = written_by_monai(torch.tensor([[[-1.0, 0.0, 0.5, 2.0]]]), tmp_path / "out", output_ext=".png", scale=255)
    assert np.array_equal(np.asarray(Image.open(path)), [[0, 0, 128, 255]])


def test_the_writer_takes_images_without_channels_and_without_metadata(tmp_path):
    writer = CheckedWriter(output_dtype=np.uint8)
    writer.set_data_array(ramp(3, 4, 2), channel_dim=None)
    writer.set_metadata({"affine": OBLIQUE})
    writer.write(tmp_path / "new" / "a.nii.gz", verbose=False)
    assert np.array_equal(load_image(tmp_path / "new" / "a.nii.gz").numpy()[0], ramp(3, 4, 2))
    assert np.allclose(read_geometry(tmp_path / "new" / "a.nii.gz").affine, OBLIQUE, atol=1e-5)
    writer.set_data_array(torch.from_numpy(ramp(3, 4, 2)), channel_dim=-1)
    writer.set_metadata(None)
    writer.write(tmp_path / "b.nii.gz", verbose=False)
    assert np.array_equal(load_image(tmp_path / "b.nii.gz").numpy()[..., 0], np.moveaxis(ramp(3, 4, 2), -1, 0))


def test_a_flip_that_moved_the_label_is_not_undone(tmp_path):
    image = LoadImage(reader=CheckedReader(), ensure_channel_first=True)(_nifti_3d(tmp_path))
    flipped = MetaTensor(Flip(0)(image.as_tensor()), meta=image.meta)  # with the affine of before
    assert np.array_equal(load_image(written_by_monai(flipped, tmp_path / "out")).numpy(), flipped.numpy())
