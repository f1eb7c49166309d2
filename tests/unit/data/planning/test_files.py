from __future__ import annotations

import json
from dataclasses import replace

import pytest

from candy_monai.data.planning.files import adopted_plan, keep_plan, plan_changes, read_plan
from candy_monai.errors import BadInputError, SettingsError
from tests.plans import PLAN

ZSCORE = replace(PLAN.normalization[0], scheme="zscore", mean=1.0, std=2.0)


def test_a_plan_is_read_from_a_file_of_its_own_from_one_that_holds_it_and_from_an_experiment(tmp_path):
    plain, holding = tmp_path / "plan.json", tmp_path / "experiment.json"
    plain.write_text(json.dumps(PLAN.to_dict()))
    holding.write_text(json.dumps({"bundle": "unet", "plan": PLAN.to_dict()}))
    assert read_plan(plain) == read_plan(holding) == read_plan(tmp_path) == PLAN


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "found text that is not JSON"),
        ("[1]", r"found \[1\]"),
        ("{}", "found {}"),
        ('{"plan": null}', "found None"),
        ('{"plan": {"num_dims": 3}}', "found the entries num_dims"),
        ('{"name": "x", "labels": {}}', "found the entries name, labels"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_file_what_was_found_and_what_to_give(tmp_path, content, found):
    file = tmp_path / "plan.json"
    file.write_text(content)
    with pytest.raises(BadInputError, match=rf"plan\.json: holds no plan, {found}.*; give the folder of an experiment"):
        read_plan(file)


def test_a_missing_file_is_refused_with_what_is_expected(tmp_path):
    expected = "there is no such file; give the folder of an experiment, or a file that holds a plan"
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(BadInputError, match=expected) as caught:
            read_plan(path)
        assert "Errno" not in str(caught.value)


def test_a_plan_of_another_version_is_refused_with_what_it_lacks_or_has_too_much(tmp_path):
    file, values = tmp_path / "plan.json", PLAN.to_dict()
    for changed, found in (({**values, "colour": 1}, "colour is not known"), (values, "it lacks strides")):
        changed = {name: value for name, value in changed.items() if name != "strides" or changed is not values}
        file.write_text(json.dumps(changed))
        with pytest.raises(BadInputError, match=rf"plan\.json: not a plan of this version \({found}\)"):
            read_plan(file)


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", "4"), ("batch_size", None), ("foreground_share", 2), ("patch_shape", 8)]
)
def test_a_value_that_no_plan_may_have_is_refused_by_its_name(tmp_path, name, value):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(PLAN.to_dict() | {name: value}))
    with pytest.raises(BadInputError, match=rf"plan\.json: {name}: got .*, expected"):
        read_plan(file)


def test_what_is_set_to_the_value_that_a_plan_has_is_taken():
    same = {"filters": "4,8", "spacing_mm": "1,1,1", "normalization": "nonorm", "orientation": "RAS", "num_classes": 3}
    given = replace(PLAN, spacing_mm=(1.0000001, 1.0, 1.0))
    adopted = adopted_plan(given, given, same, path="p")
    assert replace(adopted, chosen=()) == given
    assert "filters" in adopted.chosen
    two = replace(PLAN, channel_names=("a", "b"), normalization=PLAN.normalization * 2)
    assert adopted_plan(two, two, {"normalization": "nonorm"}, path="p").normalization == two.normalization


def test_a_plan_that_was_given_is_kept_but_for_what_is_set():
    made = replace(PLAN, dataset_name="Grown", batch_size=9, spacing_mm=(2.0, 2.0, 2.0))
    adopted = adopted_plan(PLAN, made, {"batch_size": "4", "num_epochs": "7"}, path="p")
    assert (adopted.spacing_mm, adopted.batch_size, adopted.num_epochs) == (PLAN.spacing_mm, 4, 7)
    assert adopted.dataset_name == "Grown"
    assert "patch_shape" in adopted.chosen  # so that no budget changes it


def test_an_entry_that_others_follow_cannot_be_set_in_a_plan_that_was_given():
    with pytest.raises(SettingsError, match="--set spacing_mm=1,1,2: the plan of p has 1,1,1, on which its other"):
        adopted_plan(PLAN, PLAN, {"spacing_mm": "1,1,2"}, path="p")


def test_a_plan_for_other_channels_or_classes_is_refused_with_both():
    with pytest.raises(BadInputError, match="its channel_names is MRI, the dataset's CT,PET; leave out --plan"):
        adopted_plan(PLAN, replace(PLAN, channel_names=("CT", "PET")), {}, path="p")
    with pytest.raises(BadInputError, match="its num_previous is 5, the dataset's 2"):
        adopted_plan(replace(PLAN, num_previous=5), replace(PLAN, num_previous=2), {}, path="p")


def test_only_what_preprocessing_and_training_follow_counts_as_changed():
    old = replace(PLAN, normalization=(ZSCORE,))
    new = replace(old, normalization=(replace(ZSCORE, mean=3.0),), median_shape=(9, 9, 9))
    assert plan_changes(old, new) == []
    moved = replace(new, spacing_mm=(1.0, 1.0, 2.5), normalization=(replace(ZSCORE, scheme="ct"),))
    assert plan_changes(old, moved) == ["spacing_mm 1,1,1 -> 1,1,2.5", "normalization"]


def test_a_plan_that_moved_with_the_dataset_is_told_once_with_the_file_of_the_old_one(tmp_path):
    def keep(plan, digest, wishes=("a",)):
        return keep_plan(tmp_path, plan, digest=digest, wishes=wishes)

    moved = replace(PLAN, batch_size=4)
    assert keep(PLAN, "one") is None
    assert keep(moved, "one", wishes=("b",)) is None  # the user asked for something else
    assert keep(PLAN, "two") is None
    changes, file = keep(moved, "three")
    assert changes == ["batch_size 2 -> 4"]
    assert read_plan(file) == PLAN
    assert keep(moved, "three") is None


def test_a_kept_plan_of_another_version_is_passed_over(tmp_path):
    keep_plan(tmp_path, PLAN, digest="one", wishes=())
    (file,) = tmp_path.iterdir()
    file.write_text('{"plan": {}}')
    assert keep_plan(tmp_path, replace(PLAN, batch_size=4), digest="two", wishes=()) is None


def test_a_plan_that_resamples_no_case_says_how_once_some_case_needs_it():
    given = replace(PLAN, resampling="none")
    assert adopted_plan(given, given, {}, path="p").resampling == "none"
    assert adopted_plan(given, replace(given, spacing_mm=(1.0, 1.0, 2.0)), {}, path="p").resampling == "extent"
    assert plan_changes(given, PLAN) == []
