import math

import pytest
import torch
from monai.data import MetaTensor

from candy_monai.data.pipelines.description import filled_holes, largest_component, without_small_components
from candy_monai.evaluation.cleaning import Cleaner, Trial
from candy_monai.evaluation.evaluator import Evaluator
from candy_monai.evaluation.scored_classes import ScoredClass

AFFINE = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64))
SHAPE = (1, 12, 12, 6)


def label_map(*boxes):
    """Return a label map with boxes of (id, start, end) along every axis."""
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    for label_id, start, end in boxes:
        labels[(0, *(slice(a, b) for a, b in zip(start, end, strict=True)))] = label_id
    return labels


ORGAN = (1, (2, 2, 1), (8, 8, 5))
CORE = (2, (4, 4, 2), (6, 6, 4))
STRAY = (1, (10, 10, 0), (12, 12, 2))
STRAY_CORE = (2, (10, 10, 4), (11, 11, 5))
HOLE = (0, (3, 3, 2), (4, 4, 3))


def cleaner(predictions, references, *, regions=False, labels=None):
    named = {"whole": (1, 2), "core": (2,)} if regions else {"organ": (1,), "core": (2,)}
    classes = [ScoredClass(index=i, name=name, ids=ids) for i, (name, ids) in enumerate(named.items(), start=1)]
    names = {0: "background", 1: "organ", 2: "core"}
    return Cleaner(
        case_ids=list(predictions),
        labels=labels or (lambda case_id, _: MetaTensor(predictions[case_id].clone(), affine=AFFINE)),
        reference=lambda case_id: MetaTensor(references[case_id], affine=AFFINE),
        evaluator=Evaluator("dice", class_names=names, regions=named if regions else None),
        classes=classes,
        exclusive=not regions,
    )


REFERENCES = {case_id: label_map(ORGAN, CORE) for case_id in "abcd"}


def kept(found):
    return [trial.step for trial in found.trials if trial.kept]


def test_strays_of_the_foreground_are_removed_where_that_helps():
    found = cleaner({case_id: label_map(ORGAN, CORE, STRAY) for case_id in "abcd"}, REFERENCES)
    before = found.result.mean_metrics["dice"]
    found.choose_steps()
    assert found.steps == [largest_component((1, 2))]
    assert found.result.mean_metrics["dice"] == 1.0 > before
    assert kept(found) == ["keep the largest component of the foreground"]


def test_a_step_that_removes_what_belongs_to_the_reference_is_not_kept():
    references = {case_id: label_map(ORGAN, CORE, STRAY) for case_id in "abcd"}
    found = cleaner(references, references)
    found.choose_steps()
    assert found.steps == []
    assert found.trials
    assert all(trial.reason.startswith("does not raise the mean Dice") for trial in found.trials)


def test_strays_of_one_class_within_the_other_leave_that_alone():
    references = {case_id: label_map(ORGAN, CORE, STRAY) for case_id in "abcd"}  # two organs
    found = cleaner({case_id: label_map(ORGAN, CORE, STRAY, STRAY_CORE) for case_id in "abcd"}, references)
    found.choose_steps()
    assert found.steps == [largest_component((2,))]
    assert found.result.mean_metrics["dice"] == 1.0
    (trial,) = (trial for trial in found.trials if trial.kept)
    gain = trial.after - trial.before
    assert trial.reason == f"raises the mean Dice of core by {gain:.4f}; better in 4 cases, worse in 0"


def test_small_components_go_by_their_volume_where_large_ones_are_several():
    # The median component of the reference has 6 * 6 * 4 - 8 = 136 voxels of 2 mm³; the stray one, of one voxel, 2 mm³.
    two = ((1, (0, 0, 0), (1, 1, 1)),)
    references = {case_id: label_map(ORGAN, CORE, (1, (10, 0, 0), (12, 12, 6))) for case_id in "abcd"}
    predictions = {case_id: label_map(ORGAN, CORE, (1, (10, 0, 0), (12, 12, 6)), *two) for case_id in "abcd"}
    found = cleaner(predictions, references)
    found.choose_steps()
    (step,) = found.steps
    assert step == without_small_components((1,), step["min_size"])
    assert 2 < step["min_size"] <= 272
    assert found.result.mean_metrics["dice"] == 1.0


