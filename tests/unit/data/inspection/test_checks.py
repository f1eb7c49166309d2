from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.datasets.nnunet_description import read_dataset_description
from candy_monai.data.inspection.checks import check_dataset, visit_dataset
from candy_monai.errors import ImageReadError
from tests.folders import AFFINE, SHAPE, describe, label_of, make, texture, write


def problems_of(folder: Path) -> str:
    return "\n".join(check_dataset(folder).problems)


def warnings_of(folder: Path) -> str:
    return "\n".join(check_dataset(folder).warnings)


def test_a_sound_dataset_has_neither_problems_nor_warnings(tmp_path):
    report = check_dataset(texture(make(tmp_path, num_channels=2)))
    assert (report.problems, report.warnings) == ((), ())


def test_all_problems_of_all_cases_are_reported_at_once(tmp_path):
    folder = make(tmp_path, ["a", "b", "c", "d"])
    write(folder / "labelsTr" / "a.nii.gz", label_of((1, 255)))
    write(folder / "labelsTr" / "b.nii.gz", np.full(SHAPE, 0.5, np.float32))
    write(folder / "labelsTr" / "c.nii.gz", np.ones((6, 5, 3), np.uint8))
    (folder / "imagesTr" / "d_0000.nii.gz").write_bytes(b"junk")
    problems = check_dataset(folder).problems
    assert len(problems) == 4
    for name in ("labelsTr/a.nii.gz", "b.nii.gz", "labelsTr/c.nii.gz", "d_0000.nii.gz"):
        assert any(name in problem for problem in problems)


@pytest.mark.parametrize("keep", [0.7, 0.995])
def test_a_truncated_file_is_found(tmp_path, keep):
    path = make(tmp_path) / "imagesTr" / "b_0000.nii.gz"
    write(path, np.random.RandomState(0).rand(*SHAPE).astype(np.float32))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    assert "b_0000.nii.gz: found a file" in problems_of(tmp_path)


def test_a_mask_of_0_and_255_is_found_with_a_remap(tmp_path):
    make(tmp_path, labels={"background": 0, "liver": 1})
    for case_id in "abc":
        write(tmp_path / "labelsTr" / f"{case_id}.nii.gz", label_of((255,)))
    text = problems_of(tmp_path)
    assert "labelsTr/a.nii.gz: unknown label ids 255; found 0, 255, expected 0, 1" in text
    assert "remap a copy: 255 -> 1" in text


def test_the_ignore_label_is_expected_in_label_files(tmp_path):
    make(tmp_path, labels={"background": 0, "liver": 1, "tumour": 2, "ignore": 3})
    write(tmp_path / "labelsTr" / "a.nii.gz", label_of((1, 2, 3)))
    assert problems_of(tmp_path) == ""


def test_a_nan_in_an_image_is_counted(tmp_path):
    image = np.zeros(SHAPE, np.float32)
    image[0, 0, :2] = np.nan
    write(make(tmp_path) / "imagesTr" / "a_0000.nii.gz", image)
    assert "imagesTr/a_0000.nii.gz: 2 values are NaN or infinite" in problems_of(tmp_path)


def test_another_spacing_is_a_problem(tmp_path):
    make(tmp_path, num_channels=2)
    write(tmp_path / "labelsTr" / "a.nii.gz", label_of((1, 2)), np.diag([1.0, 1.5, 2.0, 1.0]))
    write(tmp_path / "imagesTr" / "c_0001.nii.gz", np.zeros(SHAPE), np.diag([2.0, 1.5, 3.0, 1.0]))
    report = check_dataset(tmp_path)
    assert len(report.problems) == 2
    assert any("labelsTr/a.nii.gz: spacing (1.0, 1.5, 2.0) mm" in problem for problem in report.problems)
    assert any("imagesTr/c_0001.nii.gz: spacing (2.0, 1.5, 3.0) mm" in problem for problem in report.problems)


