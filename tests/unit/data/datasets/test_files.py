from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from candy_monai.data.datasets.files import (
    BinarizedDataset,
    ComposeDataset,
    DatasetFromMemory,
    MergedDataset,
    SimpleDataset,
    SupervisedDataset,
    UnsupervisedDataset,
)
from candy_monai.data.images.reading import load_image
from candy_monai.errors import BadInputError, DatasetError, SettingsError


def tensors(count: int, first: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return images full of their number and labels full of their number modulo 4."""
    numbers = range(first, first + count)
    return [torch.full((1, 3, 4), float(n)) for n in numbers], [torch.full((1, 3, 4), n % 4) for n in numbers]


def pairs(count: int = 6, first: int = 0, **options) -> SupervisedDataset:
    return DatasetFromMemory(*tensors(count, first), **options)


def numbers(dataset) -> list[int]:
    return [int(image.flatten()[0]) for image, _ in dataset]


def plus_ten(image, label):
    return image + 10, label


def write_pictures(folder, names, value=0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        Image.fromarray(np.full((3, 4), value + index, np.uint8)).save(folder / name)


def every_kind(tmp_path):
    write_pictures(tmp_path / "images", [f"{i}.png" for i in range(6)])
    write_pictures(tmp_path / "labels", [f"{i}.png" for i in range(6)])
    images, labels = tensors(6)
    return {
        "files": SimpleDataset(tmp_path / "images", tmp_path / "labels"),
        "memory": pairs(),
        "merged": MergedDataset(DatasetFromMemory(images), DatasetFromMemory(labels)),
        "composed": ComposeDataset([pairs(4), pairs(2, 4)]),
        "binarized": BinarizedDataset(pairs(), [1]),
        "nested": BinarizedDataset(ComposeDataset([pairs(3), pairs(3, 3)]), [1]),
    }


KINDS = ["files", "memory", "merged", "composed", "binarized", "nested"]


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_a_float_image_and_an_integer_label_with_their_id(tmp_path, kind):
    dataset = every_kind(tmp_path)[kind]
    for index, case_id in enumerate(dataset.case_ids):
        image, label = dataset[index]
        assert isinstance(image, MetaTensor)
        assert isinstance(label, MetaTensor)
        assert (image.dtype, label.dtype) == (torch.float32, torch.int64)
        assert image.shape == label.shape == (1, 3, 4)
        assert image.meta["case_id"] == label.meta["case_id"] == case_id
        assert torch.equal(dataset.load_image(index).as_tensor(), image.as_tensor())
        assert torch.equal(dataset.load_label(index).as_tensor(), label.as_tensor())


@pytest.mark.parametrize("kind", KINDS)
def test_the_folds_of_every_kind_partition_its_cases_and_keep_pairs_together(tmp_path, kind):
    dataset = every_kind(tmp_path)[kind]
    whole = dict(zip(dataset.case_ids, numbers(dataset), strict=True))
    seen = []
    for fold in range(3):
        train, validation = dataset.fold(fold=fold, k=3)
        assert type(train) is type(dataset)
        assert sorted(train.case_ids + validation.case_ids) == sorted(whole)
        for part in (train, validation):
            assert dict(zip(part.case_ids, numbers(part), strict=True)) == {i: whole[i] for i in part.case_ids}
        seen += validation.case_ids
    assert sorted(seen) == sorted(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_of_a_fold_still_knows_its_cases(tmp_path, kind):
    dataset = every_kind(tmp_path)[kind]
    train, _ = dataset.fold(k=3)
    last = train.case_ids[-1]
    chosen = train.subset([last])
    assert chosen.case_ids == (last,)
    assert numbers(chosen) == [dataset.case_ids.index(last)]
    assert len(train.subset([])) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_sent_to_a_loading_process(tmp_path, kind):
    dataset = every_kind(tmp_path)[kind]
    again = pickle.loads(pickle.dumps(dataset))
    assert numbers(again) == numbers(dataset)


def test_images_alone_are_pickled_and_folded_too(tmp_path):
    write_pictures(tmp_path, ["a.png", "b.png"])
    for dataset in (SimpleDataset(tmp_path), DatasetFromMemory(tensors(2)[0])):
        assert isinstance(dataset, UnsupervisedDataset)
        train, validation = pickle.loads(pickle.dumps(dataset)).fold()
        assert (len(train), len(validation)) == (1, 1)


def test_the_transform_sees_image_and_label_of_one_case_together():
    dataset = pairs(transform=lambda image, label: (image * 0 + label, label))
    for image, label in dataset:
        assert torch.equal(image.as_tensor(), label.as_tensor().float())
    assert dataset.load(3)[0].max() == 3


def test_folds_keep_the_transform():
    train, validation = pairs(transform=plus_ten).fold()
    assert min(numbers(train) + numbers(validation)) == 10


def test_wrappers_apply_the_transforms_of_what_they_wrap():
    base = pairs(transform=plus_ten)
    assert numbers(ComposeDataset([base, pairs(1, 50)])) == [10, 11, 12, 13, 14, 15, 50]
    assert numbers(BinarizedDataset(base, [1])) == [10, 11, 12, 13, 14, 15]
    merged = MergedDataset(
        DatasetFromMemory(tensors(2)[0], transform=lambda x: x + 7), DatasetFromMemory(tensors(2)[1])
    )
    assert numbers(merged) == [7, 8]


def test_a_random_transform_below_a_wrapper_is_drawn_once_for_both():
    def shift(image, label):
        offset = int(torch.randint(0, 1000, ()))
        return torch.full_like(image, offset), torch.full_like(label, offset)

    base = pairs(transform=shift)
    for image, label in ComposeDataset([base]):
        assert image.max() == label.max()


def test_wrapping_changes_no_tensor_of_the_wrapped():
    images, labels = tensors(6)
    before = [label.clone() for label in labels]
    base = DatasetFromMemory(images, labels)
    for _, label in BinarizedDataset(ComposeDataset([base]), [2, 3]):
        label += 5  # not even by what is done to an item
    for image, _ in base:
        image += 5
    assert all(torch.equal(label, old) for label, old in zip(labels, before, strict=True))
    assert numbers(base) == list(range(6))


def test_binarized_labels_say_whether_the_class_is_one_of_those_asked_for():
    dataset = BinarizedDataset(pairs(), (1, 3))
    assert [int(label.max()) for _, label in dataset] == [0, 1, 0, 1, 0, 1]
    with pytest.raises(BadInputError, match="no positive ids"):
        BinarizedDataset(pairs(), ())


def test_composed_datasets_with_common_ids_are_told_apart_by_number():
    assert ComposeDataset([pairs(1), pairs(1)]).case_ids == ("0:case_0000", "1:case_0000")
    unique = [pairs(1, case_ids=["a"]), pairs(1, case_ids=["b"])]
    assert ComposeDataset(unique).case_ids == ("a", "b")
    with pytest.raises(BadInputError, match="no dataset"):
        ComposeDataset([])


def test_merged_datasets_pair_by_id_and_not_by_position():
    images, labels = tensors(3)
    merged = MergedDataset(
        DatasetFromMemory(images, case_ids=["a", "b", "c"]), DatasetFromMemory(labels[::-1], case_ids=["c", "b", "a"])
    )
    assert [int(label.max()) for _, label in merged] == [0, 1, 2]
    with pytest.raises(DatasetError, match="b: image without label"):
        MergedDataset(DatasetFromMemory(images[:2], case_ids=["a", "b"]), DatasetFromMemory(labels[:1], case_ids=["a"]))


def test_folders_pair_by_name_whatever_the_suffix_and_skip_other_files(tmp_path):
    write_pictures(tmp_path / "i", ["b.png", "a.1.png", "c.BMP"])
    write_pictures(tmp_path / "l", ["c.png", "b.bmp", "a.1.png"])
    for name in ("notes.txt", "._a.1.png"):
        (tmp_path / "i" / name).write_text("")
    dataset = SimpleDataset(str(tmp_path / "i"), tmp_path / "l")
    assert dataset.case_ids == ("a.1", "b", "c")
    assert [(int(image.max()), int(label.max())) for image, label in dataset] == [(1, 2), (0, 1), (2, 0)]


def test_folders_that_do_not_match_are_an_error_that_lists_every_name(tmp_path):
    write_pictures(tmp_path / "i", ["a.png", "b.png", "b.bmp"])
    write_pictures(tmp_path / "l", ["b.png", "c.png"])
    with pytest.raises(DatasetError) as error:
        SimpleDataset(tmp_path / "i", tmp_path / "l")
    assert error.value.problems == ("a: image without label", "c: label without image", "b: 2 images of this name")


def test_explicit_files_pair_in_the_order_given(tmp_path):
    write_pictures(tmp_path, ["x.png", "y.png", "p.png", "q.png"])
    dataset = SimpleDataset([tmp_path / "x.png", tmp_path / "y.png"], [tmp_path / "q.png", tmp_path / "p.png"])
    assert [int(label.max()) for _, label in dataset] == [3, 2]
    with pytest.raises(BadInputError, match="2 images and 1 labels"):
        SimpleDataset([tmp_path / "x.png", tmp_path / "y.png"], [tmp_path / "q.png"])


def test_a_folder_without_images_is_an_error(tmp_path):
    with pytest.raises(BadInputError, match="no images found"):
        SimpleDataset(tmp_path)
    with pytest.raises(BadInputError, match="expected a folder"):
        SimpleDataset(tmp_path / "none")


def test_labels_in_memory_may_lack_the_channel_axis_and_must_be_whole():
    images, labels = tensors(1)
    assert DatasetFromMemory(images, [labels[0][0]])[0][1].shape == (1, 3, 4)
    assert DatasetFromMemory(images, [labels[0].float()])[0][1].dtype == torch.int64
    with pytest.raises(BadInputError, match="whole numbers"):
        DatasetFromMemory(images, [labels[0] + 0.5])[0]


def test_geometry_of_tensors_in_memory_is_kept():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    image, _ = DatasetFromMemory([MetaTensor(torch.zeros(1, 2, 2, 2), affine=affine)], [torch.zeros(1, 2, 2, 2)])[0]
    assert torch.equal(image.affine.float(), affine)


def test_an_unknown_case_gets_a_suggestion_and_repeated_ids_are_refused():
    with pytest.raises(BadInputError, match=r"no case 'case_002' .*Did you mean 'case_0002'"):
        pairs().subset(["case_002"])
    with pytest.raises(BadInputError, match="occur more than once"):
        pairs(2, case_ids=["a", "a"])
    with pytest.raises(BadInputError, match="2 images and 1 case ids"):
        pairs(2, case_ids=["a"])


def test_fold_all_is_everything_twice_and_other_words_are_refused():
    train, validation = pairs().fold(fold="all")
    assert numbers(train) == numbers(validation) == list(range(6))
    with pytest.raises(SettingsError, match="number or 'all'"):
        pairs().fold(fold="every")


def test_a_subclass_needs_two_methods_and_folds_with_its_own_attributes(tmp_path):
    write_pictures(tmp_path, ["a.png", "b.png"])

    class Halved(SupervisedDataset):
        def __init__(self, images, labels, factor):
            super().__init__(images, labels)
            self.factor = factor

        def load_image(self, idx):
            return load_image(self._images[idx]) * self.factor

        def load_label(self, idx):
            return load_image(self._labels[idx], is_label=True)

    files = [tmp_path / "a.png", tmp_path / "b.png"]
    _, validation = Halved(files, files, 0.5).fold()
    assert validation.factor == 0.5
    assert validation[0][0].shape == (1, 3, 4)


def test_items_live_on_the_device_asked_for():
    assert pairs(1, device="meta").load_image(0).device.type == "meta"
