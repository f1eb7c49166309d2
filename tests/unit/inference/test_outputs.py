"""Files of every kind in, label maps on the same grid out: by a network that answers with what it sees."""

import json
import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import CacheDataset, Dataset, MetaTensor
from monai.transforms import LoadImaged
from scipy.spatial.transform import Rotation
from torch.utils.data import TensorDataset

from candy_monai.data.datasets.files import DatasetFromMemory
from candy_monai.data.images.writing import save_image
from candy_monai.errors import BadInputError
from candy_monai.inference import inputs
from candy_monai.inference.outputs import PredictionError, prediction_error
from candy_monai.inference.prediction import PredictionListener
from candy_monai.inference.predictor import Predictor
from tests.toys import SmallTrainer, Squares, small_trainer


class _Threshold(torch.nn.Module):
    """Class 1 where the first channel exceeds 0.5, class 2 where it exceeds 1.5."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))  # trained, and without effect

    def forward(self, images):
        first = images[:, :1] + 0 * self.weight
        return torch.cat([torch.zeros_like(first), first - 0.5, 2 * first - 2], 1)


class _Trainer(SmallTrainer):
    num_classes = 3

    def build_network(self, example_shape):
        return _Threshold()


def _trained(folder, num_dims, channels=1):
    data = Squares(2, size=(14,) * num_dims, channels=channels, num_classes=3)
    trainer = small_trainer(folder, data, cls=_Trainer)
    trainer.train(1, save_preview=False)
    return trainer.experiment_folder()


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    """Return experiments by number of spatial axes and channels."""
    folder = tmp_path_factory.mktemp("runs")
    return {(dims, channels): _trained(folder, dims, channels) for dims, channels in ((2, 1), (3, 1), (3, 2))}


@pytest.fixture
def predictor(experiments):
    return Predictor(experiments[3, 1], network=_Threshold())


def _volume(shape):
    """Return 0, 1 and 2 at random, in an order that no flip and no permutation keeps."""
    return np.random.default_rng(0).integers(0, 3, shape).astype(np.float64)


def _save(path, data, affine=None, *, dtype=np.float32, scaling=None):
    image = nibabel.Nifti1Image(data.astype(dtype), np.eye(4) if affine is None else affine)
    if scaling is not None:
        slope, inter = scaling
        image = nibabel.Nifti1Image(np.round((data - inter) / slope).astype(dtype), image.affine)
        image.header.set_slope_inter(slope, inter)
    nibabel.save(image, path)
    return path


def _oblique():
    """Return the affine of a scan that is turned about all three axes, with another spacing along each."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (20, -35, 10), degrees=True).as_matrix() @ np.diag([0.8, 1.2, 3.0])
    affine[:3, 3] = 10, -20, 5
    return affine