def test_holes_are_filled_unless_the_other_class_is_in_them():
    found = cleaner({case_id: label_map(ORGAN, HOLE) for case_id in "abcd"}, {c: label_map(ORGAN) for c in "abcd"})
    found.choose_steps()
    assert found.steps == [filled_holes(1)]
    holes = ((0, (3, 3, 2), (4, 7, 4)), (0, (6, 3, 2), (7, 7, 4)))
    enclosed = cleaner({case_id: label_map(ORGAN, CORE, *holes) for case_id in "abcd"}, REFERENCES)
    enclosed.choose_steps()  # MONAI's FillHoles would fill the core, too
    assert enclosed.steps == []
    assert "lowers the mean Dice of core" in {trial.reason for trial in enclosed.trials}


def test_what_helps_no_more_cases_than_it_harms_is_not_kept():
    references = {"a": label_map(ORGAN), "b": label_map(ORGAN, (1, (9, 9, 0), (12, 12, 5)))}
    predictions = {case_id: label_map(ORGAN, (1, (9, 9, 0), (12, 12, 6))) for case_id in "ab"}
    found = cleaner(predictions, references)
    found.choose_steps()
    assert found.steps == []
    assert "helps fewer cases than it harms, or as many" in {trial.reason for trial in found.trials}


def test_a_class_that_is_never_predicted_is_left_as_it_is():
    found = cleaner({case_id: label_map(ORGAN) for case_id in "abcd"}, REFERENCES)
    found.choose_steps()
    assert found.steps == []
    assert all(trial.target != "core" for trial in found.trials)
    assert found.result.class_means[2]["dice"] == 0.0


def test_a_class_that_no_case_has_makes_no_step():
    organ = {case_id: label_map(ORGAN) for case_id in "ab"}
    found = cleaner({case_id: label_map(ORGAN, STRAY) for case_id in "ab"}, organ)
    found.choose_steps()
    assert found.result.class_means[1]["dice"] == 1.0
    assert found.result.mean_metrics["dice"] == 1.0


def test_of_regions_the_parts_are_those_of_their_union():
    found = cleaner({case_id: label_map(ORGAN, CORE, STRAY) for case_id in "abcd"}, REFERENCES, regions=True)
    found.choose_steps()
    assert found.steps == [largest_component((1, 2))]
    assert found.result.mean_metrics["dice"] == 1.0


@pytest.mark.parametrize(("best", "thresholds"), [((0.3, 0.5), (0.3, 0.5)), ((0.5, 0.7), (0.5, 0.7)), ((0.5, 0.5), ())])
def test_the_threshold_of_each_region_is_the_one_with_the_best_dice(best, thresholds):
    def labels(_, given):
        off = [abs(mine - right) for mine, right in zip(given or (0.5, 0.5), best, strict=True)]
        made = label_map(ORGAN, CORE)
        made[0, 2 : 2 + round(10 * off[0])] = 0  # worse, the farther the threshold is from the best one
        made[0, 4:6, 4:6, 2:4][: min(1, round(10 * off[1]))] = 1
        return MetaTensor(made, affine=AFFINE)

    found = cleaner(REFERENCES, REFERENCES, regions=True, labels=labels)
    found.choose_thresholds((0.3, 0.5, 0.7))
    assert found.thresholds == thresholds
    assert found.result.mean_metrics["dice"] == 1.0


def test_a_trial_s_undefined_dice_is_null_in_json():
    trial = Trial(step="s", target=None, before=0.5, after=math.nan, better=0, worse=0, kept=False, reason="r")
    assert (trial.to_dict()["before"], trial.to_dict()["after"]) == (0.5, None)


def test_the_labels_and_references_given_stay_as_they_are():
    given = {case_id: MetaTensor(label_map(ORGAN, HOLE, STRAY), affine=AFFINE) for case_id in "ab"}
    before = {case_id: labels.clone() for case_id, labels in given.items()}
    found = cleaner(given, REFERENCES, labels=lambda case_id, _: given[case_id])
    found.choose_steps()
    assert all(torch.equal(given[case_id], before[case_id]) for case_id in given)
