from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from candy_monai.errors import BadInputError
from candy_monai.evaluation.evaluator import Evaluator
from tests.label_maps import blobs, ids, written


def test_the_definitions_say_with_what_tolerance_and_rule_and_stand_in_the_summary():
    names = ["background", "organ", "tumour"]
    found = Evaluator(
        "dice",
        "surface_dice",
        "lesion_f1",
        class_names=names,
        ignore_label=9,
        tolerance_mm={"tumour": 2.5},
        lesions="brats",
    ).evaluate(ids([1, 1, 0, 2]), ids([1, 0, 0, 2]))
    texts = found.definitions
    assert texts["SurfaceDice"].endswith("tolerance 2.5 mm for tumour, 1 mm for the others")
    assert "a dilation of 3 voxels" in texts["lesions"]
    assert "label id 9" in texts["ignored"]
    assert found.to_dict()["definitions"] == dict(texts)


@pytest.mark.parametrize("tolerances", [{1: 0.5, 2: 3.0}, {"organ": 0.5, "2": 3.0}])
def test_each_class_has_its_own_tolerance(tolerances):
    prediction, reference = blobs(0), blobs(10)
    options = {"class_names": ["background", "organ", "tumour"]}
    found = Evaluator("surface_dice", tolerance_mm=tolerances, **options).evaluate(prediction, reference)
    for index, tolerance in ((1, 0.5), (2, 3.0)):
        alone = Evaluator("surface_dice", tolerance_mm=tolerance, **options).evaluate(prediction, reference)
        assert found[0].classes[index] == alone[0].classes[index]
    assert found[0].classes[1] != found[0].classes[2]


def test_a_tolerance_of_no_class_is_refused():
    with pytest.raises(BadInputError, match="no class 'liver'; there are 0 background, 1 organ"):
        Evaluator("surface_dice", class_names=["background", "organ"], tolerance_mm={"liver": 1.0})


def test_volumes_are_of_the_reference_s_voxels_in_space(tmp_path):
    cases = {"a": blobs(0)}
    folders = [tmp_path / name for name in ("predictions", "references")]
    for folder, label in zip(folders, (blobs(0).clamp(max=1), blobs(0)), strict=True):
        folder.mkdir()
        written(folder, {"a": label})
    (case,) = Evaluator("volumes").evaluate(*folders)
    voxels = [int((cases["a"] == index).sum()) for index in (1, 2)]
    assert case.classes[1] == pytest.approx(
        {
            "volume_ml": sum(voxels) * 0.006,
            "reference_volume_ml": voxels[0] * 0.006,
            "volume_difference_ml": voxels[1] * 0.006,
            "volume_error_ml": voxels[1] * 0.006,
        }
    )
    (nowhere,) = Evaluator("volume_ml").evaluate(blobs(0), blobs(0))
    assert math.isnan(nowhere.classes[1]["volume_ml"])


def test_what_is_defined_without_a_class_counts_for_cases_that_do_not_have_it_too():
    found = Evaluator("dice", "specificity", "lesion_false_positives").evaluate(
        [ids([1, 0, 1, 0]), ids([0, 0, 0, 0])], [ids([0, 0, 1, 0]), ids([0, 0, 0, 0])]
    )
    assert found.metrics["lesion_false_positives"] == [1.0, 0.0]
    assert found.mean_metrics["lesion_false_positives"] == 0.5
    assert found[1].classes[1]["specificity"] == 1.0
    assert math.isnan(found[1].classes[1]["dice"])


def test_regions_have_surfaces_and_lesions_too():
    prediction, reference = ids([1, 2, 0, 0, 2, 0]), ids([1, 1, 0, 0, 0, 2])
    found = Evaluator("hd100", "lesion_recall", regions={"whole": [1, 2]}).evaluate(prediction, reference)
    assert found[0].classes == {1: {"hd100": 1.0, "lesion_recall": 0.5}}


def test_of_many_classes_each_has_the_numbers_that_it_has_alone():
    draw = np.random.default_rng(0)
    maps = [
        torch.from_numpy(draw.integers(0, 118, (5, 6, 7)).repeat(3, 0).repeat(2, 1).repeat(2, 2))[None] for _ in "ab"
    ]
    maps[0][maps[1] > 20] = maps[1][maps[1] > 20]
    metrics = ("dice", "hd95", "surface_dice", "lesion_f1")
    found = Evaluator(*metrics, num_classes=118).evaluate(*maps)
    assert len(found[0].classes) == 117
    for index in (3, 17, 90, 117):
        (alone,) = Evaluator(*metrics).evaluate(*((labels == index).int() for labels in maps))
        assert found[0].classes[index] == pytest.approx(alone.classes[1], nan_ok=True)