OBLIQUE = _oblique()
AFFINES = {
    "straight": np.diag([1.0, 1, 1, 1]),
    "anisotropic": np.diag([0.5, 0.5, 6.0, 1]),
    "flipped": np.diag([-1.0, -2, 3, 1]),
    "permuted": np.array([[0, 0, 2.0, 1], [1.5, 0, 0, 2], [0, -1, 0, 3], [0, 0, 0, 1]]),
    "oblique": OBLIQUE,
    "oblique and flipped": OBLIQUE @ np.diag([-1.0, 1, -1, 1]),
    "far away": np.diag([1.0, 1, 1, 1]) + np.array([[0, 0, 0, 5000.0], [0, 0, 0, -4000.0], [0] * 4, [0] * 4]),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_a_label_map_lies_where_its_scan_does_and_two_readers_agree(predictor, tmp_path, affine, suffix):
    data = _volume((7, 9, 5))
    scan = _save(tmp_path / f"scan{suffix}", data, affine)
    (written,) = predictor.predict_to_files(scan, tmp_path / "out")
    read, itk = nibabel.load(written), SimpleITK.ReadImage(str(written))
    reference = SimpleITK.ReadImage(str(scan))
    assert np.array_equal(np.asarray(read.dataobj), data)
    assert np.allclose(read.affine, affine, atol=1e-5)
    assert written.name == scan.name
    assert itk.GetSize() == reference.GetSize()
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        assert np.allclose(getattr(itk, what)(), getattr(reference, what)(), atol=1e-4)
    assert np.array_equal(SimpleITK.GetArrayFromImage(itk).T, data)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_samples_of_every_type_are_read(predictor, tmp_path, dtype):
    data = _volume((5, 6, 7))
    (written,) = predictor.predict_to_files(_save(tmp_path / "a.nii.gz", data, dtype=dtype), tmp_path / "out")
    assert np.array_equal(nibabel.load(written).get_fdata(), data)


def test_slope_and_intercept_of_the_header_count(predictor, tmp_path):
    data = _volume((5, 6, 7))
    scan = _save(tmp_path / "a.nii.gz", data, dtype=np.int16, scaling=(0.25, -3.0))
    (written,) = predictor.predict_to_files(scan, tmp_path / "out")
    assert np.array_equal(nibabel.load(written).get_fdata(), data)


@pytest.mark.parametrize("shape", [(6, 5, 1), (6, 5, 4, 1), (1, 5, 4), (6, 5, 4, 1, 1)])
def test_one_slice_and_axes_of_length_one_keep_the_file_s_shape(predictor, tmp_path, shape):
    data = _volume(shape)
    (written,) = predictor.predict_to_files(_save(tmp_path / "a.nii.gz", data), tmp_path / "out")
    assert nibabel.load(written).shape == shape
    assert np.array_equal(nibabel.load(written).get_fdata(), data)


def test_a_flat_file_stays_flat(experiments, tmp_path):
    data = _volume((6, 5))
    predictor = Predictor(experiments[2, 1], network=_Threshold())
    (written,) = predictor.predict_to_files(_save(tmp_path / "a.nii.gz", data), tmp_path / "out")
    assert nibabel.load(written).shape == (6, 5)
    assert np.array_equal(nibabel.load(written).get_fdata(), data)


def test_every_kind_of_image_gives_the_same_labels(predictor, tmp_path):
    data = _volume((7, 6, 5))
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    file = _save(tmp_path / "a.nii.gz", data, affine)
    tensor = torch.from_numpy(data[None]).float()
    images = {
        "file": file,
        "files of channels": [file],
        "tensor": tensor,
        "MetaTensor": MetaTensor(tensor, affine=torch.from_numpy(affine)),
        "nibabel image": nibabel.load(file),
        "array with spacing": (data, (1.0, 2.0, 3.0)),
    }
    for kind, image in images.items():
        prediction = predictor.predict(image)
        assert np.array_equal(prediction[0].numpy(), data), kind
        if kind != "tensor":
            assert np.allclose(prediction.affine, affine), kind


def test_a_stream_predicts_lists_folders_and_datasets_one_case_at_a_time(predictor, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    volumes = [_volume((5, 4, 3)), 2 - _volume((5, 4, 3))]
    files = [_save(folder / f"case{index}_0000.nii.gz", data) for index, data in enumerate(volumes)]
    tensors = [torch.from_numpy(data[None]).float() for data in volumes]
    for source in (folder, files, tensors, DatasetFromMemory(tensors)):
        predictions = list(predictor.stream(source))
        assert len(predictions) == 2
        assert all(np.array_equal(p.labels[0].numpy(), data) for p, data in zip(predictions, volumes, strict=True))
    assert [prediction.case_id for prediction in predictor.stream(files)] == ["case0", "case1"]


def test_a_flat_scan_is_one_slice_to_a_network_of_volumes_and_comes_back_flat(predictor, tmp_path):
    data = _volume((6, 5))
    scan = _save(tmp_path / "a.nii.gz", data, OBLIQUE)
    (written,) = predictor.predict_to_files(scan, tmp_path / "out", probabilities=True)
    read = nibabel.load(written)
    assert np.array_equal(np.asarray(read.dataobj), data)
    assert np.allclose(read.affine, OBLIQUE, atol=1e-5)
    prediction = predictor.predict_image(scan, probabilities=True)
    assert (prediction.labels.shape, prediction.probabilities.shape) == ((1, 6, 5), (3, 6, 5))


def test_a_volume_of_one_slice_is_flat_to_a_network_of_pictures_and_comes_back_as_a_volume(experiments, tmp_path):
    data = _volume((6, 5, 1))
    predictor = Predictor(experiments[2, 1], network=_Threshold())
    (written,) = predictor.predict_to_files(_save(tmp_path / "a.nii.gz", data, OBLIQUE), tmp_path / "out")
    assert nibabel.load(written).shape == (6, 5, 1)
    assert np.array_equal(nibabel.load(written).get_fdata(), data)
    assert predictor.predict(torch.from_numpy(data)[None]).shape == (1, 6, 5, 1)


@pytest.mark.parametrize("shape", [(6, 5, 4, 2), (6, 5, 4, 1, 2)])
def test_a_nibabel_image_has_the_channels_that_its_file_has(experiments, tmp_path, shape):
    predictor = Predictor(experiments[3, 2], network=_Threshold())
    data = _volume(shape)
    file = _save(tmp_path / "a.nii.gz", data)
    for image in (file, nibabel.load(file), nibabel.Nifti1Image(data, np.eye(4))):
        assert np.array_equal(predictor.predict(image)[0].numpy(), data[..., 0].reshape(6, 5, 4))


def test_items_of_monai_and_pytorch_datasets_are_cases(predictor, tmp_path):
    data = _volume((5, 4, 3))
    file = _save(tmp_path / "a_0000.nii.gz", data)
    tensor = torch.from_numpy(data[None]).float()
    loaded = LoadImaged("image", ensure_channel_first=True)
    for source in (
        Dataset([{"image": str(file), "label": "not read"}]),
        Dataset([{"image": file}], transform=loaded),
        CacheDataset([{"image": file}], transform=loaded, progress=False),
        TensorDataset(tensor[None], torch.zeros(1)),
        [{"image": file}],
        [{"image": tensor}],
    ):
        (prediction,) = predictor.stream(source)
        assert np.array_equal(prediction.labels[0].numpy(), data), source
    with pytest.raises(BadInputError, match="found a dictionary with the keys 'img', expected the key 'image'"):
        list(predictor.stream(Dataset([{"img": file}])))


def test_a_generator_is_asked_for_an_image_when_it_is_its_turn(predictor):
    asked = []

    def images():
        for number in range(4):
            asked.append(number)
            yield torch.full((1, 5, 4, 3), float(number % 3))

    predictions = predictor.stream(images())
    for number, prediction in enumerate(predictions):
        assert prediction.labels.unique().tolist() == [number % 3]
        assert len(asked) <= number + 2  # the next one is read meanwhile
    assert asked == [0, 1, 2, 3]


def test_a_folder_in_place_of_one_image_is_refused_with_what_predicts_folders(predictor, tmp_path):
    with pytest.raises(BadInputError, match="found a folder, expected one image; stream"):
        predictor.predict(tmp_path)


def test_a_target_that_looks_like_a_file_is_refused(predictor, tmp_path):
    scan = _save(tmp_path / "a.nii.gz", _volume((5, 4, 3)))
    with pytest.raises(BadInputError, match="out.nii.gz: looks like a file"):
        predictor.predict_to_files(scan, tmp_path / "out.nii.gz")
    assert not (tmp_path / "out.nii.gz").exists()


@pytest.mark.parametrize(
    "image", [torch.ones(1, 4, 4, 4, dtype=torch.complex64), (np.ones((4, 4, 4), complex), (1.0, 1.0, 1.0))]
)
def test_complex_numbers_are_refused_and_not_cut(predictor, image):
    with pytest.raises(BadInputError, match="holds complex numbers .*; use their magnitude"):
        predictor.predict(image)


def test_a_tensor_with_a_graph_is_predicted_like_its_values(predictor):
    image = torch.randn(1, 8, 8, 8)
    assert torch.equal(predictor.predict(image.clone().requires_grad_()), predictor.predict(image))


@pytest.mark.parametrize("image", [torch.zeros(1, 0, 4, 4), (np.zeros((4, 4, 0)), (1.0, 1.0, 1.0))])
def test_an_image_without_voxels_is_refused(predictor, image):
    with pytest.raises(BadInputError, match="is empty"):
        predictor.predict(image)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((3, 3, 3)), "without its spacing"),
        ((np.zeros((3, 3, 3)), (1.0, 1.0)), "expected 3 positive numbers"),
        ((np.zeros((3, 3, 3)), (1.0, 1.0, 0.0)), "expected 3 positive numbers"),
        (7, "cannot predict int"),
        ([], "cannot predict list"),
        (["a.nii", 3], "cannot predict list"),
    ],
)
def test_what_cannot_be_predicted_is_refused_with_what_could(predictor, image, said):
    with pytest.raises(BadInputError, match=said):
        predictor.predict(image)


