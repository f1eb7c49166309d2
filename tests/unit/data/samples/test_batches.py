from __future__ import annotations

import monai.data
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Flipd, Identityd, Spacingd, ToTensord
from torch.utils.data import DataLoader

from candy_monai.data.datasets.files import DatasetFromMemory
from candy_monai.data.samples.batches import Batch, collate_cases, different_grids, unpack
from candy_monai.errors import BadInputError

IMAGES, LABELS = torch.rand(2, 1, 4, 5), torch.ones(2, 1, 4, 5, dtype=torch.int64)


@pytest.mark.parametrize(
    ("batch", "case_ids"),
    [
        ((IMAGES, LABELS), ()),
        ([IMAGES, LABELS], ()),
        ((IMAGES, LABELS, ["a", "b"]), ("a", "b")),
        ({"image": IMAGES, "label": LABELS, "other": 3}, ()),
        ({"image": IMAGES, "label": LABELS, "case_id": ["a", "b"]}, ("a", "b")),
        ({"image": IMAGES, "label": LABELS, "case_id": "a"}, ("a",)),
        (Batch(IMAGES, LABELS, ("a", "b")), ("a", "b")),
        ((IMAGES, LABELS, torch.ones(2)), ()),
        ((IMAGES, LABELS, [1, 2]), ()),
        ((IMAGES, LABELS, {"weight": 1.0}), ()),
        ((IMAGES, LABELS, None), ()),
        ({"image": IMAGES, "label": LABELS, "case_id": torch.arange(2)}, ()),
    ],
)
def test_every_usual_form_of_a_batch_is_understood(batch, case_ids):
    images, labels, found = unpack(batch)
    assert images is IMAGES
    assert labels is LABELS
    assert found == case_ids


def _samples(*case_ids):
    ids = zip(IMAGES, LABELS, case_ids, strict=True)
    return [(MetaTensor(image, meta={"case_id": case_id}), label) for image, label, case_id in ids]


@pytest.mark.parametrize(
    ("loader", "size", "case_ids"), [(monai.data.DataLoader, 2, ("x", "y")), (DataLoader, 1, ("x",))]
)
def test_the_ids_of_our_datasets_are_read_from_the_metadata_that_a_collate_leaves(loader, size, case_ids):
    samples = _samples("x", "y")
    assert unpack(next(iter(loader(samples, batch_size=size)))).case_ids == case_ids


def test_of_a_batch_that_tells_its_first_id_only_none_is_known():
    assert unpack((MetaTensor(IMAGES, meta={"case_id": "x"}), LABELS)).case_ids == ()


def test_metadata_are_left_behind():
    images, labels, _ = unpack((MetaTensor(IMAGES), MetaTensor(LABELS)))
    assert type(images) is torch.Tensor
    assert type(labels) is torch.Tensor


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"image": IMAGES}, r"keys \['image'\], expected 'image' and 'label'"),
        ({"image": IMAGES, "labels": LABELS}, r"keys \['image', 'labels'\].*CopyItemsd"),
        (IMAGES, "yields a Tensor, expected"),
        ((IMAGES,), "yields a tuple of 1"),
        ("ab", "yields a str"),
        ((IMAGES, "x"), "labels are a str, expected a tensor"),
    ],
)
def test_anything_else_is_an_error_that_says_what_was_found(batch, message):
    with pytest.raises(BadInputError, match=message):
        unpack(batch)


def test_collating_keeps_the_id_of_every_case():
    pairs = DatasetFromMemory(IMAGES, LABELS, case_ids=["x", "y"])
    batch = collate_cases([pairs[1], pairs[0]])
    assert batch["case_id"] == ["y", "x"]
    assert type(batch["image"]) is torch.Tensor
    assert torch.equal(batch["image"], IMAGES.flip(0))
    assert batch["label"].dtype == torch.int64


def test_collating_mappings_keeps_their_ids():
    samples = [{"image": IMAGES[i], "label": LABELS[i], "case_id": name} for i, name in enumerate("ab")]
    assert collate_cases(samples)["case_id"] == ["a", "b"]


def test_collating_plain_tensors_yields_no_ids():
    assert "case_id" not in collate_cases([(IMAGES[0], LABELS[0])])


