"""Images from files and from memory as one case: which channels they are, and where they lie."""

import nibabel
import numpy as np
import pytest
import torch
from monai.data import Dataset, MetaTensor

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError
from candy_monai.inference.channels import RunChannels
from candy_monai.inference.inputs import (
    CaseFiles,
    find_inputs,
    input_case,
    input_cases,
)

AFFINE = np.array([[-1.1, 0.1, 0, 30], [0.1, -1.4, 0.2, 40], [0, 0.2, 2.2, -7], [0, 0, 0, 1]])
ONE, TWO = RunChannels(names=("T2W",)), RunChannels(names=("ADC", "b1600"))
VALUES = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32)


def _images():
    """Return two channels of one place; the second one is stored in other axes."""
    first, second = (nibabel.Nifti1Image(values, AFFINE) for values in VALUES)
    start = nibabel.orientations.io_orientation(AFFINE)
    turn = nibabel.orientations.ornt_transform(start, nibabel.orientations.axcodes2ornt("SLP"))
    turned = second.as_reoriented(turn)
    assert turned.shape != first.shape
    return first, turned


def _tensor(image):
    return MetaTensor(torch.from_numpy(np.asarray(image.dataobj))[None], affine=torch.from_numpy(image.affine))


def _loaded(source, channels, *, num_dims=3):
    return input_case(source, channels=channels, num_dims=num_dims).load(channels, num_dims=num_dims)


def _ways(folder, images):
    """Return the same channels in every way in which they can be given."""
    for number, image in enumerate(images):
        nibabel.save(image, folder / f"a_{number:04d}.nii.gz")
    files = [folder / f"a_{number:04d}.nii.gz" for number in range(len(images))]
    return {
        "folder": folder,
        "file": files[0],
        "files": [files],
        "names": [[str(file) for file in files]],
        "MetaTensors": [list(map(_tensor, images))],
        "nibabel images": [list(images)],
        "dictionary": [{"image": files}],
        "dictionary of tensors": [{"image": list(map(_tensor, images))}],
        "dataset": Dataset([{"image": list(map(_tensor, images))}]),
        "generator": (list(map(_tensor, images)) for _ in range(1)),
    }


WAYS = (
    "folder",
    "file",
    "files",
    "names",
    "MetaTensors",
    "nibabel images",
    "dictionary",
    "dictionary of tensors",
    "dataset",
    "generator",
)


@pytest.mark.parametrize("way", WAYS)
def test_channels_in_other_axes_are_brought_onto_the_grid_of_the_first(tmp_path, way):
    source = _ways(tmp_path, _images())[way]
    (case,) = input_cases(source, channels=TWO, num_dims=3)
    image = case.load(TWO, num_dims=3)
    assert np.array_equal(image.numpy(), VALUES)
    assert np.allclose(image.affine, AFFINE, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", ["shifted", "spacing", "shape"])
def test_channels_that_lie_elsewhere_are_refused_with_both_grids(tmp_path, way, fault):
    (first, _), affine, values = _images(), AFFINE.copy(), VALUES[1]
    if fault == "shifted":
        affine[:3, 3] += 10
    elif fault == "spacing":
        affine[:3, 2] *= 1.5
    else:
        values = values[:-1]
    source = _ways(tmp_path, (first, nibabel.Nifti1Image(values, affine)))[way]
    (case,) = input_cases(source, channels=TWO, num_dims=3)
    what = {"shifted": "origin .* has", "spacing": "spacing .* has", "shape": r"shape .*4, 6, 7.* has .5, 6, 7"}[fault]
    with pytest.raises(BadInputError, match=what):
        case.load(TWO, num_dims=3)


NOWHERE = {"NaN": np.full((4, 4), np.nan), "zero": np.diag([0.0, 0, 0, 1]), "flat": np.diag([1.0, 1, 0, 1])}
NOWHERE["two axes of one direction"] = np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("affine", NOWHERE.values(), ids=NOWHERE)
@pytest.mark.parametrize("kind", ["MetaTensor", "nibabel", "list"])
def test_an_image_that_lies_nowhere_is_refused_by_name(affine, kind):
    tensor = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.from_numpy(affine))
    source, channels = tensor, ONE
    if kind == "nibabel":
        source = nibabel.Nifti1Image(np.zeros((4, 4, 4)), np.eye(4))
        source.affine[:] = affine
    elif kind == "list":
        source, channels = [MetaTensor(torch.zeros(1, 4, 4, 4)), tensor], TWO
    with pytest.raises(BadInputError, match=r"image: .*affine|image.*: the affine"):
        _loaded(source, channels)


