import json
from datetime import datetime
from pathlib import Path

import pytest

from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.experiment.description import DESCRIPTION, read_description
from candy_monai.experiment.runs import (
    RunSummary,
    configurations_below,
    distinct_names,
    folds_below,
    names_of_runs,
    refuse_folder_of_runs,
    refuse_run,
    runs_below,
    what_is_below,
)


def _run(folder):
    folder.mkdir(parents=True)
    (folder / DESCRIPTION).write_text(json.dumps({"format": 2, "settings": {"num_epochs": 7}}))
    return folder


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/x", "/a/y"], ["x", "y"]),
        (["/a/x", "/b/x", "/b/y"], ["a/x", "b/x", "b/y"]),
        (["/x", "/a/b/x"], ["/x", "b/x"]),
    ],
)
def test_runs_are_named_by_as_much_of_their_paths_as_tells_them_apart(paths, names):
    assert distinct_names([Path(path) for path in paths]) == names


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        (["/c/fold_0/A/1", "/c/fold_1/A/2", "/e/A/3"], ["fold_0", "fold_1", "3"]),
        (["/c/2d/fold_0/A/1", "/c/3d/fold_0/A/2"], ["2d/fold_0", "3d/fold_0"]),
        (["/c/fold_0/A/1", "/c/fold_0/A/2"], ["1", "2"]),
        (["/1", "/c/fold_0/A/2"], ["1", "fold_0"]),
    ],
)
def test_folds_are_named_by_their_numbers(runs, names):
    assert names_of_runs([Path(run) for run in runs]) == names


def test_runs_are_found_at_any_depth_and_not_within_runs_or_hidden_folders(tmp_path):
    runs = {_run(tmp_path / place) for place in ("A/20251101-10-aaaa", "c/fold_0/A/20251101-10-bbbb", "x")}
    _run(tmp_path / "x" / "inside")
    _run(tmp_path / ".store" / "y")
    _run(tmp_path / "mlartifacts" / "x" / "0af8" / "artifacts")  # MLflow's copy of what a run has
    assert set(runs_below(tmp_path)) == runs
    assert runs_below(tmp_path / "x" / "inside") == []


def test_many_runs_are_named_in_part(tmp_path):
    for number in range(15):
        _run(tmp_path / f"run{number:02d}")
    text = what_is_below(tmp_path, call="predict {run} IN")
    assert "below it are 15 runs:" in text
    assert text.count("state unknown") == 12
    assert "and 3 older ones" in text
    assert "Give one: predict " in text


def test_folds_are_those_of_the_folders_and_of_the_summary(tmp_path):
    assert folds_below(tmp_path) == {}
    first = _run(tmp_path / "fold_0" / "A" / "20251101-10-aaaa")
    assert folds_below(tmp_path) == {0: first}
    (tmp_path / "fold_1").mkdir()
    (tmp_path / "crossval.json").write_text(json.dumps({"folds": [{"fold": 0}, {"fold": 1}, {"fold": 2}]}))
    assert folds_below(tmp_path) == {0: first, 1: None, 2: None}
    assert folds_below(first) == folds_below(tmp_path / "missing") == {}


def test_a_run_that_ended_early_is_not_said_to_lack_epochs():
    facts = {"folder": Path("run"), "saved_at": datetime(2025, 11, 1), "num_epochs": 40, "epochs_done": 6}
    assert "finished, 6 epochs" in str(RunSummary(**facts, is_finished=True))
    assert "not finished, 6 of 40 epochs" in str(RunSummary(**facts, is_finished=False))


def test_the_folds_of_a_cross_validation_are_offered_together_where_the_command_takes_them(tmp_path):
    for fold in range(2):
        _run(tmp_path / "crossval-D" / f"fold_{fold}" / "A" / "20251101-10-aaaa")
    offered = f"Or the 2 folds of a cross-validation together: predict {tmp_path / 'crossval-D'} IN"
    assert what_is_below(tmp_path, call="predict {run} IN", takes_folds=True).endswith(offered)
    assert "together" not in what_is_below(tmp_path, call="forecast {run}")


def test_whoever_asks_for_a_run_is_told_of_those_below(tmp_path):
    run = _run(tmp_path / "A" / "20251101-10-aaaa")
    with pytest.raises(ExperimentError, match=rf"not an experiment folder .*below it is a run:\n  - {run}: "):
        read_description(tmp_path)
    with pytest.raises(BadInputError, match=rf"(?s)is not a run itself; below it .*Give one: forecast {run}"):
        refuse_folder_of_runs(tmp_path, call="forecast {run}")
    refuse_folder_of_runs(run, call="")


def test_a_run_in_place_of_label_maps_is_refused(tmp_path):
    run = _run(tmp_path / "A" / "20251101-10-aaaa")
    for folder in (run, tmp_path):
        with pytest.raises(BadInputError, match=rf"candy-monai predict {run} IMAGES PREDICTIONS"):
            refuse_run(folder)
    (tmp_path / "a.nii.gz").touch()
    refuse_run(tmp_path)


def test_configurations_lie_in_the_folder_of_their_cross_validation(tmp_path):
    folder = tmp_path / "crossval-D"
    for place in ("2d", "../elsewhere", "deeper/3d"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    names = dict.fromkeys(["2d", "3d", "../elsewhere", "deeper/3d", "..", ".", str(tmp_path), ""])
    (folder / "crossval.json").write_text(json.dumps({"configurations": names}))
    assert configurations_below(folder) == {"2d": folder / "2d"}
