from __future__ import annotations

import math
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import DiceMetric, HausdorffDistanceMetric, MeanIoU
from monai.networks import one_hot

from candy_monai.data.datasets.files import DatasetFromMemory, MergedDataset, SimpleDataset
from candy_monai.data.images.reading import load_image
from candy_monai.data.images.writing import save_image
from candy_monai.data.planning.plan import Region
from candy_monai.errors import BadInputError, DatasetError
from candy_monai.evaluation.evaluator import Evaluator
from candy_monai.inference.channels import RunChannels
from candy_monai.inference.prediction import Prediction
from tests.label_maps import blobs, ids, written


def test_dice_and_iou_by_hand():
    found = Evaluator().evaluate(ids([1, 1, 0, 2]), ids([1, 0, 0, 2]))
    assert found[0].classes == {1: {"dice": 2 / 3, "iou": 1 / 2}, 2: {"dice": 1.0, "iou": 1.0}}
    assert found[0].counts[1] == {"TP": 1, "FP": 1, "FN": 0, "TN": 2, "n_pred": 2, "n_ref": 1}
    assert found.mean_metrics == {"dice": pytest.approx((2 / 3 + 1) / 2), "iou": 0.75}


def test_the_values_are_monai_s():
    predictions, references = [blobs(seed) for seed in range(4)], [blobs(seed) for seed in range(10, 14)]
    found = Evaluator("dice", "iou", "hd95").evaluate(predictions, references)
    hot = [one_hot(torch.stack(labels), 3) for labels in (predictions, references)]
    for name, metric in {
        "dice": DiceMetric(include_background=False, reduction="none"),
        "iou": MeanIoU(include_background=False, reduction="none"),
        "hd95": HausdorffDistanceMetric(include_background=False, percentile=95, reduction="none"),
    }.items():
        expected = metric(*hot).numpy()
        measured = [[case.classes[index][name] for index in (1, 2)] for case in found]
        assert np.allclose(measured, expected, atol=1e-6), name


def test_a_class_that_only_other_cases_have_has_no_value_and_no_voxels():
    found = Evaluator("dice").evaluate([ids([1, 0]), ids([2, 0])], [ids([1, 0]), ids([0, 0])])
    assert math.isnan(found[0].classes[2]["dice"])
    assert found[0].counts[2] == {"TP": 0, "FP": 0, "FN": 0, "TN": 2, "n_pred": 0, "n_ref": 0}
    assert found[1].classes[2]["dice"] == 0.0
    assert found.mean_metrics == {"dice": 0.5}


def test_with_a_number_of_classes_each_is_listed():
    assert list(Evaluator("dice", num_classes=4).evaluate(ids([1, 0]), ids([1, 0]))[0].classes) == [1, 2, 3]


def test_the_background_is_measured_when_asked_and_stays_out_of_means_over_classes():
    found = Evaluator("dice", include_background=True).evaluate(ids([1, 0, 0, 0]), ids([1, 1, 0, 0]))
    assert found.class_means == {0: {"dice": 0.8}, 1: {"dice": pytest.approx(2 / 3)}}
    assert found.mean_metrics == {"dice": pytest.approx(2 / 3)}


@pytest.mark.parametrize("num_classes", [None, 2])
def test_ignored_voxels_count_for_nothing(num_classes):
    prediction, reference = torch.zeros(1, 9, 9, dtype=torch.int64), torch.zeros(1, 9, 9, dtype=torch.int64)
    prediction[0, 2:7, 2:7] = reference[0, 2:7, 2:5] = 1
    reference[0, 2:7, 5:7] = 9
    evaluator = Evaluator("dice", "hd95", ignore_label=9, num_classes=num_classes)
    found = evaluator.evaluate(prediction, reference)
    assert found[0].classes == {1: {"dice": 1.0, "hd95": 0.0}}
    assert found[0].counts[1]["TN"] == 81 - 25


def test_single_cases_and_batches_are_measured_alike():
    one, other = [blobs(seed) for seed in range(3)], [blobs(seed) for seed in range(5, 8)]
    assert Evaluator().evaluate(torch.stack(one), torch.stack(other)) == Evaluator().evaluate(one, other)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_any_type_of_whole_numbers_will_do(dtype):
    assert Evaluator("dice").evaluate(ids([1, 0]).to(dtype), ids([1, 0])).mean_metrics == {"dice": 1.0}


