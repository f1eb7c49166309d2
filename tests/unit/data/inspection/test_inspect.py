from __future__ import annotations

import numpy as np
import pytest
import torch

from candy_monai.data.datasets.bases import SupervisedDataset
from candy_monai.data.datasets.files import DatasetFromMemory
from candy_monai.data.inspection.digest import dataset_digest
from candy_monai.data.inspection.fingerprint import Fingerprint
from candy_monai.data.inspection.inspect import inspect
from candy_monai.errors import BadInputError, DatasetError
from tests.memory import MemoryDataset, case, ramp_case


def test_shapes_spacings_orientations_and_class_sizes_are_read_off_each_case():
    image, label = torch.zeros(1, 4, 5, 6), torch.zeros(1, 4, 5, 6)
    image[0, 1:3, 1:5, 2] = 7.0
    label[0, 1, 1:3, 2] = 1
    affine = np.diag([-0.5, 2.0, 3.0, 1.0])
    found = inspect(MemoryDataset({"a": case(image, label, affine)})).cases[0]
    assert found.shape == (4, 5, 6)
    assert found.spacing_mm == (0.5, 2.0, 3.0)
    assert found.orientation == ("L", "A", "S")
    assert found.nonzero_shape == (2, 4, 1)
    assert found.foreground_shape == (1, 2, 1)
    assert found.class_voxels == {0: 118, 1: 2}


def test_intensity_statistics_cover_labelled_voxels_and_all_voxels_apart():
    channel = inspect(MemoryDataset({"a": ramp_case()}, labels={"background": 0, "x": 1, "y": 2})).channels[0]
    assert (channel.foreground.mean, channel.foreground.median) == (2.0, 2.0)
    assert (channel.foreground.min, channel.foreground.max) == (1.0, 3.0)
    assert channel.foreground.std == pytest.approx(np.sqrt(2 / 3))
    assert channel.whole.mean == 12.5  # of 1 .. 24


def test_statistics_are_kept_per_channel():
    image, label = torch.stack([torch.full((3, 3, 3), 5.0), torch.full((3, 3, 3), 9.0)]), torch.ones(1, 3, 3, 3)
    found = inspect(MemoryDataset({"a": case(image, label)}, channel_names=("ADC", "b1600")))
    assert [channel.foreground.mean for channel in found.channels] == [5.0, 9.0]
    assert found.channel_names == ("ADC", "b1600")


def test_a_case_without_foreground_does_not_distort_the_statistics():
    empty = case(torch.full((1, 2, 3, 4), 1e6), torch.zeros(1, 2, 3, 4))
    labels = {"background": 0, "x": 1, "y": 2}
    both = inspect(MemoryDataset({"a": ramp_case(), "empty": empty}, labels=labels))
    alone = inspect(MemoryDataset({"a": ramp_case()}, labels=labels))
    assert both.channels[0].foreground == alone.channels[0].foreground
    assert both.cases[1].foreground_shape is None


def test_ignored_voxels_are_no_foreground():
    found = inspect(MemoryDataset({"a": ramp_case()}, ignore_label=2))
    assert found.channels[0].foreground.mean == 1.5
    assert found.cases[0].foreground_shape == (1, 1, 2)


def test_a_dataset_without_any_foreground_has_no_foreground_statistics():
    found = inspect(MemoryDataset({"a": case(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2))}))
    assert found.channels[0].foreground is None


def test_neither_the_order_of_cases_nor_the_number_of_workers_changes_the_fingerprint():
    rng = np.random.default_rng(0)
    cases = {f"c{i}": case(rng.normal(size=(1, 30, 30, 30)), rng.integers(0, 2, (1, 30, 30, 30))) for i in range(4)}
    one = inspect(MemoryDataset(cases), num_workers=1)
    other = inspect(MemoryDataset(dict(reversed(cases.items()))), num_workers=3)
    assert [entry.case_id for entry in other.cases] == ["c0", "c1", "c2", "c3"]
    assert one.cases == other.cases
    assert one.channels[0].foreground.median == pytest.approx(other.channels[0].foreground.median)