def test_the_channels_of_a_case_are_grouped(experiments, tmp_path):
    predictor = Predictor(experiments[3, 2], network=_Threshold())
    data = _volume((5, 4, 3))
    files = [_save(tmp_path / f"a_{channel:04d}.nii.gz", data * (1 - channel)) for channel in (0, 1)]
    for given in (files, files[::-1], *files):  # one file brings the others
        assert np.array_equal(predictor.predict(given)[0].numpy(), data)
    (prediction,) = predictor.stream(reversed(files))
    assert (prediction.case_id, np.array_equal(prediction.labels[0].numpy(), data)) == ("a", True)


@pytest.fixture
def mixed_folder(tmp_path):
    """Return a folder of two good cases among bad ones."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("good_1", "good_2"):
        _save(folder / f"{name}.nii.gz", _volume((5, 4, 3)))
    whole = (folder / "good_1.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "text.nii").write_text("not an image")
    _save(folder / "two_channels.nii.gz", _volume((5, 4, 3, 2)))
    return folder


def test_bad_inputs_are_named_and_the_good_ones_are_done(predictor, mixed_folder, tmp_path):
    seen = {}

    class Listener(PredictionListener):
        def on_case(self, done, total, case_id, error):
            seen[case_id] = error

    with pytest.raises(PredictionError) as failed:
        predictor.predict_to_files(mixed_folder, tmp_path / "out", listener=Listener())
    assert [path.name for path in failed.value.written] == ["good_1.nii.gz", "good_2.nii.gz"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["good_1.nii.gz", "good_2.nii.gz", "manifest.json"]
    assert sorted(failed.value.failures) == ["cut", "empty", "text", "two_channels"]
    assert all(f"\n  - {case_id}: " in str(failed.value) for case_id in failed.value.failures)
    assert "4 of 6 cases could not be predicted; the others are done" in str(failed.value)
    assert "has 2 channels, the network expects 1" in str(failed.value)
    assert [case_id for case_id, error in seen.items() if error is None] == ["good_1", "good_2"]


def test_probabilities_that_would_replace_a_label_map_are_refused_before_anything_is_written(predictor, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "a_probabilities"):
        _save(tmp_path / "in" / f"{name}.nii.gz", _volume((5, 4, 3)))
    with pytest.raises(BadInputError, match=r"several cases would be written to a_probabilities\.nii\.gz"):
        predictor.predict_to_files(tmp_path / "in", tmp_path / "out", probabilities=True)
    assert not (tmp_path / "out").exists()
    assert len(predictor.predict_to_files(tmp_path / "in", tmp_path / "out")) == 2


def test_a_folder_that_cannot_be_made_is_named(predictor, tmp_path, monkeypatch):
    _save(tmp_path / "a.nii.gz", _volume((5, 4, 3)))

    def refused(folder, **_options):
        raise OSError(30, "Read-only file system", str(folder))

    monkeypatch.setattr(type(tmp_path), "mkdir", refused)
    with pytest.raises(BadInputError, match="out: the folder cannot be created .Read-only file system"):
        predictor.predict_to_files(tmp_path / "a.nii.gz", tmp_path / "out")


def test_where_every_case_fails_none_is_said_to_be_done():
    error = PredictionError({"a": ValueError("x"), "b": ValueError("y")}, [])
    assert "2 of 2 cases could not be predicted; none is done" in str(error)


def test_cases_none_of_which_fits_the_network_are_bad_input():
    refused = {"a": BadInputError("x"), "b": BadInputError("y")}
    assert isinstance(prediction_error(refused, []), BadInputError)
    assert isinstance(prediction_error(refused, []), PredictionError)
    assert not isinstance(prediction_error(refused, [Path("c.nii.gz")]), BadInputError)
    assert not isinstance(prediction_error({**refused, "c": OSError("full")}, []), BadInputError)


class _LeftOver(PredictionListener):
    def __init__(self):
        self.said = {}

    def on_left_over(self, file, reason):
        self.said[file.name] = reason


def test_what_an_earlier_prediction_left_of_a_case_that_fails_stays_and_is_told(predictor, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in "ab":
        _save(folder / f"{name}.nii.gz", _volume((5, 4, 3)))
    predictor.predict_to_files(folder, out, probabilities=True, listener=(first := _LeftOver()))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    (folder / "a.nii.gz").write_bytes(b"damaged")
    with pytest.raises(PredictionError):
        predictor.predict_to_files(folder, out, listener=(second := _LeftOver()))
    assert first.said == {}
    assert set(second.said) == {"a.nii.gz", "a_probabilities.nii.gz", "b_probabilities.nii.gz"}
    assert second.said["a.nii.gz"] == "a could not be predicted this time"
    assert "were not requested" in second.said["b_probabilities.nii.gz"]
    assert all((out / name).read_bytes() == before[name] for name in second.said)


def test_a_lone_bad_input_is_its_own_error(predictor, mixed_folder, tmp_path):
    with pytest.raises(BadInputError, match=r"empty\.nii\.gz"):
        predictor.predict_to_files(mixed_folder / "empty.nii.gz", tmp_path / "out")


def test_a_label_map_that_cannot_be_written_is_that_case_s_failure(predictor, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "ab":
        _save(folder / f"{name}.nii.gz", _volume((5, 4, 3)))

    def save_image(image, path, **options):
        if path.name.startswith("a"):
            raise OSError("disk full")

    monkeypatch.setattr("candy_monai.inference.outputs.save_image", save_image)
    with pytest.raises(PredictionError, match=r"a: OSError: disk full") as failed:
        predictor.predict_to_files(folder, tmp_path / "out")
    assert [path.name for path in failed.value.written] == ["b.nii.gz"]


@pytest.mark.parametrize("memory", [None, 10**9])
@pytest.mark.parametrize("at_fault", ["a", "b"])
def test_what_ends_the_thread_that_writes_ends_the_prediction_and_no_such_case_is_told_as_written(
    predictor, tmp_path, monkeypatch, at_fault, memory
):
    folder, out, told = tmp_path / "in", tmp_path / "out", []
    folder.mkdir()
    for name in "ab":
        _save(folder / f"{name}.nii.gz", _volume((5, 4, 3)))

    class Told(PredictionListener):
        def on_case(self, done, total, case_id, error):
            told.append((done, case_id, error))

    def save(image, path, **options):
        if path.name.startswith(at_fault):
            raise SystemExit("out of disk")
        save_image(image, path, **options)

    monkeypatch.setattr("candy_monai.inference.outputs.save_image", save)
    monkeypatch.setattr(predictor, "memory", memory)
    with pytest.raises(SystemExit, match="out of disk"):
        predictor.predict_to_files(folder, out, listener=Told())
    before = ["a"] if at_fault == "b" else []
    assert told == [(1, case_id, None) for case_id in before]
    assert sorted(path.name for path in out.glob("*.nii.gz")) == [f"{case_id}.nii.gz" for case_id in before]
    manifest = json.loads((out / "manifest.json").read_text())["cases"] if before else {}
    assert list(manifest) == before


def test_reading_predicting_and_writing_overlap(predictor, tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abcd":
        _save(folder / f"{name}.nii.gz", _volume((5, 4, 3)))
    started = {}
    read_channels = inputs.read_channels

    def noted_read(files):
        started[files[0].name[0]] = time.perf_counter()
        return read_channels(files)

    run = predictor.run

    def slow_run(case, **options):
        time.sleep(0.05)
        ended[case.case_id] = time.perf_counter()
        return run(case, **options)

    ended = {}
    monkeypatch.setattr(inputs, "read_channels", noted_read)
    predictor.run = slow_run
    predictor.predict_to_files(folder, tmp_path / "out")
    assert all(started[later] < ended[earlier] for earlier, later in ("ab", "bc", "cd"))
    assert threading.active_count() == 1 or not any(t.name.startswith(("read", "write")) for t in threading.enumerate())


def test_probabilities_are_returned_and_written_when_asked_for(predictor, tmp_path):
    data = _volume((5, 4, 3))
    scan = _save(tmp_path / "a.nii.gz", data, OBLIQUE)
    prediction = predictor.predict_image(scan, probabilities=True)
    first = torch.from_numpy(data).float()
    expected = torch.stack([torch.zeros_like(first), first - 0.5, 2 * first - 2]).softmax(0)
    assert torch.allclose(prediction.probabilities.as_tensor(), expected, atol=1e-6)
    assert np.array_equal(prediction.labels[0].numpy(), data)
    predictor.predict_to_files(scan, tmp_path / "out", probabilities=True)
    written = nibabel.load(tmp_path / "out" / "a_probabilities.nii.gz")
    assert np.allclose(np.moveaxis(written.get_fdata(), -1, 0), expected, atol=1e-6)
    assert np.allclose(written.affine, OBLIQUE, atol=1e-5)


def test_only_the_largest_parts_stay_when_asked(experiments):
    image = torch.zeros(1, 6, 6, 6)
    image[0, :3, 0, 0] = 1
    image[0, 5, 5, 5] = 1
    labels = Predictor(experiments[3, 1], network=_Threshold(), largest_component=True).predict(image)
    assert labels.nonzero().tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 2, 0, 0]]


def test_a_label_map_may_be_changed_by_whoever_gets_it(predictor):
    labels = predictor.predict(torch.ones(1, 4, 4, 4))
    labels[labels == 1] = 2
    assert labels.unique().tolist() == [2]