def test_probabilities_and_intensities_are_no_label_ids():
    with pytest.raises(BadInputError, match=r"case_0000: the prediction holds fractions such as 0\.4, 0\.6"):
        Evaluator().evaluate(ids([0.4, 0.6]), ids([0, 1]))
    with pytest.raises(BadInputError, match=r"label id 70000; are these label maps"):
        Evaluator().evaluate(ids([70000, 0]), ids([0, 1]))


def test_shapes_that_differ_name_the_case():
    with pytest.raises(BadInputError, match=r"case_0001: the prediction has shape \(1, 1, 3\)"):
        Evaluator().evaluate([ids([1, 0]), ids([1, 0, 0])], [ids([1, 0]), ids([1, 0])])


def test_folders_are_matched_by_name_and_surfaces_use_the_spacing(tmp_path):
    label, moved = torch.zeros(1, 12, 12, 12), torch.zeros(1, 12, 12, 12)
    label[0, 2:6, 2:6, 2:6] = moved[0, 4:8, 2:6, 2:6] = 1
    predictions = written(tmp_path / "predictions", {"b": moved, "a": label})
    references = written(tmp_path / "references", {"a": label, "b": label}, suffix=".nii")
    found = Evaluator("dice", "hd95").evaluate(predictions, str(references))
    assert [case.case_id for case in found] == ["a", "b"]
    assert [case.metrics["dice"] for case in found] == [1.0, 0.5]
    assert [case.metrics["hd95"] for case in found] == [0.0, 4.0]  # two voxels of 2 mm
    assert found[1].prediction_file == str(predictions / "b.nii.gz")
    assert found[1].reference_file == str(references / "b.nii")


def test_every_unmatched_name_is_listed(tmp_path):
    predictions = written(tmp_path / "predictions", {"a": blobs(0), "x": blobs(1)})
    references = written(tmp_path / "references", {"a": blobs(0), "b": blobs(1), "c": blobs(2)})
    with pytest.raises(DatasetError) as caught:
        Evaluator().evaluate(predictions, references)
    assert caught.value.problems == (
        "x: prediction without reference",
        "b: reference without prediction",
        "c: reference without prediction",
        "1 of 2 predictions and 2 of 3 references have no partner; --common (common=True) compares the 1 in common",
    )


def test_every_file_on_another_grid_is_listed_before_anything_is_measured(tmp_path):
    shifted = torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0], dtype=torch.float64))
    shifted[0, 3] = 40.0
    references = written(tmp_path / "references", {"a": blobs(0), "b": blobs(0), "c": blobs(0)})
    predictions = written(tmp_path / "predictions", {"a": blobs(0)})
    written(predictions, {"b": blobs(0)}, affine=shifted)
    written(predictions, {"c": blobs(0, (24, 20, 17))})
    done = []
    with pytest.raises(DatasetError) as caught:
        Evaluator().evaluate(predictions, references, on_case=done.append)
    first, second = caught.value.problems
    assert first.startswith("b.nii.gz: origin (40.0, 0.0, 0.0) mm, the reference b.nii.gz has (0.0, 0.0, 0.0)")
    assert second.startswith("c.nii.gz: shape (24, 20, 17), the reference c.nii.gz has (24, 20, 16)")
    assert done == []


def test_datasets_are_measured_by_case_id(tmp_path):
    cases = {"a": blobs(0), "b": blobs(1)}
    references = SimpleDataset(written(tmp_path / "labels", cases), is_label=True)
    predictions = DatasetFromMemory([cases["b"], cases["a"]], case_ids=["b", "a"])
    found = Evaluator("dice").evaluate(predictions, references)
    assert [(case.case_id, case.metrics["dice"]) for case in found] == [("b", 1.0), ("a", 1.0)]
    assert Evaluator("dice").evaluate_dataset(MergedDataset(predictions, references)) == found