@pytest.mark.parametrize(
    ("name", "axis", "offset_mm", "voxels"),
    [
        ("labelsTr/b.nii.gz", 0, 0.6, "0.6"),
        ("labelsTr/b.nii.gz", 1, 30.0, "20"),
        ("labelsTr/b.nii.gz", 2, -1.5, "0.5"),
        ("imagesTr/b_0001.nii.gz", 2, -1.5, "0.5"),
    ],
)
def test_another_origin_is_a_warning_that_says_how_far_off_it_is(tmp_path, name, axis, offset_mm, voxels):
    make(tmp_path, num_channels=2)
    moved = AFFINE.copy()  # voxels of 1 x 1.5 x 3 mm
    moved[axis, 3] = offset_mm
    texture(tmp_path)
    write(tmp_path / name, label_of((1, 2)), moved)
    report = check_dataset(tmp_path)
    (text,) = report.warnings
    assert report.problems == ()
    assert text.startswith(f"{name}: origin")
    assert "b_0000.nii.gz" in text
    assert f"{voxels} voxels off" in text


def test_a_turned_label_is_a_warning(tmp_path):
    texture(make(tmp_path))
    turn = np.array([[(1 - 0.02**2) ** 0.5, -0.02], [0.02, (1 - 0.02**2) ** 0.5]])
    turned = AFFINE.copy()
    turned[:2, :2] = turn @ AFFINE[:2, :2]
    write(tmp_path / "labelsTr" / "b.nii.gz", label_of((1, 2)), turned)
    report = check_dataset(tmp_path)
    assert (len(report.problems), len(report.warnings)) == (0, 1)


def test_a_flipped_label_is_a_warning_that_shows_both_directions(tmp_path):
    texture(make(tmp_path))
    flipped = np.diag([-1.0, 1.5, 3.0, 1.0])
    flipped[0, 3] = SHAPE[0] - 1  # covers the same space
    write(tmp_path / "labelsTr" / "b.nii.gz", label_of((1, 2)), flipped)
    (warning,) = check_dataset(tmp_path).warnings
    assert "labelsTr/b.nii.gz: directions [[-1.0, 0.0, 0.0]" in warning
    assert "b_0000.nii.gz has [[1.0, 0.0, 0.0]" in warning
    assert "axes are swapped and flipped" in warning


@pytest.mark.parametrize("offset_mm", [0.6, 30.0])
def test_a_channel_that_lies_elsewhere_is_a_problem_that_shows_both_places(tmp_path, offset_mm):
    moved = AFFINE.copy()
    moved[0, 3] = offset_mm
    write(make(tmp_path, num_channels=2) / "imagesTr" / "b_0001.nii.gz", np.zeros(SHAPE, np.float32), moved)
    (problem,) = check_dataset(tmp_path).problems
    assert problem.startswith(f"imagesTr/b_0001.nii.gz: origin ({offset_mm}, 0.0, 0.0) mm, the image b_0000.nii.gz has")
    with pytest.raises(ImageReadError, match=r"b_0001\.nii\.gz: origin"):
        NNUNetDataset(tmp_path).load(1)


def test_channels_of_different_shapes_are_a_problem(tmp_path):
    make(tmp_path, num_channels=2)
    write(tmp_path / "imagesTr" / "a_0001.nii.gz", np.zeros((6, 5, 3), np.float32))
    assert "imagesTr/a_0001.nii.gz: shape (6, 5, 3)" in problems_of(tmp_path)
    with pytest.raises(
        ImageReadError, match=r"a_0001\.nii\.gz: shape \(6, 5, 3\), the channel a_0000\.nii\.gz has \(6, 5, 4\)"
    ):
        NNUNetDataset(tmp_path)[0]


def test_no_class_is_called_absent_while_labels_cannot_be_counted(tmp_path):
    make(tmp_path)
    write(tmp_path / "labelsTr" / "a.nii.gz", label_of((1, 7)))
    for case_id in "bc":
        write(tmp_path / "labelsTr" / f"{case_id}.nii.gz", label_of((1,)))
    assert "unknown label ids 7" in problems_of(tmp_path)
    assert "no training case contains" not in warnings_of(tmp_path)


