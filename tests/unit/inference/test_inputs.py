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
from candy_monai.inference.found import CaseFiles
from candy_monai.inference.inputs import input_case, input_cases

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


@pytest.mark.parametrize(
    "source",
    [
        torch.zeros(3, 5, 6, 7),
        MetaTensor(torch.zeros(3, 5, 6, 7)),
        (np.zeros((3, 5, 6, 7)), (1, 1, 1)),
        nibabel.Nifti1Image(np.zeros((5, 6, 7, 3)), np.eye(4)),
        [torch.zeros(1, 5, 6, 7)] * 3,
    ],
    ids=["tensor", "MetaTensor", "array", "nibabel", "list"],
)
def test_an_image_of_other_channels_is_refused_with_the_names_of_the_run_s(source):
    with pytest.raises(BadInputError, match=r"has 3 channels, the network expects 2 .*0 ADC, 1 b1600.*--channels"):
        _loaded(source, TWO)


def test_an_image_that_lacks_channels_is_refused_without_a_choice_that_it_cannot_give():
    with pytest.raises(BadInputError, match="has 1 channel, .*give all of them in one file") as refused:
        _loaded(torch.zeros(1, 5, 6, 7), TWO)
    assert "--channels" not in str(refused.value)


def test_chosen_channels_of_an_image_are_taken_in_their_order():
    image = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 2, 2)
    assert _loaded(image, RunChannels(names=("ADC", "b1600"), numbers=(2, 0)))[:, 0, 0, 0].tolist() == [2, 0]
    assert _loaded(image, RunChannels(names=("ADC",), numbers=(1,)))[:, 0, 0, 0].tolist() == [1]
    with pytest.raises(BadInputError, match=r"has channels 0 to 2, and \(3, 4\) were chosen"):
        _loaded(image, RunChannels(names=("ADC", "b1600"), numbers=(3, 4)))


@pytest.mark.parametrize("channels", [TWO, RunChannels(names=TWO.names, numbers=(1, 0))])
def test_channels_in_the_last_axis_are_recognised(channels):
    for source in (torch.zeros(40, 30, 20, 2), (np.zeros((40, 30, 20, 2)), (1, 1, 1))):
        with pytest.raises(BadInputError, match=r"last axis looks like that of the channels.*moveaxis"):
            _loaded(source, channels)


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
