from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Spacingd
from nibabel import aff2axcodes
from torch.nn import functional as F

from candy_monai.data.images.reading import geometry_of, load_image
from candy_monai.data.images.writing import save_image
from candy_monai.data.pipelines.description import OwnTransforms, describe_pipelines
from candy_monai.data.pipelines.preprocessing import Preprocessor
from candy_monai.data.planning.normalization import ChannelNormalization
from candy_monai.data.planning.plan import Region
from candy_monai.errors import BadInputError
from tests.plans import PLAN

PICTURES = replace(
    PLAN,
    num_dims=2,
    orientation=None,
    spacing_mm=None,
    patch_shape=(8, 8),
    kernel_sizes=((3, 3), (3, 3)),
    strides=((1, 1), (2, 2)),
    mirror_axes=(0, 1),
)
ORIENTATIONS = ["RAS", "LPS", "PSR", "SAL", "IRP"]


def case(shape=(5, 6, 7), affine=None, seed=0):
    """Return an image without zeros and a label with ids 0, 1 and 2."""
    generator = torch.Generator().manual_seed(seed)
    affine = torch.eye(4, dtype=torch.float64) if affine is None else torch.as_tensor(affine)
    image = MetaTensor(torch.rand(1, *shape, generator=generator) + 1.0, affine=affine)
    return image, MetaTensor(torch.randint(0, 3, (1, *shape), generator=generator), affine=affine)


def stored_as(image, orientation):
    """Return the same anatomy as another scanner would store it, by nibabel's own reorientation."""
    import nibabel

    nifti = nibabel.Nifti1Image(image[0].numpy(), image.affine.numpy(), dtype=image[0].numpy().dtype)
    change = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(nifti.affine), nibabel.orientations.axcodes2ornt(tuple(orientation))
    )
    turned = nifti.as_reoriented(change)
    return MetaTensor(
        torch.from_numpy(np.asarray(turned.dataobj).copy())[None], affine=torch.from_numpy(turned.affine.copy())
    )


def one_hot(label, num_classes=3):
    return F.one_hot(label[0].long(), num_classes).movedim(-1, 0).float()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_same_anatomy_gives_the_same_tensors_however_it_is_stored(orientation):
    image, label = case(affine=np.diag([1.0, 2.0, 3.0, 1.0]))
    plan = replace(PLAN, spacing_mm=(1.0, 1.5, 2.0))
    expected = Preprocessor(plan).apply(image, label)
    found = Preprocessor(plan).apply(stored_as(image, orientation), stored_as(label, orientation))
    assert torch.allclose(found.image, expected.image, atol=1e-6)
    assert torch.equal(found.label, expected.label)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_labels_come_back_to_the_voxel_where_nothing_was_resampled(orientation):
    image, label = (stored_as(tensor, orientation) for tensor in case())
    preprocessor = Preprocessor(PLAN)
    prepared = preprocessor.apply(image, label)
    restored = preprocessor.restore_labels(one_hot(prepared.label), prepared, probabilities=True)
    assert torch.equal(restored.long(), label.as_tensor())


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    spacing=st.tuples(*[st.floats(0.4, 4.0)] * 3),
    orientation=st.sampled_from(ORIENTATIONS),
)
@settings(max_examples=40)
def test_the_way_back_is_exact_in_shape(shape, spacing, orientation):
    image, label = case(shape, affine=np.diag([*spacing, 1.0]))
    image, label = stored_as(image, orientation), stored_as(label, orientation)
    preprocessor = Preprocessor(PLAN)
    prepared = preprocessor.apply(image, label)
    scores = one_hot(prepared.label)
    assert preprocessor.restore_whole(scores, prepared)[1].shape == (3, *image.shape[1:])
    assert preprocessor.restore_labels(scores, prepared).shape == label.shape


def test_restored_scores_and_restored_labels_agree():
    image, label = case(affine=np.diag([1.0, 1.3, 2.2, 1.0]))
    preprocessor = Preprocessor(PLAN)
    prepared = preprocessor.apply(image, label)
    logits = torch.randn(3, *prepared.image.shape[1:])
    labels, probabilities = preprocessor.restore_whole(logits, prepared)
    assert torch.equal(probabilities.argmax(0), labels[0].long())
    painter = preprocessor.label_painter(prepared, with_probabilities=True)
    painter.add(tuple(slice(0, size) for size in logits.shape[1:]), logits)
    by_parts = preprocessor.painted_labels(painter, prepared)
    assert torch.equal(by_parts, preprocessor.restore_labels(logits, prepared))
    assert torch.equal(preprocessor.painted_probabilities(painter, prepared).argmax(0), by_parts[0].long())
    assert (by_parts == labels).float().mean() > 0.99