def test_a_missing_image_is_looked_for_among_images_without_a_label_and_other_endings(tmp_path):
    make(tmp_path)
    images = tmp_path / "imagesTr"
    (images / "a_0000.nii.gz").rename(images / "A_0000.nii.gz")
    (images / "b_0000.nii.gz").rename(images / "b_0000.nii")
    said = problems_of(tmp_path)
    assert "imagesTr/b_0000.nii.gz is missing, but there is a label. Found b_0000.nii." in said
    assert "Did you mean 'c'" not in said


def test_a_case_without_foreground_and_a_class_without_a_case_are_warnings(tmp_path):
    make(tmp_path)
    for case_id in "abc":
        write(tmp_path / "labelsTr" / f"{case_id}.nii.gz", label_of(() if case_id == "a" else (1,)))
    assert problems_of(tmp_path) == ""
    assert "labelsTr: no foreground in 1 of 3 cases: a" in warnings_of(tmp_path)
    assert "no training case contains the label ids [2]" in warnings_of(tmp_path)


def test_another_number_of_training_cases_than_stated_is_a_problem_with_both_numbers_and_the_line_that_mends_it(
    tmp_path,
):
    texture(make(tmp_path, numTraining=5))
    (problem,) = check_dataset(tmp_path).problems
    assert "numTraining is 5, found 3 cases" in problem
    assert 'write "numTraining": 3' in problem


def test_where_files_are_missing_the_stated_number_of_cases_is_no_second_complaint(tmp_path):
    make(tmp_path, numTraining=3)
    (tmp_path / "labelsTr" / "a.nii.gz").unlink()
    assert "labelsTr/a.nii.gz is missing" in problems_of(tmp_path)
    assert "numTraining" not in problems_of(tmp_path) + warnings_of(tmp_path)


def test_the_check_of_a_missing_folder_is_one_problem(tmp_path):
    report = check_dataset(tmp_path / "none")
    assert len(report.problems) == 1
    assert "no such folder" in report.problems[0]


@pytest.mark.realdata
def test_a_real_dataset_of_200_cases_is_checked_in_seconds(real_dataset):
    report = check_dataset(real_dataset("Dataset004_Hippocampus"), num_workers=1)
    assert report.problems == ()


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name", ["Dataset027_ACDC", "Dataset056_PICAI2ch", "Dataset121_DRIVE", "Dataset134_MSDLungPatches2D"]
)
def test_real_datasets_have_no_problems(real_dataset, name):
    assert check_dataset(real_dataset(name)).problems == ()


def test_a_dataset_without_any_foreground_is_a_problem(tmp_path):
    make(tmp_path)
    for case_id in "abc":
        write(tmp_path / "labelsTr" / f"{case_id}.nii.gz", label_of(()))
    assert "no training case has any foreground" in problems_of(tmp_path)


# --- the format's edge cases, one each


def make_pictures(folder: Path, image: np.ndarray, label: np.ndarray, **changes: object) -> Path:
    for case_id in ("a", "b"):
        write(folder / "imagesTr" / f"{case_id}_0000.png", image)
        write(folder / "labelsTr" / f"{case_id}.png", label)
    describe(folder, **{"file_ending": ".png", "numTraining": 2, "labels": {"background": 0, "x": 1}, **changes})
    return folder


def make_tiffs(folder: Path, shape: tuple[int, ...], *, spacing: dict[str, list[float]] | None = None) -> Path:
    tifffile = pytest.importorskip("tifffile")
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
        for case_id in ("a", "b"):
            name = f"{case_id}_0000" if part == "imagesTr" else case_id
            values = np.arange(np.prod(shape)).reshape(shape) % (2 if part == "labelsTr" else 200)
            tifffile.imwrite(folder / part / f"{name}.tif", values.astype(np.uint8), photometric="minisblack")
            if spacing is not None and part in spacing:
                (folder / part / f"{case_id}.json").write_text(json.dumps({"spacing": spacing[part]}))
    describe(folder, file_ending=".tif", numTraining=2, labels={"background": 0, "x": 1})
    return folder


