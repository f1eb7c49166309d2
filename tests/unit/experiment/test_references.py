import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from candy_monai.experiment.description import ExperimentDescription, read_description
from candy_monai.experiment.references import (
    folder_of_experiments,
    have_same_settings,
    references_as_text,
    references_of,
)


def make_run(folder: Path, *, age: float = 0.0, epochs: int = 10, planned: int = 10, **entries) -> Path:
    """Write the description and the scores of a run, ``age`` seconds old."""
    folder.mkdir(parents=True)
    dataset = {"digest": "d1", "labels": {"background": 0, "cord": 1}}
    settings = {"num_epochs": planned, "time_limit_s": entries.pop("time_limit_s", None)}
    description = {"format": 2, "trainer": "UNetTrainer", "num_classes": 2, "score_range": [0.0, 1.0]}
    content = {**description, "dataset": dataset, "settings": settings, "parts": {"criterion": "Dice"}, **entries}
    (folder / "experiment.json").write_text(json.dumps(content))
    rows = "".join(f"{epoch},{epoch / 20!r}\n" for epoch in range(1, epochs + 1))
    (folder / "metrics.csv").write_text("epoch,val score\n" + rows)
    os.utime(folder / "experiment.json", (1e9 - age, 1e9 - age))
    return folder


def found(run: Path, **arguments) -> list[str]:
    references = references_of(read_description(run), folder_of_experiments(run), but=run, **arguments)
    return [reference.folder.name for reference in references]


@pytest.fixture
def own(tmp_path):
    return make_run(tmp_path / "UNetTrainer" / "own", epochs=4)


def test_finished_runs_of_the_same_dataset_are_found_the_newest_first_and_never_the_run_itself(own, tmp_path):
    make_run(tmp_path / "UNetTrainer" / "older", age=20)
    make_run(tmp_path / "OtherTrainer" / "newer", age=10, trainer="OtherTrainer")
    assert found(own) == ["newer", "older"]


def test_two_runs_with_the_same_settings_are_enough_to_leave_out_those_with_others(own, tmp_path):
    parts = {"criterion": "Dice", "optimizer": {"name": "SGD"}}
    make_run(tmp_path / "T" / "same")
    make_run(tmp_path / "T" / "another optimizer", age=1, parts=parts)
    make_run(tmp_path / "T" / "longer", age=2, epochs=20, planned=20)
    make_run(tmp_path / "T" / "another plan", age=3, plan={"batch_size": 3})
    assert found(own) == ["same", "another optimizer", "longer", "another plan"]
    description = read_description(own)
    assert [r.same_settings for r in references_of(description, tmp_path, but=own)] == [True, False, False, False]
    make_run(tmp_path / "T" / "a fold", age=4, parts={"criterion": "Dice", "training data": "another"})
    assert found(own) == ["same", "a fold"]
    assert have_same_settings(references_of(description, tmp_path, but=own))


def test_a_run_does_not_learn_from_itself_once_it_is_finished_nor_from_a_copy_of_it(tmp_path):
    own = make_run(tmp_path / "UNetTrainer" / "own")
    make_run(tmp_path / "backup" / "UNetTrainer" / "own")
    assert found(own) == []


def test_the_scores_of_a_reference_are_those_of_its_epochs(own, tmp_path):
    make_run(tmp_path / "UNetTrainer" / "other")
    (reference,) = references_of(read_description(own), tmp_path, but=own)
    np.testing.assert_allclose(reference.scores, np.arange(1, 11) / 20)


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": {"digest": "d2", "labels": {"background": 0, "cord": 1}}},
        {"dataset": {"digest": "d1", "labels": {"background": 0, "lesion": 1}}},
        {"dataset": {"labels": {"background": 0, "cord": 1}}},
        {"dataset": None},
        {"num_classes": 3},
        {"score_range": [None, 0.0]},
        {"regions": [{"paints": 1}]},
    ],
    ids=str,
)
def test_runs_of_another_task_are_left_out(own, tmp_path, other):
    make_run(tmp_path / "UNetTrainer" / "other", **other)
    assert found(own) == []


def test_losses_are_compared_only_if_they_are_the_same(tmp_path):
    loss = {"score_range": [None, 0.0]}
    own = make_run(tmp_path / "T" / "own", **loss)
    make_run(tmp_path / "T" / "same", **loss)
    make_run(tmp_path / "T" / "focal", **loss, parts={"criterion": "Focal"})
    make_run(tmp_path / "T" / "mine", **loss, trainer="MyTrainer")
    assert found(own) == ["same"]


def test_runs_that_are_not_finished_or_that_early_stopping_ended_are_left_out(own, tmp_path):
    make_run(tmp_path / "T" / "half", epochs=5)
    stopped = make_run(tmp_path / "T" / "stopped", epochs=5)
    (stopped / "validation.json").write_text("{}")
    assert found(own) == []


def test_a_run_that_its_budget_ended_is_finished_once_its_best_weights_are_scored(own, tmp_path):
    budget = make_run(tmp_path / "T" / "budget", epochs=7, planned=1000, time_limit_s=60.0)
    assert found(own) == []
    (budget / "validation.json").write_text("{}")
    assert found(own) == ["budget"]


def test_files_that_cannot_be_read_are_passed_over(own, tmp_path):
    (make_run(tmp_path / "T" / "damaged") / "experiment.json").write_text("{")
    (make_run(tmp_path / "T" / "no-metrics") / "metrics.csv").unlink()
    make_run(tmp_path / "T" / "good")
    assert found(own) == ["good"]


def test_another_column_is_compared_among_runs_of_the_same_loss(own, tmp_path):
    other = make_run(tmp_path / "T" / "other")
    (other / "metrics.csv").write_text("epoch,val score,val loss\n" + "".join(f"{e},0.1,{e}\n" for e in range(1, 11)))
    make_run(tmp_path / "T" / "without the column")
    assert found(own, column="val loss") == ["other"]


def test_a_run_that_does_not_know_its_data_has_no_references(tmp_path):
    make_run(tmp_path / "T" / "other")
    assert references_of(ExperimentDescription(), tmp_path) == ()


@pytest.mark.parametrize("configuration", [".", "2d"])
def test_a_fold_knows_the_other_folds_and_the_runs_beside_its_cross_validation(tmp_path, configuration):
    crossval = tmp_path / "crossval-Data" / configuration
    own = make_run(crossval / "fold_1" / "T" / "own", epochs=2)
    make_run(crossval / "fold_0" / "T" / "fold", age=5)
    make_run(tmp_path / "T" / "plain", age=9)
    assert folder_of_experiments(own) == tmp_path.resolve()
    assert found(own) == ["fold", "plain"]


def test_the_log_says_how_many_there_are_and_which(own, tmp_path):
    for number in range(7):
        make_run(tmp_path / "T" / f"run{number}", age=number)
    references = references_of(read_description(own), tmp_path, but=own)
    text = references_as_text(references, tmp_path)
    named = ", ".join(str(Path("T", f"run{number}")) for number in range(5))
    expected = f"The forecast uses 7 earlier runs on this dataset in {tmp_path}: {named}, 2 more"
    assert text == f"{expected}, with the settings of this run"
    others = [dataclasses.replace(reference, same_settings=False) for reference in references]
    assert references_as_text(others, tmp_path) == expected
    assert "uses an earlier run on" in references_as_text(references[:1], tmp_path)