def test_cases_of_different_shapes_are_an_error_that_names_them():
    pairs = [(MetaTensor(torch.zeros(1, 4, n), meta={"case_id": f"c{n}"}), torch.zeros(1, 4, n)) for n in (5, 6)]
    with pytest.raises(BadInputError, match=r"c5 \(1, 4, 5\), c6 \(1, 4, 6\)"):
        collate_cases(pairs)


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("collate", [None, collate_cases])
def test_a_plain_loader_yields_what_can_be_unpacked(num_workers, collate):
    loader = DataLoader(DatasetFromMemory(IMAGES, LABELS), batch_size=2, num_workers=num_workers, collate_fn=collate)
    images, labels, case_ids = unpack(next(iter(loader)))
    assert torch.equal(images, IMAGES)
    assert torch.equal(labels, LABELS)
    if collate:  # else it depends on whether MONAI has taught PyTorch how to collate its tensors
        assert case_ids == ("case_0000", "case_0001")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        *((dtype, torch.float32) for dtype in (torch.uint8, torch.int16, torch.uint16, torch.uint32, torch.int64)),
        *((dtype, torch.float32) for dtype in (torch.bool, torch.float16, torch.bfloat16, torch.float32)),
        (torch.float64, torch.float64),
        (torch.complex64, torch.complex64),
    ],
)
def test_images_come_as_float32_or_as_float64_where_they_are(dtype, expected):
    images = torch.ones(1, 1, 2, 2).to(dtype)
    found = unpack((images, LABELS)).images
    assert found.dtype == expected
    assert bool((found == 1).all())


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        *((dtype, torch.int64) for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)),
        *((dtype, torch.int64) for dtype in (torch.uint16, torch.uint32, torch.uint64)),
        *((dtype, torch.float32) for dtype in (torch.float16, torch.bfloat16, torch.float32)),
        (torch.bool, torch.bool),
        (torch.float64, torch.float64),
    ],
)
def test_integer_labels_come_as_int64_while_masks_and_what_may_be_a_regression_s_target_keep_their_kind(
    dtype, expected
):
    found = unpack({"image": IMAGES, "label": LABELS.to(dtype)}).labels
    assert found.dtype == expected
    assert bool((found == 1).all())
    assert (
        collate_cases([(image, label.to(dtype)) for image, label in zip(IMAGES, LABELS, strict=True)])["label"].dtype
        == expected
    )


@pytest.mark.parametrize("loader", [DataLoader, monai.data.DataLoader])
@pytest.mark.parametrize(
    ("transform", "difference"),
    [
        (Identityd("image"), None),
        (Spacingd(["image", "label"], (2, 1, 1), mode=("bilinear", "nearest")), None),
        (Flipd("image", 1), "directions"),
        (ToTensord("label", track_meta=False), None),
    ],
)
def test_an_image_and_a_label_that_a_transform_moved_apart_are_told_by_their_metadata(loader, transform, difference):
    affine = torch.diag(torch.tensor([-1.0, 1.0, 3.0, 1.0]))
    sample = {key: MetaTensor(torch.rand(1, 6, 6, 6), affine=affine) for key in ("image", "label")}
    (batch,) = loader(monai.data.Dataset([sample, sample], transform), batch_size=2)
    found = different_grids(batch)
    assert (found is None) if difference is None else (found is not None and found.startswith(difference))
    assert different_grids((batch["image"], batch["label"])) == found


def test_metadata_of_different_sizes_or_of_none_are_no_grids_that_differ():
    moved = MetaTensor(IMAGES, affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])))
    for label in (LABELS, MetaTensor(LABELS), moved[..., :3]):
        assert different_grids((moved, label)) is None


@pytest.mark.parametrize("loader", [DataLoader, monai.data.DataLoader])
def test_one_grid_that_is_stated_once_to_ras_and_once_to_lps_is_no_difference(loader):
    ras, lps = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])), torch.diag(torch.tensor([-2.0, -2.0, 2.0, 1.0]))
    volume = torch.zeros(1, 4, 4, 4)
    image = MetaTensor(volume, meta={"affine": lps, "space": "LPS"})
    label = MetaTensor(volume, meta={"affine": ras, "space": "RAS"})
    (batch,) = loader([{"image": image, "label": label}] * 2, batch_size=2)
    assert different_grids(batch) is None
