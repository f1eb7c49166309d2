"""One training with several seeds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from candy_monai.cli.main import main
from candy_monai.errors import SettingsError
from candy_monai.recipes import seeds
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.seeds import repeat_seeds

DICE = {0: 0.80, 1: 0.84, 2: 0.82, 7: 0.7, 8: None}


@pytest.fixture
def runs(monkeypatch):
    """Have runs score what their seed says, and return the options and the elapsed time of each."""
    given = []

    def train(dataset, options, *, elapsed_s, on_progress):
        given.append((options, elapsed_s))
        folder = Path(options.out) / "UNetTrainer" / "20260101-00-abcd"
        folder.mkdir(parents=True)
        dice = DICE[options.seed]
        scores = {
            "foreground_mean": {"Dice": dice},
            "mean": {"1": {"Dice": dice}},
            "class_names": {"1": "organ"},
            "num_cases": 5 - options.seed // 8,
        }
        (folder / "validation.json").write_text(json.dumps(scores))
        return folder

    monkeypatch.setattr(seeds, "train_dataset", train)
    return given


def test_the_table_has_every_seed_and_its_spread_and_so_has_the_file(runs, tmp_path, capsys):
    assert main(["train", str(tmp_path / "d"), "--repeat-seeds", "3", "--out", str(tmp_path), "--epochs", "4"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["seed", "Dice", "organ"] in lines
    assert ["1", "0.8400", "0.8400"] in lines
    assert ["mean", "0.8200", "0.8200"] in lines
    assert ["standard", "deviation", "0.0200", "0.0200"] in lines
    content = json.loads((tmp_path / "seeds-d" / "seeds.json").read_text())
    assert [run["seed"] for run in content["runs"]] == [0, 1, 2]
    assert content["statistics"]["1"]["std"] == pytest.approx(0.02)
    assert content["statistics"]["foreground_mean"]["num_cases"] == 3


def test_runs_differ_in_seed_and_folder_alone_and_share_the_store(runs, tmp_path):
    told = []
    spread = repeat_seeds(
        "d", TrainOptions(out=tmp_path, budget_s=60.0, seed=7), num_seeds=2, elapsed_s=5.0, on_progress=told.append
    )
    assert told[-1].startswith("Warning: seed 8 was scored on 4 cases and another on 5")
    (first, elapsed), (second, later) = runs
    assert (first.seed, second.seed, elapsed, later) == (7, 8, 5.0, 0.0)
    assert first.store == second.store == tmp_path / ".store"
    assert first.budget_s == second.budget_s == 60.0
    assert spread.experiments[8].parents[1] == tmp_path / "seeds-d" / "seed_8"
    assert math.isnan(spread.dice[8]["1"])
    assert spread.statistics["1"].num_cases == 1


@pytest.mark.parametrize(("keywords", "message"), [({"num_seeds": 1}, "at least 2"), ({"fold": "all"}, "no case")])
def test_what_has_no_spread_is_refused_before_anything_is_trained(runs, keywords, message):
    with pytest.raises(SettingsError, match=message):
        repeat_seeds("d", **{"num_seeds": 2, **keywords})
    assert runs == []


def test_several_processes_are_refused(runs, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsError, match="without torchrun"):
        repeat_seeds("d", num_seeds=2)