def test_a_colour_picture_in_one_file_lacks_no_channel(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (5, 6, 3)).astype(np.uint8)
    make_pictures(tmp_path, image, np.eye(5, 6, dtype=np.uint8), channel_names={"0": "R", "1": "G", "2": "B"})
    assert problems_of(tmp_path) == ""


@pytest.mark.parametrize(("colours", "warns"), [("0f0", True), ("f00", False), (None, False)])
def test_palettes_that_give_an_id_another_colour_are_a_warning_that_names_it(tmp_path, colours, warns):
    make_pictures(tmp_path, np.arange(30, dtype=np.uint8).reshape(5, 6), np.eye(5, 6, dtype=np.uint8))
    for case_id, second in (("a", "f00"), ("b", colours)):
        picture = Image.fromarray(np.eye(5, 6, dtype=np.uint8))
        if second is not None:
            picture.putpalette([0, 0, 0, *(17 * int(level, 16) for level in second), 1, len(case_id), 3])
        picture.save(tmp_path / "labelsTr" / f"{case_id}.png")
    for _ in range(2):  # also of what was stored
        text = "\n".join(visit_dataset(tmp_path, store=tmp_path / "store").report.warnings)
        assert ("id 1 is #ff0000 in a and #00ff00 in b" in text) is warns


def test_negative_ids_are_never_remapped_to_the_classes_in_order(tmp_path):
    make(tmp_path)
    label = label_of((1,)).astype(np.int16)
    label[0, 0, 0] = -1
    write(tmp_path / "labelsTr" / "a.nii.gz", label)
    text = problems_of(tmp_path)
    assert "unknown label ids -1; found -1, 0, 1" in text
    assert "to 0, the background" in text
    assert "remap" not in text


def test_a_mask_picture_of_0_and_255_is_a_problem_that_names_the_values_and_a_remap(tmp_path):
    mask = np.eye(5, 6, dtype=np.uint8) * 255
    make_pictures(tmp_path, np.arange(30, dtype=np.uint8).reshape(5, 6), mask)
    assert "labelsTr/a.png: unknown label ids 255; found 0, 255" in (text := problems_of(tmp_path))
    assert "remap a copy: 255 -> 1" in text


@pytest.mark.parametrize("shape", [(6, 7), (4, 6, 7)])
def test_the_number_of_axes_tells_a_tiff_picture_from_a_tiff_volume(tmp_path, shape):
    both = {"imagesTr": [1, 1, 1], "labelsTr": [1, 1, 1]}
    make_tiffs(tmp_path, shape, spacing=both if len(shape) == 3 else None)
    assert problems_of(tmp_path) == ""
    assert NNUNetDataset(tmp_path)[0][0].shape == (1, *shape)
    assert "without spacing" not in warnings_of(tmp_path)


def test_tiff_volumes_without_spacing_files_are_one_warning(tmp_path):
    make_tiffs(tmp_path, (4, 6, 7))
    assert problems_of(tmp_path) == ""
    (warning,) = [text for text in check_dataset(tmp_path).warnings if "without spacing" in text]
    assert "imagesTr/a_0000.tif, labelsTr/a.tif" in warning


def test_a_tiff_label_without_a_spacing_file_of_its_own_is_a_warning_and_no_contradiction(tmp_path):
    make_tiffs(tmp_path, (4, 6, 7), spacing={"imagesTr": [5.0, 1.0, 1.0]})
    assert problems_of(tmp_path) == ""
    assert "labelsTr/a.tif, labelsTr/b.tif: TIFF volumes without spacing" in warnings_of(tmp_path)
    assert "imagesTr/a_0000.tif" not in warnings_of(tmp_path)