def test_a_coarse_axis_keeps_its_own_spacing():
    image, label = case((6, 6, 4), affine=np.diag([1.0, 1.0, 5.0, 1.0]))
    prepared = Preprocessor(replace(PLAN, spacing_mm=(0.5, 0.5, 5.0))).apply(image, label)
    assert prepared.image.shape == (1, 12, 12, 4)


def test_blank_borders_are_cropped_and_come_back_as_background():
    image, label = case((8, 8, 8))
    image[:, :2] = 0.0
    image[:, :, 7:] = 0.0
    label[:, :2] = 0
    label[:, :, 7:] = 0
    preprocessor = Preprocessor(PLAN)
    prepared = preprocessor.apply(image, label)
    assert prepared.image.shape == (1, 6, 7, 8)
    assert prepared.image.affine[:3, 3].tolist() == [2.0, 0.0, 0.0]
    all_foreground = torch.tensor([0.0, 5.0, 1.0]).view(3, 1, 1, 1).expand(3, 6, 7, 8)
    restored = preprocessor.restore_whole(all_foreground, prepared)[1]
    assert (restored[0, :2] > 0.999).all()
    assert (restored[1, 2:, :7] > 0.9).all()
    ids = preprocessor.restore_labels(all_foreground, prepared)
    assert int(ids.sum()) == 6 * 7 * 8


def test_outside_of_the_crop_probabilities_are_those_of_background():
    image, _ = case((4, 4, 4))
    image[:, 0] = 0.0
    preprocessor = Preprocessor(PLAN)
    prepared = preprocessor.apply(image)
    third = torch.full((3, 3, 4, 4), 1 / 3)
    painter = preprocessor.label_painter(prepared, probabilities=True, with_probabilities=True)
    painter.add(tuple(slice(0, size) for size in third.shape[1:]), third)
    whole = preprocessor.restore_whole(third, prepared, are_probabilities=True)[1]
    for restored in (whole, preprocessor.painted_probabilities(painter, prepared)):
        assert restored[:, 0, 0, 0].tolist() == [1.0, 0.0, 0.0]
        assert torch.allclose(restored[:, 1:], torch.tensor(1 / 3))


def test_a_single_sigmoid_is_thresholded_and_is_surely_absent_outside_of_the_crop():
    image, _ = case((4, 4, 4))
    image[:, 0] = 0.0
    preprocessor = Preprocessor(replace(PLAN, num_classes=1))
    prepared = preprocessor.apply(image)
    logits = torch.full((1, 3, 4, 4), -0.1)
    logits[0, 0] = 0.1
    ids = preprocessor.restore_labels(logits, prepared)
    assert ids[0, :, 0, 0].tolist() == [0, 1, 0, 0]
    assert preprocessor.restore_whole(logits, prepared)[1][0, 0].max() == 0.0


def test_regions_are_painted_in_their_order():
    regions = (Region(name="whole", ids=(1, 2), paints=1), Region(name="core", ids=(2,), paints=2))
    preprocessor = Preprocessor(replace(PLAN, num_classes=2, regions=regions))
    image, _ = case((1, 1, 4))
    prepared = preprocessor.apply(image)
    probabilities = torch.tensor([[0.9, 0.9, 0.1, 0.4], [0.9, 0.1, 0.9, 0.5]]).view(2, 1, 1, 4)
    assert preprocessor.restore_labels(probabilities, prepared, probabilities=True).flatten().tolist() == [2, 1, 2, 0]


def test_pictures_are_only_cropped_and_normalised(tmp_path):
    from PIL import Image

    pixels = np.zeros((6, 9), dtype=np.uint8)
    pixels[1:5, 2:9] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    preprocessor = Preprocessor(PICTURES)
    prepared = preprocessor.apply(load_image(tmp_path / "a.png"))
    assert prepared.image.shape == (1, 4, 7)
    assert preprocessor.restore_labels(torch.rand(3, 4, 7), prepared).shape == (1, 6, 9)


def test_an_image_of_zeros_is_kept_whole():
    image = MetaTensor(torch.zeros(1, 3, 4, 5), affine=torch.eye(4, dtype=torch.float64))
    assert Preprocessor(PLAN).apply(image).image.shape == (1, 3, 4, 5)