def test_lists_are_matched_by_position_and_take_their_ids_from_the_references(tmp_path):
    references = [written(tmp_path, {"a": blobs(0), "b": blobs(1)}) / f"{name}.nii.gz" for name in "ba"]
    found = Evaluator("dice").evaluate([blobs(1), blobs(0)], references)
    assert [(case.case_id, case.metrics["dice"]) for case in found] == [("b", 1.0), ("a", 1.0)]
    with pytest.raises(BadInputError, match="found 1 predictions and 2 references"):
        Evaluator().evaluate([blobs(0)], references)


def test_lists_of_files_that_share_names_are_matched_by_them_whatever_their_order(tmp_path):
    one, other = (written(tmp_path / name, {"a": blobs(0), "b": blobs(1)}) for name in ("one", "other"))
    predictions = [one / "b.nii.gz", one / "a.nii.gz"]
    found = Evaluator("dice").evaluate(predictions, [other / "a.nii.gz", other / "b.nii.gz"])
    assert [(case.case_id, case.metrics["dice"]) for case in found] == [("b", 1.0), ("a", 1.0)]
    with pytest.raises(DatasetError, match="b: prediction without reference"):
        Evaluator().evaluate(predictions, [other / "a.nii.gz"])


def test_nothing_to_compare_is_said(tmp_path):
    with pytest.raises(BadInputError, match="found no predictions"):
        Evaluator().evaluate([], [])
    with pytest.raises(BadInputError, match="no such file or folder; expected a folder of images"):
        Evaluator().evaluate(tmp_path / "nowhere", [])


def test_metrics_of_the_user_s_own_get_what_was_given_and_are_averaged_over_cases():
    def volume_error(prediction, reference):
        return (prediction.sum() - reference.sum()).abs()

    own = {"largest": lambda prediction, reference: float(prediction.max())}
    found = Evaluator(volume_error, own, "dice").evaluate([ids([1, 1]), ids([0, 1])], [ids([1, 0]), ids([0, 1])])
    assert found.metrics["volume_error"] == [1.0, 0.0]
    assert found.mean_metrics == {"dice": pytest.approx(5 / 6), "volume_error": 0.5, "largest": 1.0}
    assert Evaluator(volume_error).evaluate(ids([0.25]), ids([0.5])).mean_metrics == {"volume_error": 0.25}


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (("dise",), "no metric 'dise'.*Did you mean 'dice'"),
        ((lambda p, r: 0.0, lambda p, r: 1.0), "two metrics are called '<lambda>'"),
        (({"iou": lambda p, r: 0.0},), "two metrics are called 'iou'"),
    ],
)
def test_metrics_that_cannot_be_told_apart_are_refused(metrics, message):
    with pytest.raises(BadInputError, match=message):
        Evaluator(*metrics)


class Thresholding:
    """Stands in for a predictor of one class."""

    num_classes, num_channels, plan = (
        1,
        1,
        SimpleNamespace(ignore_label=7, regions=(), class_names=("background", "organ")),
    )

    def predict_image(self, image):
        image = image if isinstance(image, torch.Tensor) else load_image(image[0])
        return Prediction(case_id="", labels=(image > 0).long())

    @property
    def channels(self):
        return RunChannels(names=("",))


def test_images_are_predicted_and_the_predictor_says_what_is_measured(tmp_path):
    images = written(tmp_path / "images", {"a_0000": blobs(0).float() - 1, "b_0000": blobs(1).float() - 1})
    labels = {"a": (blobs(0) > 1).long(), "b": torch.where(blobs(1) > 1, 7, 0)}
    references = written(tmp_path / "labels", labels)
    found = Evaluator("dice").predict_and_evaluate(images, references, Thresholding())
    assert [(case.case_id, list(case.classes)) for case in found] == [("a", [1]), ("b", [1])]
    assert found[0].metrics["dice"] == 1.0
    assert math.isnan(found[1].metrics["dice"])  # all that was predicted is ignored
    in_memory = Evaluator("dice").predict_and_evaluate(
        [blobs(seed).float() - 1 for seed in (0, 1)], list(labels.values()), Thresholding()
    )
    assert in_memory.mean_metrics == found.mean_metrics


class OfRegions(Thresholding):
    """Stands in for a predictor of two overlapping regions."""

    num_classes = 2
    plan = SimpleNamespace(
        ignore_label=None,
        regions=(Region(name="whole", ids=(1, 2), paints=1), Region(name="core", ids=(2,), paints=2)),
        class_names=("background", "whole", "core"),
    )