def test_regions_and_an_ignore_label_go_together(tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    make(tmp_path, labels=labels, regions_class_order=[1, 2])
    write(tmp_path / "labelsTr" / "a.nii.gz", label_of((1, 2, 3)))
    assert problems_of(tmp_path) == ""


@pytest.mark.parametrize(
    ("regions", "order", "changed"),
    [
        ({"whole": [1, 2, 3], "core": [2, 3], "inner": 3}, [1, 2, 3], ""),
        ({"kidney": [1, 2, 3], "masses": [2, 3], "tumour": 2}, [1, 3, 2], ""),
        ({"whole": [1, 2, 3], "core": [3]}, [1, 3], ""),  # no region tells 2 from 1
        ({"whole": [1, 2], "core": 2}, [2, 1], "1 -> 2, 2 -> 1"),
        ({"whole": [1, 2], "core": 2}, [1, 1], "2 -> 1"),
        ({"core": 2, "whole": [1, 2]}, [2, 1], "2 -> 1"),  # the whole is painted over the core
    ],
)
def test_an_order_of_regions_that_changes_the_ids_of_a_perfect_prediction_is_a_problem(
    tmp_path, regions, order, changed
):
    make(tmp_path, labels={"background": 0, **regions}, regions_class_order=order)
    assert (f"perfect prediction: {changed}; list the regions" in problems_of(tmp_path)) == bool(changed)
    assert read_dataset_description(tmp_path).regions_class_order == tuple(order)  # of models that have it already


def test_a_number_of_training_cases_in_text_is_checked_too(tmp_path):
    assert "numTraining is 5, found 3 cases" in problems_of(make(tmp_path, numTraining="5"))


def test_test_cases_without_labels_and_no_test_cases_at_all_are_fine(tmp_path):
    texture(make(tmp_path))
    assert check_dataset(tmp_path).warnings == ()
    write(tmp_path / "imagesTs" / "t_0000.nii.gz", np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE))
    report = check_dataset(tmp_path)
    assert (report.problems, report.warnings) == ((), ())


def test_one_label_of_several_listed_cases_is_a_warning_that_names_them(tmp_path):
    make(tmp_path)
    listed = {case: {"images": [f"imagesTr/{case}_0000.nii.gz"], "label": "labelsTr/a.nii.gz"} for case in "abc"}
    describe(tmp_path, dataset=listed)
    assert "labelsTr/a.nii.gz: is listed as the label of a, b, c" in warnings_of(tmp_path)


def test_a_listed_path_with_a_variable_that_is_not_set_names_the_variable(tmp_path):
    make(tmp_path)
    describe(tmp_path, dataset={"a": {"images": ["$NO_SUCH_SCANS/a.nii.gz"], "label": "labelsTr/a.nii.gz"}})
    assert "set the environment variable $NO_SUCH_SCANS" in problems_of(tmp_path)


