import json

import pytest

from candy_monai.errors import BadInputError
from candy_monai.experiment.description import read_description
from candy_monai.report.facts import (
    FINDINGS,
    MOST_LINES,
    class_names_of,
    commands_of,
    data_of,
    log_of,
    plan_of,
    read_findings,
    settings_of,
)
from tests.pages import made_up_folder
from tests.toys import small_trainer


def described(folder, **entries):
    return read_description(made_up_folder(folder, **entries))


def commands(folder, **more):
    is_complete = more.pop("is_complete", False)
    found = commands_of(folder, described(folder, **more), is_complete=is_complete)
    return {command.title: command.command for command in found}


def test_settings_say_which_are_the_defaults(tmp_path):
    description = described(tmp_path / "run", settings={"freeze": []})
    rows = {name: (value, is_default) for name, value, is_default in settings_of(description)}
    assert rows["freeze"] == ("none", True)
    assert rows["seed"] == ("3", False)
    assert rows["accumulate"] == ("1", True)


def test_a_plan_has_its_reasons_and_without_them_its_values(tmp_path):
    description = described(tmp_path / "run")
    (choice,) = plan_of(description, read_findings(tmp_path / "run"))
    assert choice["reason"].startswith("It fits.")
    (tmp_path / "run" / FINDINGS).write_text(json.dumps({"plan": 3}))
    with pytest.raises(BadInputError, match=FINDINGS):
        read_findings(tmp_path / "run")
    (tmp_path / "run" / FINDINGS).unlink()
    assert read_findings(tmp_path / "run") is None
    names = [choice["name"] for choice in plan_of(description, None)]
    assert names == ["class_names", "iterations_per_epoch", "patch_shape", "spacing_mm"]


def test_data_are_those_of_the_dataset_or_else_of_the_loaders(tmp_path):
    about = data_of(described(tmp_path / "run"), read_findings(tmp_path / "run"))
    assert ["classes", "2: kidney, tumour"] in about["facts"]
    assert ["sizes", "9 x 9 x 9"] in about["facts"]
    assert len(about["findings"]) == 1
    trainer = small_trainer(tmp_path)
    trainer.train(1, save_preview=False)
    own = data_of(read_description(trainer.experiment_folder()), None)
    assert own == {
        "facts": [["training samples", "4 in batches of 2"], ["validation samples", "4 in batches of 1"]],
        "findings": None,
    }


def test_classes_go_by_the_plan_s_names_and_regions_by_what_they_paint(tmp_path):
    assert class_names_of(described(tmp_path / "a")) == {0: "background", 1: "kidney", 2: "tumour"}
    regions = [{"name": "whole", "ids": [1, 2], "paints": 2}, {"name": "core", "ids": [1], "paints": 1}]
    assert class_names_of(described(tmp_path / "b", regions=regions)) == {2: "whole", 1: "core"}
    assert class_names_of(described(tmp_path / "c", plan=None)) == {0: "background", 1: "kidney", 2: "tumour"}


@pytest.mark.parametrize(("num_classes", "number"), [(3, 3), (2, 0), (None, 0)])
def test_classes_of_a_script_go_by_the_names_of_its_dataset_unless_it_merged_some(tmp_path, num_classes, number):
    labels = {"background": 0, "kidney": 1, "tumour": 2}
    own = {"dataset": None, "num_classes": num_classes, "data": {"training": {"labels": labels}}}
    names = class_names_of(described(tmp_path / "run", plan=None, **own))
    assert names == ({0: "background", 1: "kidney", 2: "tumour"} if number else {})


def test_of_a_long_log_the_last_lines_are_shown(tmp_path):
    folder = made_up_folder(tmp_path / "run")
    assert not log_of(folder)["is_cut"]
    (folder / "logs.txt").write_text("".join(f"[t] line {i} {'x' * 3000 * (i == 990)}\n" for i in range(1000)))
    found = log_of(folder)
    assert found["is_cut"]
    assert len(found["lines"]) == MOST_LINES
    assert found["lines"][-1].strip() == "[t] line 999"
    assert max(map(len, found["lines"])) == 2000
    (folder / "logs.txt").unlink()
    assert log_of(folder) == {"lines": [], "is_cut": False}


def test_commands_quote_the_folder_and_go_on_or_train_longer(tmp_path):
    folder = tmp_path / "my run; rm -rf"
    assert commands(folder)["Resume the training"] == f"candy-monai resume '{folder}'"
    longer = commands(folder, is_complete=True)["Train longer"]
    assert longer == f"candy-monai resume '{folder}' --epochs 20 --schedule restart"
    assert commands(folder)["Predict new images"].startswith(f"candy-monai predict '{folder}' ")


def test_a_run_that_ended_with_its_time_is_not_offered_more_epochs_which_it_has_no_time_for(tmp_path):
    timed = {"settings": {"num_epochs": 10, "time_limit_s": 60.0}}
    assert "Train longer" not in commands(tmp_path / "run", is_complete=True, **timed)
    assert "Resume the training" in commands(tmp_path / "run", **timed)


def test_a_run_without_a_state_is_predicted_with_and_not_resumed(tmp_path):
    description = read_description(made_up_folder(tmp_path / "run"))
    for is_complete in (False, True):
        found = commands_of(tmp_path / "run", description, is_complete=is_complete, can_go_on=False)
        assert not any("resume" in command.command for command in found)
        assert any(command.title == "Predict new images" for command in found)


def test_a_trainer_of_one_s_own_is_named_and_without_a_dataset_resumed_from_python(tmp_path):
    assert commands(tmp_path / "a", bundle=None)["Resume the training"].endswith(" --trainer FILE.py:UNetTrainer")
    assert "model.onnx --to onnx --trainer" in commands(tmp_path / "c", bundle=None)["Export for other software"]
    assert commands(tmp_path / "d")["Export for other software"].endswith("OUT --to monai-bundle")
    by_hand = commands(tmp_path / "b", dataset=None)["Resume the training"]
    assert by_hand == f"UNetTrainer(...).resume({str(tmp_path / 'b')!r})"


@pytest.mark.parametrize(
    ("host", "call"),
    [
        ("monai", "ExperimentFolderHandler({root!r}, resume={folder!r})"),
        (
            "lightning 2.6.6",
            "trainer.fit(..., ckpt_path=CHECKPOINT)  # a checkpoint of Lightning's, and the same ExperimentFolder",
        ),
    ],
)
def test_a_run_of_another_host_goes_on_as_its_users_do_it(tmp_path, host, call):
    folder = tmp_path / "Net" / "x"
    found = commands(folder, dataset=None, bundle=None, host=host)
    expected = call.format(root=str(tmp_path), folder=str(folder))
    assert found["Resume the training, in the script that started it"] == expected
    assert not any(".resume(" in command for command in found.values())