def test_a_tensor_whose_metadata_state_lps_is_at_the_place_of_the_same_one_in_ras():
    affine = torch.tensor([[2.0, 0, 0, 5], [0, 1, 0, -3], [0, 0, 1, 7], [0, 0, 0, 1]], dtype=torch.float64)
    turned = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])).double() @ affine
    values = torch.rand(1, 4, 5, 6)
    loaded = _loaded(MetaTensor(values, affine=turned, meta={"space": "LPS", "original_affine": turned.numpy()}), ONE)
    assert torch.equal(loaded.affine, affine)
    assert torch.equal(loaded.meta["original_affine"], affine)
    assert loaded.meta["space"] == "RAS"
    assert torch.equal(loaded.as_tensor(), values)


def test_a_list_of_whole_cases_in_place_of_channels_is_refused():
    with pytest.raises(BadInputError, match=r"expected one channel .*stream"):
        _loaded([torch.zeros(2, 5, 6, 7), torch.zeros(2, 5, 6, 7)], TWO)


def test_a_dataset_that_names_other_channels_is_refused(tmp_path):
    folder = write_phantom_dataset(tmp_path / "d", num_cases=2, shape=(24, 24, 16), num_channels=2)
    dataset = NNUNetDataset(folder)
    with pytest.raises(BadInputError, match=r"dataset.json: the channels are 0 phantom contrast 1.*0 ADC, 1 b1600"):
        list(input_cases(dataset, channels=TWO, num_dims=3))
    same = RunChannels(names=dataset.description.channel_names)
    assert len(list(input_cases(dataset, channels=same, num_dims=3))) == 2
    chosen = RunChannels(names=("b1600",), numbers=(1,))
    first = next(input_cases(dataset, channels=chosen, num_dims=3)).load(chosen, num_dims=3)
    assert torch.equal(first.as_tensor(), dataset.load_image(0)[1:].as_tensor())


def test_the_channels_of_a_dataset_are_brought_onto_one_grid_too(tmp_path):
    folder = write_phantom_dataset(tmp_path / "d", num_cases=2, shape=(24, 24, 16), num_channels=2)
    dataset = NNUNetDataset(folder)
    channels, second = RunChannels(names=dataset.description.channel_names), dataset.cases[0].images[1]
    expected = dataset.load_image(0).as_tensor().clone()
    image = nibabel.load(second)
    flipped = nibabel.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine @ np.diag([-1.0, 1, 1, 1]))
    flipped.affine[:3, 3] += image.affine[:3, 0] * (image.shape[0] - 1)
    nibabel.save(nibabel.Nifti1Image(np.asarray(flipped.dataobj), flipped.affine), second)
    case = next(input_cases(dataset, channels=channels, num_dims=3))
    assert torch.equal(case.load(channels, num_dims=3).as_tensor(), expected)


def test_files_that_a_dataset_lists_are_taken_in_its_order_whatever_their_names(tmp_path):
    files = [tmp_path / f"a_000{number}.nii.gz" for number in (4, 2)]
    for file, values in zip(files, VALUES, strict=True):
        nibabel.save(nibabel.Nifti1Image(values, AFFINE), file)
    assert np.array_equal(_loaded(CaseFiles(files), TWO).numpy(), VALUES)
    with pytest.raises(BadInputError, match="--channels"):
        _loaded(files, TWO)


def test_files_without_numbers_are_channels_in_the_order_given(tmp_path):
    files = [tmp_path / f"{name}.nii.gz" for name in ("adc", "b1600")]
    for file, values in zip(files, VALUES, strict=True):
        nibabel.save(nibabel.Nifti1Image(values, AFFINE), file)
    assert np.array_equal(_loaded(files[::-1], TWO).numpy(), VALUES[::-1])