def test_normalisation_over_the_body_counts_its_holes():
    image = MetaTensor(torch.zeros(1, 5, 5, 5), affine=torch.eye(4, dtype=torch.float64))
    image[0, 1:4, 1:4, 1:4] = 2.0
    image[0, 2, 2, 2] = 0.0  # a hole inside, as a dark ventricle is
    how = (ChannelNormalization(scheme="zscore", nonzero_only=True),)
    prepared = Preprocessor(replace(PLAN, normalization=how)).apply(image)
    assert prepared.image.mean().abs() < 1e-6
    assert prepared.image[0, 1, 1, 1] < 0.0


def test_the_inputs_are_left_alone():
    image, label = case(affine=np.diag([-1.0, 1.0, 2.0, 1.0]))
    before = image.clone(), label.clone()
    Preprocessor(replace(PLAN, normalization=(ChannelNormalization(scheme="zscore"),))).apply(image, label)
    assert torch.equal(image, before[0])
    assert torch.equal(label, before[1])


def test_a_plain_tensor_lies_on_the_plans_grid():
    plan = replace(PLAN, orientation=("P", "S", "R"), spacing_mm=(1.0, 2.0, 3.0))
    image = torch.rand(1, 4, 5, 6) + 1.0
    prepared = Preprocessor(plan).apply(image)
    assert torch.equal(prepared.image.as_tensor(), image)
    assert aff2axcodes(prepared.image.affine) == ("P", "S", "R")


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_shape_of_a_case_that_loses_nothing_is_known_from_its_grid(orientation):
    image = stored_as(case(affine=np.diag([1.0, 1.3, 2.2, 1.0]))[0], orientation)
    preprocessor = Preprocessor(replace(PLAN, spacing_mm=(0.8, 1.0, 1.5)))
    prepared = preprocessor.apply(image)
    assert preprocessor.shape_on_grid(geometry_of(image)) == tuple(prepared.image.shape[1:])
    assert prepared.is_resampled


def test_the_pipelines_are_monais_and_go_there_and_back_by_themselves(tmp_path):
    image, label = case((6, 5, 4))
    for name, tensor in (("image", image), ("label", label)):
        save_image(tensor, tmp_path / f"{name}.nii.gz")
    preprocessor = Preprocessor(replace(PLAN, spacing_mm=(0.7, 0.7, 0.7)))
    files = {name: tmp_path / f"{name}.nii.gz" for name in ("image", "label")}
    done = preprocessor.preprocessing(files)
    expected = preprocessor.apply(image, label)
    assert isinstance(preprocessor.preprocessing, Compose)
    assert torch.equal(done["image"].as_tensor(), expected.image.as_tensor())
    assert torch.equal(done["label"].as_tensor(), expected.label)
    logits = torch.randn(3, *expected.image.shape[1:])
    ids = preprocessor.postprocessing({"image": done["image"], "pred": logits})["pred"]
    assert (ids.as_tensor() == preprocessor.restore_labels(logits, expected)).float().mean() > 0.99


def test_where_a_plan_says_that_nothing_is_resampled_another_case_still_is_as_by_ours():
    image, label = case(affine=np.diag([1.0, 1.3, 2.2, 1.0]))
    ours, named_otherwise = (Preprocessor(replace(PLAN, resampling=way)) for way in ("extent", "none"))
    expected, found = ours.apply(image, label), named_otherwise.apply(image, label)
    assert torch.equal(found.image.as_tensor(), expected.image.as_tensor())
    assert torch.equal(found.label, expected.label)
    assert found.is_resampled


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("probabilities", [False, True])
def test_with_monais_own_resampling_labels_come_back_to_the_same_grid(num_classes, probabilities):
    image, _ = case((6, 8, 9), affine=np.diag([-1.0, 1.3, 2.2, 1.0]))
    preprocessor = Preprocessor(replace(PLAN, resampling="stock", num_classes=num_classes))
    prepared = preprocessor.apply(image)
    scores = torch.full((num_classes, *prepared.image.shape[1:]), 0.1)
    scores[-1] = 0.9
    if not probabilities:
        scores = scores.logit()
    ids = preprocessor.restore_labels(scores, prepared, probabilities=probabilities)
    assert ids.shape == image.shape
    assert ids.dtype == torch.uint8
    assert (ids == max(num_classes - 1, 1)).all()


