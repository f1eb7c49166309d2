"""Which channels a run takes of files, of images in memory and of a dataset."""

import json

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from candy_monai.errors import BadInputError
from candy_monai.inference.channels import RunChannels
from candy_monai.inference.inputs import find_inputs, group_files, input_case

MRI = RunChannels(names=("ADC", "b1600"))
THREE = ("some_0000.nii.gz", "some_0001.nii.gz", "some_0002.nii.gz")


def _touch(folder, *names):
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def _found(source, channels):
    """Return the names of the files of the only case, or its problem."""
    find = group_files if isinstance(source, list) else find_inputs
    (case,) = find(source, channels=channels)
    return case.problem or [file.name for file in case.files]


def _loaded(source, channels, *, num_dims=3):
    return input_case(source, channels=channels, num_dims=num_dims).load(channels, num_dims=num_dims)


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
        _loaded(source, MRI)


def test_an_image_that_lacks_channels_is_refused_without_a_choice_that_it_cannot_give():
    with pytest.raises(BadInputError, match="has 1 channel, .*give all of them in one file") as refused:
        _loaded(torch.zeros(1, 5, 6, 7), MRI)
    assert "--channels" not in str(refused.value)


def test_chosen_channels_of_an_image_are_taken_in_their_order():
    image = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, 2, 2)
    assert _loaded(image, RunChannels(names=("ADC", "b1600"), numbers=(2, 0)))[:, 0, 0, 0].tolist() == [2, 0]
    assert _loaded(image, RunChannels(names=("ADC",), numbers=(1,)))[:, 0, 0, 0].tolist() == [1]
    with pytest.raises(BadInputError, match=r"has channels 0 to 2, but \(3, 4\) were chosen"):
        _loaded(image, RunChannels(names=("ADC", "b1600"), numbers=(3, 4)))


@pytest.mark.parametrize("channels", [MRI, RunChannels(names=MRI.names, numbers=(1, 0))])
def test_channels_in_the_last_axis_are_recognised(channels):
    for source in (torch.zeros(40, 30, 20, 2), (np.zeros((40, 30, 20, 2)), (1, 1, 1))):
        with pytest.raises(BadInputError, match=r"last axis looks like the channel axis.*moveaxis"):
            _loaded(source, channels)


@pytest.mark.parametrize("names", [THREE, THREE[1:], THREE[:1] + THREE[2:]])
@pytest.mark.parametrize("way", ["folder", "file", "list"])
def test_files_that_are_not_the_run_s_channels_are_a_problem_however_they_are_given(tmp_path, names, way):
    _touch(tmp_path, *names)
    given = {"folder": tmp_path, "file": tmp_path / names[0], "list": [tmp_path / name for name in names[:2]]}[way]
    problem = _found(given, MRI)
    assert "expected the run's 2 channels (0 ADC, 1 b1600)" in problem
    assert "--channels" in problem


@pytest.mark.parametrize("names", [THREE[1:2], THREE[:2], THREE])
@pytest.mark.parametrize("way", ["folder", "file", "list"])
def test_a_run_of_one_channel_refuses_files_of_other_channels(tmp_path, names, way):
    _touch(tmp_path, *names)
    file = tmp_path / names[0]
    given = {"folder": tmp_path, "file": file, "list": [file]}[way]
    assert "expected the run's 1 channel (0 T2W)" in _found(given, RunChannels(names=("T2W",)))


@pytest.mark.parametrize("way", ["folder", "file", "list"])
def test_the_channels_that_were_chosen_are_taken_in_their_order(tmp_path, way):
    _touch(tmp_path, *THREE)
    file = tmp_path / THREE[0]
    given = {"folder": tmp_path, "file": file, "list": [file]}[way]
    assert _found(given, RunChannels(names=("ADC", "b1600"), numbers=(2, 1))) == [THREE[2], THREE[1]]
    assert _found(given, RunChannels(names=("ADC",), numbers=(1,))) == [THREE[1]]


def _described(folder, names):
    content = {"channel_names": {str(number): name for number, name in enumerate(names)}}
    (folder / "dataset.json").write_text(json.dumps(content))
    images = folder / "imagesTs"
    images.mkdir()
    return _touch(images, *(f"a_{number:04d}.nii.gz" for number in range(len(names))))


@pytest.mark.parametrize(
    ("names", "fitting"), [(("b1600", "ADC"), "1,0"), (("T2W", "adc", "B-1600"), "1,2"), (("T1", "T2"), "0,1")]
)
def test_a_dataset_of_other_channels_is_refused_with_those_that_would_fit(tmp_path, names, fitting):
    images = _described(tmp_path, names)
    for source in (images, images / "a_0000.nii.gz"):
        with pytest.raises(
            BadInputError, match=rf"the channels are 0 {names[0]}.*0 ADC, 1 b1600.*--channels {fitting} "
        ):
            find_inputs(source, channels=MRI)
    chosen = RunChannels(names=MRI.names, numbers=tuple(map(int, fitting.split(","))))
    assert _found(images, chosen) == [f"a_000{number}.nii.gz" for number in fitting.split(",")]


@pytest.mark.parametrize("names", [("ADC", "b1600"), ("adc", "B 1600"), ("0", "1"), ("zscore", "noNorm")])
def test_a_dataset_of_the_run_s_channels_or_of_unnamed_ones_is_taken(tmp_path, names):
    assert _found(_described(tmp_path, names), MRI) == ["a_0000.nii.gz", "a_0001.nii.gz"]
