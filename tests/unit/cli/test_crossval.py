import json
from pathlib import Path

import pytest

from candy_monai.cli.crossval import as_text
from candy_monai.cli.main import main
from candy_monai.recipes.options import TrainOptions
from candy_monai.training.signals import Interrupted


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """Replace what does the work; return what it was called with."""
    calls = {}

    def cross_validate(dataset, options, **keywords):
        calls.update(dataset=dataset, options=options, **keywords)
        (tmp_path / "crossval-D").mkdir()
        summary = tmp_path / "crossval-D" / "crossval.json"
        cases = {"num_cases": 0, "foreground_mean": None, "interval_95": None, "classes": {}}
        content = {"foreground_mean": None, "std": None, "cases": cases, "classes": {}, "class_names": {}, "folds": []}
        named = keywords["configurations"]
        summary.write_text(json.dumps({"configurations": dict.fromkeys(named, content)} if named else content))
        return summary

    monkeypatch.setattr("candy_monai.recipes.crossval.cross_validate", cross_validate)
    return calls


def test_what_was_typed_is_what_decides_the_folds_and_the_next_command_is_named(seen, tmp_path, capsys):
    typed = ["--epochs", "3", "--seed", "1", "--set", "a=1", "--set", "b=2", "--note", "mine", "--save-every", "90s"]
    assert main(["crossval", "D", *typed, "--jobs", "2", "--plan", "p"]) == 0
    given = {
        "out": Path("experiments"),
        "num_epochs": 3,
        "seed": 1,
        "overrides": {"a": "1", "b": "2"},
        "network_args": {},
        "trainer_args": {},
        "note": "mine",
        "save_every": "90s",
    }
    assert vars(seen["options"]) == {**vars(TrainOptions(**given)), "plan": seen["options"].plan}
    assert (str(seen["options"].plan), seen["num_parallel"]) == ("p", 2)
    assert capsys.readouterr().out.endswith(f"Next: candy-monai predict {tmp_path / 'crossval-D'} IMAGES predictions\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--plan", "nowhere.json"], "nowhere.json: there is no such file"),
        (["--bundle", "unte"], "no bundle 'unte' is installed"),
        (["--set", "batch_sise=2"], "no entry 'batch_sise'"),
        (["--frontend", "notin"], "'notin' is unknown"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--jobs", "0"], "expected a whole number of at least 1"),
    ],
)
def test_what_every_fold_would_refuse_is_bad_input_before_the_dataset_is_read(tmp_path, options, said, capsys):
    assert main(["crossval", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *options]) == 2
    assert said in capsys.readouterr().err


def test_classes_are_called_by_their_names_and_folds_without_scores_have_no_numbers():
    folds = [
        {"fold": 0, "foreground_mean": 0.5, "classes": {"1": 0.25, "2": 0.75}},
        {"fold": 1, "foreground_mean": None, "classes": {}},
    ]
    names = {"1": "left", "3": "never seen"}
    classes = {"1": 0.25, "2": 0.75}
    cases = {"num_cases": 3, "foreground_mean": 0.5, "interval_95": [0.4, 0.6], "classes": classes}
    summary = {"foreground_mean": 0.5, "std": None, "cases": cases, "classes": classes, "class_names": names}
    assert [line.split() for line in as_text({**summary, "folds": folds}).splitlines()] == [
        ["fold", "Dice", "left", "class", "2"],
        ["0", "0.5000", "0.2500", "0.7500"],
        ["1", "-", "-", "-"],
        ["mean", "0.5000", "0.2500", "0.7500"],
        [
            "over",
            "3",
            "cases:",
            "Dice",
            "0.5000",
            "(95",
            "%",
            "interval",
            "0.4000",
            "to",
            "0.6000);",
            "standard",
            "deviation",
            "over",
            "folds",
            "-",
        ],
    ]


def test_several_configurations_have_a_line_each_and_are_chosen_from_next(seen, tmp_path, capsys):
    assert main(["crossval", "D", "--configurations", "2d,3d"]) == 0
    assert seen["configurations"] == ("2d", "3d")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["configuration", "2d", "3d"]
    assert lines[-1] == f"Next: candy-monai select {tmp_path / 'crossval-D'}"


def test_an_interrupted_cross_validation_says_how_it_is_continued(monkeypatch, capsys):
    def interrupt(*_arguments, **_keywords):
        raise Interrupted("SIGINT")

    monkeypatch.setattr("candy_monai.recipes.crossval.cross_validate", interrupt)
    assert main(["crossval", "D"]) == 130
    assert "the same command continues it" in capsys.readouterr().out