def _touch(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def test_the_channels_of_a_case_belong_together_in_their_order(tmp_path):
    _touch(tmp_path, "b_0001.nii.gz", "b_0000.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz", "notes.txt", "._a_0000.nii.gz")
    cases = find_inputs(tmp_path, channels=RunChannels(names=("",) * 2))
    assert [(case.case_id, [file.name for file in case.files]) for case in cases] == [
        ("a", ["a_0000.nii.gz", "a_0001.nii.gz"]),
        ("b", ["b_0000.nii.gz", "b_0001.nii.gz"]),
    ]


def test_a_dataset_in_place_of_its_images_is_refused_with_where_they_are(tmp_path):
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(BadInputError, match=r"no image in this folder; .* for example .*imagesTr"):
        find_inputs(tmp_path, channels=RunChannels(names=("",)))


def test_only_the_last_four_digits_are_the_channel(tmp_path):
    _touch(tmp_path, "scan_0000_0000.nii.gz", "scan.v2_0000.nii.gz")
    assert [case.case_id for case in find_inputs(tmp_path, channels=RunChannels(names=("",)))] == [
        "scan.v2",
        "scan_0000",
    ]


def test_files_without_a_channel_are_cases_of_their_own(tmp_path):
    _touch(tmp_path, "x.png", "y.PNG")
    assert [case.case_id for case in find_inputs(tmp_path, channels=RunChannels(names=("",) * 3))] == ["x", "y"]


def test_a_case_that_lacks_a_channel_has_its_problem_and_the_others_have_none(tmp_path):
    _touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz", "c_0002.nii.gz", "c_0001.nii.gz")
    problems = {case.case_id: case.problem for case in find_inputs(tmp_path, channels=RunChannels(names=("",) * 2))}
    assert list(problems) == ["a", "b", "c"]
    assert problems["a"] is None
    assert problems["b"].startswith("case b: channel file _0000 is missing: found _0001, expected the run's 2 channels")
    assert "channel file _0000 is missing; channel file _0002 is unexpected: found _0001, _0002" in problems["c"]


def test_one_file_of_a_case_brings_its_other_channels(tmp_path):
    _touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz")
    (case,) = find_inputs(tmp_path / "a_0000.nii.gz", channels=RunChannels(names=("",) * 2))
    assert [file.name for file in case.files] == ["a_0000.nii.gz", "a_0001.nii.gz"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_nothing_to_predict_is_an_error_that_names_the_place(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match=name):
        find_inputs(tmp_path / name, channels=RunChannels(names=("",)))


def _ids(folder, num_channels):
    return [case.case_id for case in find_inputs(folder, channels=RunChannels(names=("",) * num_channels))]


@pytest.mark.parametrize("names", [("scan_0001", "scan_0002"), tuple(f"scan_{n:04d}" for n in range(20))])
def test_a_number_that_is_no_channel_belongs_to_the_name_of_the_case(tmp_path, names):
    _touch(tmp_path, *(f"{name}.nii.gz" for name in names))
    assert _ids(tmp_path, 1) == list(names)
    assert _ids(tmp_path / f"{names[0]}.nii.gz", 1) == [names[0]]


def test_a_case_with_a_channel_too_many_is_found_and_not_taken_for_two_cases(tmp_path):
    _touch(tmp_path, "scan_0000.nii.gz", "scan_0001.nii.gz", "other.nii.gz")
    problems = {case.case_id: case.problem for case in find_inputs(tmp_path, channels=RunChannels(names=("",)))}
    assert problems["other"] is None
    assert problems["scan"].startswith("case scan: channel file _0001 is unexpected: found _0000, _0001")


def test_without_channels_in_names_every_file_is_a_case(tmp_path):
    _touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0007.nii.gz")
    cases = find_inputs(tmp_path, channels=RunChannels(names=("CT",), numbers=()))
    assert [(case.case_id, case.problem) for case in cases] == [("a_0000", None), ("a_0001", None), ("b_0007", None)]


def test_two_cases_with_the_same_numbers_have_channels(tmp_path):
    _touch(tmp_path, *(f"{name}_000{number}.nii.gz" for name in "ab" for number in (1, 2)))
    cases = find_inputs(tmp_path, channels=RunChannels(names=("CT",)))
    assert [case.case_id for case in cases] == ["a", "b"]
    assert all("channel file _0000 is missing" in case.problem for case in cases)


def test_a_lone_zero_is_a_channel(tmp_path):
    _touch(tmp_path, "scan_0000.nii.gz")
    assert _ids(tmp_path, 1) == _ids(tmp_path / "scan_0000.nii.gz", 1) == ["scan"]


def test_a_case_without_number_and_a_channel_that_would_be_written_to_one_file_are_an_error(tmp_path):
    _touch(tmp_path, "scan.nii.gz", "scan_0000.nii.gz")
    (case,) = find_inputs(tmp_path, channels=RunChannels(names=("",)))
    with pytest.raises(BadInputError, match=r"scan_0000.nii.gz: the case scan is also in scan.nii.gz"):
        case.load(RunChannels(names=("",)))


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    _touch(tmp_path, "a_0000.nii.gz")
    (tmp_path / "b_0000.nii.gz").symlink_to(tmp_path / "gone")
    assert _ids(tmp_path, 1) == ["a", "b"]
    with pytest.raises(BadInputError, match=r"b_0000\.nii\.gz: no such file"):
        find_inputs(tmp_path, channels=RunChannels(names=("",)))[1].load(RunChannels(names=("",)))


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refused(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(type(tmp_path), "iterdir", refused)
    with pytest.raises(BadInputError, match="the folder cannot be read .Permission denied.; check its permissions"):
        find_inputs(tmp_path, channels=RunChannels(names=("",)))


@pytest.mark.parametrize("channel", ["0000", "0001"])
def test_whichever_file_of_a_case_is_named_its_channels_come_in_order(tmp_path, channel):
    _touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz")
    (case,) = find_inputs(tmp_path / f"a_{channel}.nii.gz", channels=RunChannels(names=("",) * 2))
    assert (case.case_id, [file.name for file in case.files]) == ("a", ["a_0000.nii.gz", "a_0001.nii.gz"])