@pytest.mark.filterwarnings("error:align_corners")
def test_monais_own_resampling_goes_there_and_back_without_its_warning():
    image, label = case()
    preprocessor = Preprocessor(replace(PLAN, resampling="stock", spacing_mm=(2.0, 1.0, 1.0)))
    prepared = preprocessor.apply(image, label)
    options = {"mode": ["bilinear", "nearest"], "scale_extent": True, "dtype": torch.float32}
    by_monai = Spacingd(["image", "label"], (2.0, 1.0, 1.0), **options)
    assert prepared.image.shape[1:] != image.shape[1:]
    steps = Preprocessor(replace(PLAN, resampling="stock", spacing_mm=None)).apply(image, label)
    data = {"image": steps.image, "label": MetaTensor(steps.label, affine=steps.image.affine)}
    with pytest.warns(UserWarning, match="align_corners"):
        expected = by_monai(data)
    assert torch.equal(prepared.image.as_tensor(), expected["image"].as_tensor())
    assert torch.equal(prepared.label, expected["label"].as_tensor())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_intensities_that_are_no_numbers_are_refused_with_the_files_name(bad):
    image, _ = case()
    image[0, 0, 0, 0] = bad
    image.meta["filename_or_obj"] = "scan_0000.nii.gz"
    with pytest.raises(BadInputError, match=r"scan_0000\.nii\.gz: 1 intensities"):
        Preprocessor(PLAN).apply(image)


def test_wrong_channels_axes_and_shapes_are_refused():
    image, label = case()
    with pytest.raises(BadInputError, match="expected 1 channels"):
        Preprocessor(PLAN).apply(torch.cat([image, image]))
    with pytest.raises(BadInputError, match="3 spatial axes"):
        Preprocessor(PLAN).apply(MetaTensor(torch.rand(1, 4, 4)))
    with pytest.raises(BadInputError, match="the label has shape"):
        Preprocessor(PLAN).apply(image, label[:, :-1])
    with pytest.raises(BadInputError, match="expected \\(3, 5, 6, 7\\)"):
        Preprocessor(PLAN).restore_labels(torch.zeros(3, 4, 4, 4), Preprocessor(PLAN).apply(image))


def own(*preprocessing, **others):
    return OwnTransforms(preprocessing=list(preprocessing), **others)


FLIP = {"_target_": "Flipd", "keys": ["image", "label"], "spatial_axis": 0}
DOUBLE = {"_target_": "Zoomd", "keys": ["image", "label"], "zoom": 2, "mode": ["area", "nearest"], "keep_size": False}


@pytest.mark.parametrize("before", ["EnsureTyped", "ResampleToSpacingd", "CropForegroundd"])
@pytest.mark.parametrize("added", [FLIP, DOUBLE], ids=["flip", "zoom"])
def test_a_spatial_step_of_ones_own_moves_both_and_is_undone(added, before):
    image, label = case()
    image[:, :2] = 0.0  # cropped away
    label[:, :2] = 0
    preprocessor = Preprocessor(PLAN, own=own(added | {"_before_": before}))
    plain, prepared = Preprocessor(PLAN).apply(image, label), preprocessor.apply(image, label)
    doubled = 2 if added is DOUBLE and before == "EnsureTyped" else 1  # else resampled to the plan's spacing again
    assert prepared.label.shape == prepared.image.shape == (1, 3 * doubled, 6 * doubled, 7 * doubled)
    if added is FLIP:
        assert torch.equal(prepared.label, plain.label.flip(1))
    restored = preprocessor.restore_labels(one_hot(prepared.label) * 20.0 - 10.0, prepared)
    assert torch.equal(restored.long(), label.as_tensor())
    assert torch.equal(preprocessor.apply(image).image.as_tensor(), prepared.image.as_tensor())  # without a label, too


def test_an_intensity_step_of_ones_own_changes_only_the_image():
    image, label = case()
    scaled = Preprocessor(PLAN, own=own({"_target_": "ScaleIntensityd", "keys": "image"})).apply(image, label)
    assert (float(scaled.image.min()), float(scaled.image.max())) == (0.0, 1.0)
    assert torch.equal(scaled.label, label.as_tensor())