@pytest.mark.parametrize("class_names", [None, {1: "edema", 2: "core of it"}])
def test_regions_of_the_predictor_have_its_names_not_those_given_for_ids(class_names):
    evaluator = Evaluator("dice", class_names=class_names)
    found = evaluator.predict_and_evaluate([blobs(0).float() - 1], [(blobs(0) > 1).long()], OfRegions())
    assert found.class_names == {1: "whole", 2: "core"}


def test_a_tolerance_of_an_id_is_not_taken_for_that_of_a_region_of_the_predictor():
    evaluator = Evaluator("surface_dice", class_names=["background", "edema", "core"], tolerance_mm={"edema": 2.0})
    with pytest.raises(BadInputError, match="the predictor's regions are measured: whole, core"):
        evaluator.predict_and_evaluate([blobs(0).float() - 1], [(blobs(0) > 1).long()], OfRegions())


def test_images_without_reference_are_listed(tmp_path):
    images = written(tmp_path / "images", {"a_0000": blobs(0), "b_0000": blobs(1)})
    references = written(tmp_path / "labels", {"a": blobs(0)})
    with pytest.raises(DatasetError, match="b: image without reference"):
        Evaluator().predict_and_evaluate(images, references, Thresholding())


@pytest.mark.slow
def test_no_case_stays_in_memory():
    import gc
    import weakref

    alive = []

    class Predictions(DatasetFromMemory):
        def load(self, idx):
            gc.collect()
            assert sum(reference() is not None for reference in alive) <= 1
            tensor = torch.zeros(1, 4, 4)
            alive.append(weakref.ref(tensor))
            return MetaTensor(tensor)

    Evaluator().evaluate(Predictions([0] * 6), [torch.zeros(1, 4, 4, dtype=torch.int64)] * 6)
    assert len(alive) == 6


def test_where_no_case_has_any_class_there_is_a_mean_of_nothing():
    empty = ids([0, 0])
    found = Evaluator("dice").evaluate(empty, empty)
    assert math.isnan(found.mean_metrics["dice"])
    assert math.isnan(found[0].metrics["dice"])


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [(torch.zeros(4, 4), r"\(4, 4\)"), (torch.zeros(1, 0, 4), r"\(1, 0, 4\)"), (torch.zeros(2, 4, 4), "2, 4, 4")],
)
def test_tensors_that_are_no_label_ids_of_a_case_are_refused(tensor, shape):
    with pytest.raises(BadInputError, match=f"case_0000: expected label ids .* got shape .*{shape}"):
        Evaluator().evaluate([tensor], [tensor])


def test_a_metric_of_the_user_s_own_must_return_one_number():
    with pytest.raises(BadInputError, match=r"each returned a tensor of shape \(1, 1, 2\)"):
        Evaluator({"each": lambda prediction, _: prediction}).evaluate(ids([0, 1]), ids([0, 1]))

    with pytest.raises(BadInputError, match="each returned None, expected one number"):
        Evaluator({"each": lambda *_: None}).evaluate(ids([0, 1]), ids([0, 1]))


def test_ids_may_be_text_as_in_json():
    evaluator = Evaluator("dice", class_names={"0": "background", "1": "a"})
    assert evaluator.evaluate(ids([0, 1]), ids([0, 1])).class_names == {1: "a"}
    assert Evaluator("dice", regions={"a": ["1"]}).evaluate(ids([0, 1]), ids([0, 1]))[0].classes == {1: {"dice": 1.0}}


@pytest.mark.parametrize(
    ("metrics", "options"),
    [
        ((), {"num_classes": 0}),
        ((), {"tolerance_mm": -1}),
        ((3,), {}),
        ((), {"class_names": {"a": "b"}}),
        ((), {"regions": {"a": []}}),
        ((), {"regions": [[-1]]}),
    ],
)
def test_options_that_cannot_work_are_refused(metrics, options):
    with pytest.raises(BadInputError):
        Evaluator(*metrics, **options)


