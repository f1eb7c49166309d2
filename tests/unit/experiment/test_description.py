import dataclasses
import json

import numpy as np
import pytest

from candy_monai.errors import ExperimentError
from candy_monai.experiment.description import (
    FORMAT,
    BudgetRecord,
    DatasetRecord,
    ExperimentDescription,
    describe_trainer,
    differences,
    example_shape,
    read_description,
    write_description,
)


def _described(**entries):
    return ExperimentDescription.from_dict({"format": FORMAT, **entries})


def test_what_is_written_is_read_again_with_what_this_version_does_not_know(tmp_path):
    dataset = DatasetRecord(folder="d", store="s", training=("a", "b"), validation=())
    described = _described(trainer="T", dataset=dataset.to_dict(), regions=[{"paints": 2}], site="north")
    write_description(tmp_path, described)
    read = read_description(tmp_path)
    assert (read.trainer, read.dataset, read.regions, read.more) == ("T", dataset, [{"paints": 2}], {"site": "north"})
    assert set(read.environment) >= {"python", "torch", "git_commit"}
    assert read.differences(described) == []


def test_a_trainer_s_own_entries_are_kept_as_json_and_one_that_takes_a_name_of_another_is_refused():
    described = describe_trainer("Mine", {"num_classes": np.int64(3), "sites": ("north",), "data": "all"})
    assert (described.num_classes, described.more, described.data) == (3, {"sites": ["north"]}, "all")
    with pytest.raises(
        ExperimentError, match="experiment.json with the entries that Mine adds: dataset is 'BraTS', .*rename"
    ):
        describe_trainer("Mine", {"dataset": "BraTS"})


def test_a_description_of_the_first_format_is_read(tmp_path):
    (tmp_path / "experiment.json").write_text('{"format": 1, "settings": {"num_epochs": 3}}')
    assert read_description(tmp_path).setting("num_epochs") == 3


@pytest.mark.parametrize(
    "entries",
    [
        {"plan": []},
        {"bundle": 3},
        {"num_classes": True},
        {"regions": ["x"]},
        {"regions": [{"name": "whole"}]},
        {"dataset": {"training": "case"}},
        {"dataset": {"training": [["case"]]}},
        *({"network": {"example_shape": [1, size, 8]}} for size in ("wide", None, 0, -1, 2.5, 10**30)),
    ],
    ids=str,
)
def test_a_damaged_entry_is_refused_by_its_name_and_the_file_s(tmp_path, entries):
    (tmp_path / "experiment.json").write_text(json.dumps({"format": FORMAT, **entries}))
    names = "plan|bundle|num_classes|regions|dataset.training|network.example_shape"
    with pytest.raises(ExperimentError, match=rf"experiment\.json: ({names}) is"):
        read_description(tmp_path)


@pytest.mark.parametrize(
    ("saved", "present"),
    [
        ({"parts": None}, {"parts": {"network": "a"}}),
        ({"inferer": "custom"}, {"inferer": {"_target_": "monai.inferers.SimpleInferer"}}),
        (
            {"inferer": {"kind": "windows", "window_shape": [8, 8], "overlap": 0.5, "batch_size": None}},
            {"inferer": {"_target_": "candy_monai.WindowInferer", "roi_size": [8, 8]}},
        ),
        ({"plan": {"patch": [8]}}, {"plan": {"patch": (8,), "resampling": "extent"}}),
        ({"dataset": {"folder": "here", "digest": "d"}}, {"dataset": {"folder": "there", "digest": "d"}}),
    ],
    ids=["parts", "custom", "windows", "resampling", "moved"],
)
def test_what_earlier_versions_said_otherwise_or_not_at_all_is_no_difference(saved, present):
    assert _described(**saved).differences(_described(**present)) == []


def test_a_folder_without_a_description_is_no_experiment(tmp_path):
    with pytest.raises(ExperimentError, match=r"no experiment\.json"):
        read_description(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 200_000, json.dumps({"format": 99})], ids=["empty", "cut", "list", "deep", "newer"]
)
def test_a_description_of_another_format_is_refused_by_name(tmp_path, text):
    (tmp_path / "experiment.json").write_text(text)
    with pytest.raises(ExperimentError, match=r"experiment\.json"):
        read_description(tmp_path)


def test_the_shape_that_the_network_was_built_for_is_a_tuple():
    assert example_shape("runs/a", _described(network={"example_shape": [1, 32, 48]})) == (1, 32, 48)


@pytest.mark.parametrize("description", [{}, {"network": None}, {"network": {}}, {"network": {"example_shape": []}}])
def test_a_description_without_that_shape_is_refused_by_the_folder_s_name(description):
    with pytest.raises(ExperimentError, match="runs/a: experiment.json does not say the shape"):
        example_shape("runs/a", _described(**description))


def test_equal_descriptions_do_not_differ_whether_they_went_through_json_or_not():
    saved = {"network": {"arguments": {"filters": [8, 16], "1": 2.0}}, "plan": None}
    assert differences(saved, {"network": {"arguments": {"filters": (8, 16), 1: 2.0}}, "plan": None}) == []


def test_each_entry_that_differs_is_named_with_both_values():
    saved = {"a": {"b": 1, "c": 2}, "gone": 3}
    assert differences(saved, {"a": {"b": 1, "c": 4}, "new": 5}) == ["a.c: 2 -> 4", "gone: 3 -> None", "new: None -> 5"]


def test_what_a_budget_was_spent_on_is_kept_and_is_no_difference_to_a_run_without(tmp_path):
    candidates = ({"configuration": "2d", "num_steps": 900, "is_chosen": True},)
    budget = BudgetRecord(budget_s=600.0, usable_s=500, amp="bf16", candidates=candidates)
    described = dataclasses.replace(_described(), budget=budget)
    write_description(tmp_path, described)
    assert read_description(tmp_path).budget == budget
    assert described.differences(_described()) == []
    assert ExperimentDescription.from_dict({"format": 2}).budget is None
    with pytest.raises(ExperimentError, match=r"budget\.candidates is \[3\]: expected objects"):
        ExperimentDescription.from_dict({"format": 2, "budget": {"candidates": [3]}})


def test_long_values_are_cut_short():
    (line,) = differences({"ids": list(range(100))}, {"ids": []})
    assert len(line) < 100
    assert line.endswith("... -> []")


def test_a_planned_run_without_the_entry_of_its_inferer_has_the_plan_s():
    assert _described(plan={"patch": [8]}).inferer == "plan"
    assert _described(plan={"patch": [8]}, inferer=None).inferer is None
    assert _described().inferer is None