def test_a_label_that_no_training_case_of_a_fold_has_is_a_warning_that_names_fold_and_label(tmp_path):
    texture(make(tmp_path, ["a", "b", "c", "d"]))
    for case_id in "abc":
        write(tmp_path / "labelsTr" / f"{case_id}.nii.gz", label_of((1,)))
    splits = [{"train": ["a", "b", "c"], "val": ["d"]}, {"train": ["b", "c", "d"], "val": ["a"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    text = warnings_of(tmp_path)
    assert "fold 0: no training case has the label 'tumour' (id 2)" in text
    assert "fold 1" not in text


# --- what the cases say about each other


def test_one_image_under_two_ids_is_a_warning_whatever_the_files_look_like(tmp_path):
    make(texture(make(tmp_path, ["a", "b", "c"])), ["d"], numTraining=4)
    values = np.asarray(np.arange(np.prod(SHAPE)).reshape(SHAPE))
    write(tmp_path / "imagesTr" / "a_0000.nii.gz", values.astype(np.float32))
    write(tmp_path / "imagesTr" / "c_0000.nii.gz", values.astype(np.int16))
    assert "imagesTr: a, c hold the same image" in warnings_of(tmp_path)


def test_an_image_in_training_and_test_is_a_warning(tmp_path):
    texture(make(tmp_path))
    (tmp_path / "imagesTs").mkdir()
    (tmp_path / "imagesTs" / "t_0000.nii.gz").write_bytes((tmp_path / "imagesTr" / "b_0000.nii.gz").read_bytes())
    assert "the training case b and the test case t hold the same image" in warnings_of(tmp_path)


def test_a_mirrored_affine_among_others_is_a_warning(tmp_path):
    texture(make(tmp_path))
    mirrored = np.diag([-1.0, 1.5, 3.0, 1.0])
    for name in ("imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"):
        write(tmp_path / name, (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3).astype(np.uint8), mirrored)
    assert "imagesTr: b: the affine is mirrored (left-handed axes" in warnings_of(tmp_path)


def test_a_spacing_far_from_the_others_is_a_warning(tmp_path):
    texture(make(tmp_path, ["a", "b", "c", "d", "e"]))
    for name in ("imagesTr/c_0000.nii.gz", "labelsTr/c.nii.gz"):
        write(
            tmp_path / name, (np.arange(np.prod(SHAPE)).reshape(SHAPE) % 3).astype(np.uint8), np.diag([0.1, 1.5, 3, 1])
        )
    assert "c 0.1 x 1.5 x 3; check the headers" in warnings_of(tmp_path)


@pytest.mark.parametrize("change", [lambda values: values * 100, lambda values: values + 1024])
def test_intensities_far_from_the_others_are_a_warning(tmp_path, change):
    folder = texture(make(tmp_path, ["a", "b", "c", "d", "e"]))
    values = np.random.default_rng(1).normal(100, 10, SHAPE).astype(np.float32)
    write(folder / "imagesTr" / "d_0000.nii.gz", change(values))
    (warning,) = check_dataset(folder).warnings
    assert "channel 'c0' has intensities far from the usual" in warning
    assert "in 1 of 5 cases: d (" in warning


def test_an_image_of_a_single_value_is_a_warning(tmp_path):
    texture(make(tmp_path))
    write(tmp_path / "imagesTr" / "b_0000.nii.gz", np.full(SHAPE, 7, np.float32))
    assert "channel 'c0' is almost constant in b" in warnings_of(tmp_path)


def test_nothing_is_written_into_the_dataset_and_it_may_be_read_only(tmp_path):
    folder = texture(make(tmp_path / "d"))
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}
    check_dataset(folder)
    after = {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert after == before


def test_a_broken_case_keeps_nothing_from_being_said_about_the_others(tmp_path):
    texture(make(tmp_path, ["a", "b", "c", "d"]))
    (tmp_path / "imagesTr" / "a_0000.nii.gz").write_bytes(b"junk")
    (tmp_path / "imagesTr" / "b_0000.nii.gz").write_bytes((tmp_path / "imagesTr" / "c_0000.nii.gz").read_bytes())
    report = check_dataset(tmp_path)
    assert len(report.problems) == 1
    assert any("b, c hold the same image" in warning for warning in report.warnings)


FRAMES = tuple(f"patient{patient}_frame{frame}" for patient in range(3) for frame in range(2))


def test_patients_on_both_sides_of_the_folds_are_a_warning_with_the_groups_that_part_them(tmp_path):
    texture(make(tmp_path, ids=FRAMES))
    (warning,) = check_dataset(tmp_path).warnings
    assert "of 3 patients are both in training and in validation" in warning
    assert "--groups '^(.+?)_frame'" in warning


def test_warnings_are_about_the_folds_that_are_chosen_in_place_of_the_usual_ones(tmp_path):
    texture(make(tmp_path, ids=FRAMES))
    checked = visit_dataset(tmp_path)
    (usual,) = checked.warnings_for(checked.folds)
    assert usual == checked.report.warnings[0]
    assert checked.warnings_for(checked.dataset.folds(groups="^(.+?)_frame")) == ()
    (of_one,) = checked.warnings_for(checked.folds[1:2], first=1)
    assert "1 of 3 patients are both in training and in validation (1 of 1 validated in fold 1)" in of_one


def test_a_split_file_that_parts_the_patients_is_no_reason_to_warn(tmp_path):
    texture(make(tmp_path, ids=FRAMES))
    (tmp_path / "splits_final.json").write_text(json.dumps([{"train": FRAMES[:4], "val": FRAMES[4:]}]))
    assert check_dataset(tmp_path).warnings == ()