def test_every_unusable_case_is_named_in_one_error():
    nan = torch.ones(1, 2, 2, 2)
    nan[0, 0, 0, 0] = float("nan")
    cases = {
        "nan": case(nan, torch.zeros(1, 2, 2, 2)),
        "good": ramp_case(),
        "shape": case(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 3)),
        "negative": case(torch.ones(1, 2, 2, 2), -torch.ones(1, 2, 2, 2)),
    }
    with pytest.raises(DatasetError) as caught:
        inspect(MemoryDataset(cases))
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["nan", "shape", "negative"]


def test_mixed_numbers_of_axes_are_a_problem_of_the_dataset():
    cases = {"a": ramp_case(), "b": case(torch.ones(1, 4, 4), torch.zeros(1, 4, 4))}
    with pytest.raises(DatasetError, match=r"\[2, 3\] spatial axes"):
        inspect(MemoryDataset(cases))


@pytest.mark.realdata
def test_the_hippocampus_is_described_as_it_is(real_dataset):
    found = inspect(real_dataset("Dataset004_Hippocampus"))
    assert len(found.cases) == 200
    assert tuple(np.median([entry.shape for entry in found.cases], axis=0)) == (35, 50, 36)
    assert {entry.spacing_mm for entry in found.cases} == {(1.0, 1.0, 1.0)}
    assert Fingerprint.from_json(found.to_json()) == found


def test_the_box_of_the_foreground_is_its_first_voxels_and_ends():
    label = torch.zeros(1, 4, 5, 6)
    label[0, 1, 1:3, 2] = 1
    cases = {"a": case(torch.ones(1, 4, 5, 6), label), "b": case(torch.ones(1, 4, 5, 6), torch.zeros(1, 4, 5, 6))}
    found = inspect(MemoryDataset(cases)).cases
    assert found[0].foreground_bbox == (1, 2, 1, 3, 2, 3)
    assert found[1].foreground_bbox is None


def test_as_many_places_of_each_class_as_asked_are_kept_and_restored(tmp_path):
    found = inspect(MemoryDataset({"a": ramp_case()}), places_per_class=1)
    assert found.cases[0].class_places[1] in (((0, 0, 0),), ((0, 0, 1),))
    assert found.cases[0].class_places[2] == ((0, 0, 2),)
    found.save(tmp_path / "inspection.json")
    assert Fingerprint.load(tmp_path / "inspection.json") == found


def test_a_file_that_is_no_fingerprint_is_named(tmp_path):
    with pytest.raises(BadInputError, match=r"nothing\.json: cannot be read"):
        Fingerprint.load(tmp_path / "nothing.json")


def test_any_labelled_dataset_can_be_inspected_and_its_labels_are_those_that_occur():
    image, label = ramp_case()
    described = inspect(MemoryDataset({"case_0000": (image, label)}, labels={"background": 0, "a": 1, "b": 2}))
    found = inspect(DatasetFromMemory([image], [label]))
    assert found.cases == described.cases
    assert found.labels == {"background": 0, "class_1": 1, "class_2": 2}
    assert found.channel_names == ("0",)


def test_the_digest_of_a_dataset_without_files_follows_its_voxels():
    image, label = ramp_case()
    digest = dataset_digest(DatasetFromMemory([image], [label]))
    assert inspect(DatasetFromMemory([image], [label])).digest == digest
    other = image.clone()
    other[0, 0, 0, 0] = 7
    assert dataset_digest(DatasetFromMemory([other], [label])) != digest


def test_a_dataset_of_the_user_s_own_may_yield_plain_tensors_and_is_told_of_labels_that_are_no_ids():
    class Own(SupervisedDataset):
        def load_image(self, idx):
            return torch.ones(1, 4, 4)

        def load_label(self, idx):
            return torch.full((1, 4, 4), self._labels[idx])

    assert inspect(Own([0, 1], [1.0, 0.0])).cases[0].class_voxels == {1: 16}
    with pytest.raises(DatasetError, match=r"case_0001: the label holds values that are not whole numbers"):
        inspect(Own([0, 1], [1.0, 0.5]))