def test_regions_are_measured_as_unions_of_ids_under_their_places():
    reference = torch.tensor([[[0, 1, 2, 2, 3]]])
    prediction = torch.tensor([[[0, 2, 2, 0, 1]]])
    (case,) = Evaluator("dice", regions=[(1, 2), (2,)], ignore_label=3).evaluate(prediction, reference)
    assert case.classes[1]["dice"] == pytest.approx(2 * 2 / (2 + 3))  # the ignored voxel counts for nothing
    assert case.classes[2]["dice"] == pytest.approx(2 * 1 / (2 + 2))


def test_the_cases_that_both_have_are_compared_when_asked_and_the_others_named(tmp_path):
    cases = {name: blobs(seed) for seed, name in enumerate("abcd")}
    few = written(tmp_path / "few", {"a": blobs(0), "x": blobs(1)})
    many = written(tmp_path / "many", cases)
    for predictions, references in ((few, many), (many, few), ({"a": blobs(0), "x": blobs(1)}, cases)):
        found = Evaluator("dice").evaluate(predictions, references, common=True)
        assert [(case.case_id, case.metrics["dice"]) for case in found] == [("a", 1.0)]
        assert found.left_out == ("b", "c", "d", "x")
    assert "left out, without a partner: b, c, d, x" in found.notes()
    with pytest.raises(BadInputError, match="no prediction has the name of a reference: the one has x, the other a"):
        Evaluator().evaluate({"x": blobs(0)}, {"a": blobs(0), "b": blobs(1)}, common=True)


@pytest.mark.parametrize("which", ["prediction", "reference"])
def test_ids_without_a_class_are_refused_by_case_and_id_and_all_such_cases_are_named(which):
    cases = {"a": ids([0, 1, 4]), "b": ids([0, 1, 2]), "c": ids([5, 4, 0])}
    plain = {name: ids([0, 1, 2]) for name in cases}
    sides = (cases, plain) if which == "prediction" else (plain, cases)
    for options in ({"num_classes": 3}, {"class_names": ["background", "liver", "tumour"]}):
        with pytest.raises(BadInputError) as caught:
            Evaluator("dice", **options).evaluate(*sides)
        first, second = str(caught.value).splitlines()
        assert first.startswith(f"a: the {which} holds the label ids 4; expected are 0, 1, 2")
        assert second.startswith(f"c: the {which} holds the label ids 4, 5; expected are 0, 1, 2")


def test_the_file_that_holds_an_unknown_id_is_named(tmp_path):
    folders = [written(tmp_path / name, {"a": ids([0, 4])}) for name in ("one", "other")]
    with pytest.raises(BadInputError, match=r"prediction .*one/a\.nii\.gz holds the label ids 4; .*other/a\.nii\.gz"):
        Evaluator("dice", num_classes=4).evaluate(*folders)


def test_ids_may_have_gaps_where_names_say_which_there_are():
    maps = ids([0, 1, 3])
    found = Evaluator("dice", class_names={0: "background", 1: "liver", 3: "tumour"}).evaluate(maps, maps)
    assert list(found[0].classes) == [1, 3]
    assert found.table().splitlines()[2].startswith("3 tumour")
    with pytest.raises(BadInputError, match="label ids 2"):
        Evaluator("dice", class_names={1: "liver", 3: "tumour"}).evaluate(ids([2, 0, 0]), maps)


def test_regions_by_name_name_the_lines_and_ids_of_no_region_are_refused_only_where_classes_are_known():
    maps = ids([0, 1, 2, 3])
    regions = {"whole": (1, 2), "core": 2}
    found = Evaluator("dice", regions=regions).evaluate(maps, maps)
    assert [line.split()[:2] for line in found.table().splitlines()[1:3]] == [["1", "whole"], ["2", "core"]]
    with pytest.raises(BadInputError, match="label ids 3"):
        Evaluator("dice", regions=regions, num_classes=3).evaluate(maps, maps)


