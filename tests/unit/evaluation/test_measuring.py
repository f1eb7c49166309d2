import math

import pytest
import torch
from monai.data import MetaTensor

from candy_monai.errors import BadInputError
from candy_monai.evaluation.class_metrics import ClassCounts
from candy_monai.evaluation.measuring import ComparedCase, Measure, confusion


def _measure(**options):
    defaults = {"label_ids": None, "ignore_label": None, "include_background": False, "regions": None}
    return Measure(**{"names": ("dice",), "own": {}, "tolerance_mm": 1.0, **defaults, **options})


def _case(prediction, reference):
    return ComparedCase(case_id="a", prediction=torch.tensor([[prediction]]), reference=torch.tensor([[reference]]))


def test_each_class_has_its_metrics_and_its_voxels():
    measured, absent = _measure(names=("dice", "iou"))(_case([0, 1, 1, 2], [0, 1, 2, 2]))
    assert measured.classes == {
        1: {"dice": pytest.approx(2 / 3), "iou": 0.5},
        2: {"dice": pytest.approx(2 / 3), "iou": 0.5},
    }
    assert measured.counts[1] == {"TP": 1, "FP": 1, "FN": 0, "TN": 2, "n_pred": 2, "n_ref": 1}
    assert absent.num_voxels == 4


def test_regions_are_measured_by_their_places_without_ignored_voxels():
    measured, absent = _measure(regions=((1, 2), (2,)), ignore_label=3)(_case([1, 2, 0, 2], [2, 2, 1, 3]))
    assert {place: values["dice"] for place, values in measured.classes.items()} == {1: 0.8, 2: pytest.approx(2 / 3)}
    assert absent.num_voxels == 3


def test_metrics_of_the_user_see_the_tensors_as_they_are():
    seen = []
    own = {"mine": lambda prediction, reference: seen.append((prediction, reference)) or 0.5}
    case = _case([1], [1])
    assert _measure(own=own, names=())(case)[0].values == {"mine": 0.5}
    assert seen == [(case.prediction, case.reference)]


def test_a_metric_that_returns_no_number_is_named():
    with pytest.raises(BadInputError, match=r"mine returned a tensor of shape \(2,\)"):
        _measure(own={"mine": lambda *_: torch.ones(2)})(_case([1], [1]))


def test_a_class_in_neither_has_no_value_and_an_entry_only_when_it_was_asked_for():
    assert 2 not in _measure()(_case([1], [1]))[0].classes
    assert math.isnan(_measure(label_ids=(0, 1, 2))(_case([1], [1]))[0].classes[2]["dice"])


def test_the_geometry_is_the_reference_s():
    case = _case([1], [1])
    assert case.geometry() is None
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0]))
    reference = MetaTensor(case.reference, affine=affine)
    placed = ComparedCase(case_id="a", prediction=case.prediction, reference=reference)
    assert placed.geometry().spacing_mm == (2.0, 3.0)


def test_voxels_are_counted_by_where_they_are():
    counts = ClassCounts(common=2, predicted=5, referenced=4, num_voxels=20)
    assert confusion(counts) == {"TP": 2, "FP": 3, "FN": 2, "TN": 13, "n_pred": 5, "n_ref": 4}
