import json
from datetime import datetime

import pytest

from candy_monai.experiment.description import read_description
from candy_monai.report.document import RunFacts, document_of_folder, read_final, steps_per_epoch
from tests.pages import made_up_folder, made_up_run

NOW = datetime(2026, 1, 1)
FINAL = {
    "foreground_mean": {"Dice": 0.75},
    "class_names": {"1": "kidney"},
    "metric_per_case": [{"case": "a", "metrics": {"1": {"Dice": 0.75, "n_ref": 3}}}],
}


def test_a_finished_run_shows_the_scores_of_its_best_weights(tmp_path):
    made_up_run(tmp_path / "run")
    (tmp_path / "run" / "validation.json").write_text(json.dumps(FINAL))
    table = document_of_folder(tmp_path / "run", now=NOW).content["tables"][0]
    assert [row[0] for row in table["rows"]] == ["a"]
    assert table["note"].startswith("The best weights")


def test_scores_of_the_best_weights_from_before_a_run_went_on_are_not_taken_for_its_own(tmp_path):
    made_up_run(tmp_path / "run", settings={"num_epochs": 20})
    (tmp_path / "run" / "validation.json").write_text(json.dumps(FINAL))
    document = document_of_folder(tmp_path / "run", now=NOW)
    assert document.content["status"]["state"] == "interrupted"
    assert document.content["tables"][0]["note"] == "The last validation of epoch 10."


def test_without_a_file_of_scores_nothing_is_damaged(tmp_path):
    assert read_final(tmp_path) == (None, "")


@pytest.mark.parametrize("text", ["{", "3", "{}", '{"metric_per_case": [3]}'])
def test_a_damaged_file_of_scores_is_named_on_the_page(tmp_path, text):
    made_up_run(tmp_path / "run")
    (tmp_path / "run" / "validation.json").write_text(text)
    content = document_of_folder(tmp_path / "run", now=NOW).content
    (sentence,) = content["damaged"]
    assert "since validation.json is damaged: " in sentence
    assert content["tables"][0]["note"] == "The last validation of epoch 10."
    assert "Final score" not in [tile["label"] for tile in content["tiles"]]


def test_a_file_of_scores_that_cannot_be_read_is_named_too(tmp_path):
    (tmp_path / "validation.json").mkdir()
    final, sentence = read_final(tmp_path)
    assert final is None
    assert "validation.json is damaged" in sentence


def test_damaged_findings_are_named_on_the_page(tmp_path):
    made_up_run(tmp_path / "run")
    (tmp_path / "run" / "findings.json").write_text("{")
    content = document_of_folder(tmp_path / "run", now=NOW).content
    (sentence,) = content["damaged"]
    assert "since findings.json is damaged" in sentence
    assert content["data"]["findings"] is None


def test_a_run_of_which_only_its_description_is_left_has_a_page(tmp_path):
    folder = made_up_folder(tmp_path / "run")
    (folder / "logs.txt").unlink()
    (folder / "findings.json").unlink()
    content = document_of_folder(folder, now=NOW).content
    assert content["tables"] == content["curves"]["figures"] == []
    assert content["plan"]


def test_a_run_of_the_first_format_has_a_page(tmp_path):
    folder = made_up_folder(tmp_path / "run")
    description = json.loads((folder / "experiment.json").read_text())
    (folder / "experiment.json").write_text(
        json.dumps({"format": 1, "id": "x", "trainer": "T", "settings": description["settings"]})
    )
    document = document_of_folder(folder, now=NOW)
    assert document.title == "T · x"
    assert document.content["data"]["findings"] == ["labelsTr: something is unusual "]


def test_the_steps_of_an_epoch_are_the_plan_s_or_follow_from_the_loader(tmp_path):
    folder = made_up_folder(tmp_path / "a", settings={"accumulate": 3})
    assert steps_per_epoch(read_description(folder)) == 2
    data = {"training": {"samples": 10, "batch_size": 4}}
    folder = made_up_folder(tmp_path / "b", plan=None, data=data)
    assert steps_per_epoch(RunFacts.of(folder).description) == 3
    assert steps_per_epoch(read_description(made_up_folder(tmp_path / "c", plan=None))) is None