def test_steps_of_ones_own_may_make_and_delete_other_entries():
    image, label = case()
    plan = replace(PLAN, channel_names=("a", "b"), normalization=PLAN.normalization * 2)
    apart = [
        {"_target_": "SplitDimd", "keys": "image", "dim": 0, "keepdim": True},
        {"_target_": "ScaleIntensityd", "keys": "image_1", "factor": 1.0, "minv": None, "maxv": None},
        {"_target_": "ConcatItemsd", "keys": ["image_0", "image_1"], "name": "image"},
        {"_target_": "DeleteItemsd", "keys": ["image_0", "image_1"]},
    ]
    done = Preprocessor(plan, own=own(*apart)).apply(torch.cat((image, image)), label)
    assert torch.allclose(done.image[1], 2 * done.image[0])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"_target_": "RepeatChanneld", "keys": "image", "repeats": 2}, "returned 2 channels, expected 1"),
        (FLIP | {"keys": ["image"], "_target_": "SpatialPadd", "spatial_size": 9}, "apply spatial transforms to both"),
        ({"_target_": "Zoomd", "keys": ["image", "label"], "zoom": 1.3, "keep_size": False}, "not whole numbers"),
        ({"_target_": "ThresholdIntensityd", "keys": "image", "threshold": 9.0, "cval": float("nan")}, "NaN"),
        ({"_target_": "SqueezeDimd", "keys": ["image", "label"], "dim": 0}, "SqueezeDimd changed the grid"),
        ({"_target_": "Transposed", "keys": ["image", "label"], "indices": [0, 1]}, "Transposed cannot be applied"),
    ],
)
def test_a_step_that_spoils_a_case_is_refused(entry, message):
    image, label = case()
    entry = {key: value for key, value in entry.items() if key != "spatial_axis"}
    with pytest.raises(BadInputError, match=message):
        Preprocessor(PLAN, own=own(entry)).apply(image, label)


def test_a_case_that_its_header_makes_too_large_is_refused_with_its_spacing(monkeypatch):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 36864000000 bytes.")

    image, label = case()
    preprocessor = Preprocessor(PLAN)
    monkeypatch.setattr(type(preprocessor.preprocessing.transforms[-1]), "__call__", fail)
    with pytest.raises(
        BadInputError, match=r"EnsureTyped: .* not enough memory for \d+ x \d+ x \d+ voxels of .* mm; check .* unit"
    ):
        preprocessor.apply(image, label)


def test_a_spacing_that_would_fill_the_memory_is_refused_at_once():
    far = torch.diag(torch.tensor([500.0, 500.0, 500.0, 1.0], dtype=torch.float64))
    image, _ = case(affine=far)
    with pytest.raises(
        BadInputError, match=r"found 5 x 6 x 7 voxels of 500 x 500 x 500 mm, .* times as many of the pl"
    ):
        Preprocessor(PLAN).apply(image)
    Preprocessor(PLAN).apply(image.as_tensor())  # on the plan's grid


def test_monais_spacing_in_a_list_of_ones_own_is_monais_and_the_plans_is_ours():
    image, label = case()
    spacing = {"_target_": "Spacingd", "keys": ["image", "label"], "pixdim": [2.0, 2.0, 2.0]}
    spacing |= {"mode": ["bilinear", "nearest"], "allow_missing_keys": True}
    preprocessor = Preprocessor(PLAN, own=own(spacing))
    assert type(preprocessor.preprocessing.transforms[-2]).__name__ == "Spacingd"
    assert preprocessor.apply(image, label).image.shape == (1, 3, 4, 4)


def test_the_postprocessing_of_ones_own_is_what_makes_the_label_map():
    image, label = case()
    planned = describe_pipelines(PLAN)["postprocessing"]
    only_two = [*planned, {"_target_": "LabelFilterd", "keys": "pred", "applied_labels": [2]}]
    replaced = [planned[0], *only_two]  # not the plan's list and more, but another one
    preprocessor = Preprocessor(PLAN, own=own(postprocessing=replaced))
    prepared = preprocessor.apply(image, label)
    restored = preprocessor.restore_labels(one_hot(label), prepared)
    assert preprocessor.own_postprocessing is None
    assert restored.dtype == torch.uint8
    assert torch.equal(restored.long(), torch.where(label == 2, 2, 0).as_tensor())
    spoiled = Preprocessor(PLAN, own=own(postprocessing=[planned[0], planned[1]]))
    with pytest.raises(BadInputError, match=r"returned values of shape \(3, 5, 6, 7\), expected label ids"):
        spoiled.restore_labels(one_hot(label), spoiled.apply(image))


def test_the_augmentation_prints_every_step_of_its_description():
    preprocessor = Preprocessor(PLAN)
    lines = str(preprocessor.augmentation).splitlines()
    assert len(lines) == len(preprocessor.pipelines["augmentation"])
    assert lines[0].startswith("0: candy_monai.transforms.RandWarpd(keys=['image', 'label'], spatial_size=")
