import json
from io import StringIO
from pathlib import Path

import pytest
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner
from rich.console import Console

from candy_monai.cli.main import main
from candy_monai.cli.sweep import results_table
from candy_monai.optuna import ForecastPruner


def trial(number, *, state="complete", dice=None, validation=None, **settings):
    return {
        "trial": number,
        "state": state,
        "dice": dice,
        "best_validation_score": validation,
        "epochs": 6,
        "epochs_planned": 10,
        "settings": settings,
        "experiment": f"e{number}",
    }


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """Replace what does the work; return what it was called with."""
    calls = {}

    def sweep_dataset(dataset, space, options, **keywords):
        calls.update(dataset=dataset, space=space, options=options, **keywords)
        best = trial(0, dice=0.8, validation=0.81, rate=1e-3)
        (tmp_path / "sweep.json").write_text(json.dumps({"study": "s", "best": best, "trials": [best]}))
        return tmp_path

    monkeypatch.setattr("candy_monai.recipes.sweep.sweep_dataset", sweep_dataset)
    return calls


def test_what_was_typed_is_what_decides_the_sweep_and_the_next_command_is_named(seen, tmp_path, capsys):
    typed = ["--space", "s.yml", "--trials", "4", "--jobs", "2", "--storage", "sqlite:///x", "--name", "n"]
    assert main(["sweep", "D", *typed, "--epochs", "3", "--trainer-args", "max_grad_norm=2.5"]) == 0
    assert (seen["dataset"], seen["space"]) == (Path("D"), Path("s.yml"))
    assert (seen["num_trials"], seen["num_parallel"], seen["storage"], seen["name"]) == (4, 2, "sqlite:///x", "n")
    assert (seen["options"].num_epochs, seen["options"].trainer_args) == (3, {"max_grad_norm": 2.5})
    out = capsys.readouterr().out
    assert f"Plots: {tmp_path / 'sweep.html'}" in out
    assert out.endswith("Best experiment: e0\nNext: candy-monai predict e0 IMAGES predictions\n")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("forecast", ForecastPruner), ("median", MedianPruner), ("hyperband", HyperbandPruner), ("none", NopPruner)],
)
def test_the_pruner_is_the_one_that_was_named(seen, name, kind):
    assert main(["sweep", "D", "--space", "s", "--trials", "1", "--pruner", name]) == 0
    assert type(seen["pruner"]) is kind
    assert getattr(seen["pruner"], "_confidence", 0.9) == 0.9


def test_how_sure_the_forecast_must_be_is_refused_for_a_pruner_that_does_not_ask(seen, capsys):
    typed = ["sweep", "D", "--space", "s", "--trials", "1", "--confidence", "0.8"]
    assert main(typed) == 0
    assert seen["pruner"]._confidence == 0.8
    assert main([*typed, "--pruner", "median"]) == 2
    assert "--confidence has no effect on --pruner median" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--trials", "0"], ["--pruner", "hope"], ["--confidence", "0.99"], ["--trainer-args", "x"]]
)
def test_a_wrong_argument_is_bad_input(seen, words, capsys):
    assert main(["sweep", "D", "--space", "s", "--trials", "1", *words]) == 2
    assert words[0] in capsys.readouterr().err
    assert not seen


def test_many_settings_are_in_one_column_on_a_narrow_screen(tmp_path, monkeypatch, capsys):
    settings = {f"a_long_setting_{number}": 0.5 + number for number in range(6)}
    trials = [trial(0, dice=0.5, validation=0.6, **settings)]
    summary = {"study": "s", "trials": trials, "best": {"experiment": "run"}}
    (tmp_path / "sweep.json").write_text(json.dumps(summary))
    monkeypatch.setattr("candy_monai.recipes.sweep.sweep_dataset", lambda *_, **__: tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["sweep", "D", "--space", "s", "--trials", "1"]) == 0
    shown = "".join(capsys.readouterr().out.split())
    for name, value in settings.items():
        assert f"{name}={value}" in shown


def test_the_best_trial_stands_first_and_what_is_unknown_is_a_dash():
    trials = [
        trial(0, dice=0.5, validation=0.6, **{"rate[x]": 0.00123456}),
        trial(1, state="pruned", validation=0.4, **{"rate[x]": 0.1}),
        trial(2, dice=0.7, validation=0.7, **{"rate[x]": 0.2}),
        trial(3, state="fail", **{"rate[x]": 0.3}),
    ]
    out = StringIO()
    Console(file=out, width=100).print(results_table({"study": "s", "trials": trials}))
    rows = [line.split() for line in out.getvalue().splitlines() if line.strip()[:1].isdigit()]
    assert rows == [
        ["2", "0.7000", "0.7000", "6", "of", "10", "done", "0.2"],
        ["0", "0.5000", "0.6000", "6", "of", "10", "done", "0.001235"],
        ["1", "-", "0.4000", "6", "of", "10", "pruned", "0.1"],
        ["3", "-", "-", "6", "of", "10", "failed", "0.3"],
    ]
    assert "rate[x]" in out.getvalue()
