from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.images.reading import geometry_of, read_geometry
from candy_monai.data.inspection.checks import check_dataset
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def best_threshold_dice(image: np.ndarray, target: np.ndarray) -> float:
    """Return the highest Dice that any rule 'above t' or 'below t' reaches, for the best t of this very image."""
    sorted_target = target.ravel()[np.argsort(image.ravel())]
    positives, size = sorted_target.sum(), sorted_target.size
    below = np.concatenate([[0], np.cumsum(sorted_target)])
    counts = np.arange(size + 1)
    dice_below = 2 * below / (counts + positives)
    dice_above = 2 * (positives - below) / (size - counts + positives)
    return float(max(dice_below.max(), dice_above.max()))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    return write_phantom_dataset(tmp_path_factory.mktemp("phantom"), num_cases=6, num_test_cases=2)


def test_the_dataset_is_sound_and_complete(volumes):
    report = check_dataset(volumes)
    assert (report.problems, report.warnings) == ((), ())
    assert len(NNUNetDataset(volumes)) == 6
    tests = NNUNetDataset(volumes, split="Ts")
    assert len(tests) == 2
    assert tests.load_label(0).max() == 2  # test cases have labels to evaluate against


def test_the_same_seed_gives_the_same_bytes_and_another_one_other_images(tmp_path):
    first, again, other = (
        write_phantom_dataset(tmp_path / name / "phantom", num_cases=2, num_test_cases=1, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert content(first) == content(again)
    image = "imagesTr/phantom_000_0000.nii.gz"
    assert content(first)[image] != content(other)[image]


def test_more_cases_do_not_change_the_first_ones(tmp_path):
    few = write_phantom_dataset(tmp_path / "few", num_cases=1, num_test_cases=0)
    many = write_phantom_dataset(tmp_path / "many", num_cases=2, num_test_cases=0)
    image = "imagesTr/phantom_000_0000.nii.gz"
    assert content(few)[image] == content(many)[image]
    write_phantom_dataset(many, num_cases=1, num_test_cases=0)
    assert content(many).keys() == content(few).keys()  # those of the call before are gone
    (few / "dataset.json").write_text('{"description": "Mine"}')
    with pytest.raises(BadInputError, match="few: holds another dataset"):
        write_phantom_dataset(few)
    assert content(few)[image] == content(many)[image]


@pytest.mark.parametrize("num_dims", [2, 3])
def test_no_threshold_solves_the_task(tmp_path, num_dims):
    dataset = NNUNetDataset(write_phantom_dataset(tmp_path, num_cases=6, num_test_cases=0, num_dims=num_dims))
    for classes in ((1,), (2,), (1, 2)):
        scores = [best_threshold_dice(image.numpy(), np.isin(label.numpy(), classes)) for image, label in dataset]
        assert np.mean(scores) < 0.7


def test_volumes_are_anisotropic_tilted_and_each_a_little_different_in_shape(volumes):
    geometries = [geometry_of(image) for image, _ in NNUNetDataset(volumes)]
    for geometry in geometries:
        assert geometry.spacing_mm == pytest.approx((1.0, 1.0, 2.5), abs=1e-5)
        direction = geometry.affine[:3, :3] / geometry.spacing_mm
        assert np.allclose(direction @ direction.T, np.eye(3), atol=1e-5)
        assert np.abs(direction - np.diag(np.diag(direction))).max() > 0.05
    assert len({geometry.spatial_shape for geometry in geometries}) > 1


def test_brightness_has_no_common_scale(volumes):
    means = [float(image.mean()) for image, _ in NNUNetDataset(volumes)]
    assert max(means) > 1.5 * min(means)


def test_the_shell_lies_between_the_core_and_the_background(volumes):
    for _, label in NNUNetDataset(volumes):
        core = label[0].numpy() == 2
        for axis in range(3):
            for step in (-1, 1):
                neighbours = np.roll(label[0].numpy(), step, axis)[core]
                assert (neighbours > 0).mean() > 0.9


@pytest.mark.parametrize("num_classes", [2, 3, 4, 7])
@pytest.mark.parametrize("num_dims", [2, 3])
def test_every_class_occurs_for_any_number_of_classes(tmp_path, num_classes, num_dims):
    folder = write_phantom_dataset(tmp_path, num_cases=4, num_test_cases=0, num_dims=num_dims, num_classes=num_classes)
    report = check_dataset(folder)
    assert (report.problems, report.warnings) == ((), ())
    dataset = NNUNetDataset(folder)
    assert dataset.num_classes == num_classes
    assert all(len(label.unique()) == num_classes for _, label in dataset)


def test_pictures_are_8_bit_png_by_default_and_2d_nifti_on_request(tmp_path):
    pictures = write_phantom_dataset(tmp_path / "png", num_cases=1, num_test_cases=0, num_dims=2, num_channels=2)
    geometry = read_geometry(pictures / "imagesTr" / "phantom_000_0001.png")
    assert geometry.is_picture
    assert NNUNetDataset(pictures)[0][0].shape == (2, *geometry.spatial_shape)
    options = {"num_dims": 2, "file_ending": ".nii.gz", "shape": (32, 40), "spacing_mm": (0.5, 0.7)}
    scans = write_phantom_dataset(tmp_path / "nii", num_cases=1, num_test_cases=0, **options)
    scan = nibabel.load(scans / "imagesTr" / "phantom_000_0000.nii.gz")
    assert scan.shape == (32, 40)
    assert np.allclose(scan.header.get_zooms(), (0.5, 0.7))


def test_a_shape_asked_for_is_that_of_every_case(tmp_path):
    folder = write_phantom_dataset(tmp_path, num_cases=3, num_test_cases=0, shape=(20, 24, 16), num_channels=2)
    assert [image.shape for image, _ in NNUNetDataset(folder)] == [(2, 20, 24, 16)] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_dims": 4}, "num_dims must be 2 or 3, got 4"),
        ({"num_classes": 1}, "num_classes 1 .* expected 2 or more"),
        ({"num_cases": 0}, "expected 1 or more"),
        ({"shape": (32, 32)}, "shape must have 3 lengths"),
        ({"shape": (32, 32, 8)}, "16 or more"),
        ({"spacing_mm": (1.0, 0.0, 1.0)}, "3 positive lengths"),
    ],
)
def test_arguments_out_of_range_are_refused_before_anything_is_written(tmp_path, options, message):
    with pytest.raises(BadInputError, match=message):
        write_phantom_dataset(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BadInputError, match="is a file, expected a folder"):
        write_phantom_dataset(tmp_path / "file", num_cases=1)