def placed(label, flipped=(), order=(0, 1, 2), shift=0.0):
    """Return a label on a grid of 1 x 2 x 3 mm whose axes run another way, as another tool would store it."""
    affine = torch.diag(torch.tensor([1.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    affine[0, 3] = shift
    affine[:, :3] = affine[:, list(order)]
    stored = label.permute(0, *(axis + 1 for axis in order))
    for axis in flipped:
        affine[:, 3] += affine[:, axis] * (stored.shape[axis + 1] - 1)
        affine[:, axis] *= -1
    return MetaTensor(stored.flip([axis + 1 for axis in flipped]), affine=affine)


def test_cases_with_ids_without_a_class_are_all_named_where_another_s_axes_run_another_way():
    wrong, turned, reference = placed(blobs(0) + 20), placed(blobs(0), order=(2, 0, 1)), placed(blobs(0))
    with pytest.raises(BadInputError) as caught:
        Evaluator("dice", num_classes=9).evaluate(
            {"a": wrong, "b": turned, "c": wrong}, dict.fromkeys("abc", reference)
        )
    assert [line[:2] for line in str(caught.value).splitlines()] == ["a:", "c:"]


@pytest.mark.parametrize("options", [{"flipped": (0,)}, {"flipped": (0, 2)}, {"order": (2, 0, 1), "flipped": (1,)}])
def test_a_prediction_whose_axes_run_another_way_is_turned_to_its_reference(tmp_path, options):
    prediction, reference = placed(blobs(0), **options), placed(blobs(0))
    seen = []
    own = {"seen": lambda one, other: seen.append(torch.equal(one.as_tensor(), other.as_tensor())) or 1.0}
    assert Evaluator("dice", own).evaluate(prediction, reference).mean_metrics["dice"] == 1.0
    assert seen == [True]
    for name, label in (("one", prediction), ("other", reference)):
        save_image(label, tmp_path / name / "a.nii.gz")
    assert Evaluator("dice").evaluate(tmp_path / "one", tmp_path / "other").mean_metrics["dice"] == 1.0
    scans = [nibabel.load(tmp_path / name / "a.nii.gz") for name in ("one", "other")]
    assert Evaluator("dice").evaluate(scans[0], scans[1]).mean_metrics["dice"] == 1.0
    assert Evaluator("dice").evaluate([scans[0]], [tmp_path / "other/a.nii.gz"]).mean_metrics["dice"] == 1.0


def test_tensors_on_grids_of_other_places_are_refused_with_both():
    with pytest.raises(BadInputError, match=r"the prediction: origin \(40\.0.*the reference has \(0\.0"):
        Evaluator("dice").evaluate(placed(blobs(0), shift=40.0), placed(blobs(0)))


def test_probabilities_beside_label_maps_are_no_cases_and_other_files_are_named(tmp_path):
    folder = written(tmp_path / "predictions", {"a": blobs(0), "a_probabilities": blobs(0).float() / 2})
    references = written(tmp_path / "references", {"a": blobs(0)})
    (folder / "a.npz").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    save_image(torch.zeros(1, 4, 4, dtype=torch.uint8), folder / "view.png")
    found = Evaluator("dice").evaluate(folder, references)
    assert [case.case_id for case in found] == ["a"]
    assert found.passed_over == ("notes.txt", "view.png")
    assert found.notes() == ["ignored, not predictions of a case: notes.txt, view.png"]
    written(references, {"a_probabilities": blobs(1)})  # then it is a case of that name
    written(folder, {"a_probabilities": blobs(1)})
    assert len(Evaluator("dice").evaluate(folder, references)) == 2


def test_side_by_side_the_numbers_and_their_order_are_the_same(tmp_path):
    folders = [tmp_path / name for name in ("predictions", "references")]
    for offset, folder in enumerate(folders):
        folder.mkdir()
        written(folder, {f"case_{seed}": blobs(seed + 10 * offset) for seed in range(6)})
    evaluator, told = Evaluator("all"), []
    alone = evaluator.evaluate(*folders)
    for jobs in (3, None):
        told.clear()
        assert str(evaluator.evaluate(*folders, jobs=jobs, on_case=told.append).to_dict()) == str(alone.to_dict())
        assert told == [f"case_{seed}" for seed in range(6)]
    with pytest.raises(BadInputError, match="jobs must be at least 1"):
        evaluator.evaluate(*folders, jobs=0)


def test_side_by_side_all_cases_with_unknown_ids_are_named():
    cases = {f"case_{index}": ids([1, 5 * (index % 2)]) for index in range(6)}
    with pytest.raises(BadInputError) as error:
        Evaluator(num_classes=2).evaluate(cases, cases, jobs=3)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["case_1", "case_3", "case_5"]
