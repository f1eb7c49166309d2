import json

import pytest
import torch

from candy_monai.errors import ExperimentError
from candy_monai.experiment.experiment import EpochWeights, Experiment, load_state
from candy_monai.experiment.settings import TrainSettings


def _experiment(parent, **settings):
    settings = TrainSettings(**{"num_epochs": 4, "seed": 7, "num_checkpoints": 2, **settings})
    return Experiment.create(parent, settings, {"trainer": "T"}, lambda: {"optimizer": {}})


def _weights(value):
    return EpochWeights(raw={"w": torch.tensor(value)}, scored={"w": torch.tensor(value + 0.5)}, kind="ema")


def _run_epoch(experiment, score):
    experiment.history.record("loss", 1.0)
    improved = experiment.finish_epoch(score)
    weights = _weights(float(experiment.progress.epoch))
    experiment.save_epoch(weights, {"optimizer": {}}, score=score, is_best=improved)


def test_a_folder_is_born_with_its_description_its_log_and_a_first_state(tmp_path):
    experiment = _experiment(tmp_path)
    assert sorted(path.name for path in experiment.folder.iterdir()) == ["experiment.json", "logs.txt", "state.pt"]
    description = json.loads((experiment.folder / "experiment.json").read_text())
    assert description["settings"]["seed"] == 7
    assert description["trainer"] == "T"
    assert load_state(experiment.folder)["progress"]["epoch"] == 0


def test_the_best_checkpoint_holds_the_weights_that_were_scored(tmp_path):
    experiment = _experiment(tmp_path)
    for score in (0.1, 0.3, 0.2):
        _run_epoch(experiment, score)
    best = torch.load(experiment.folder / "checkpoint_best.pth", weights_only=True)
    latest = torch.load(experiment.folder / "checkpoint_latest.pth", weights_only=True)
    assert best["w"] == 2.5
    assert latest["w"] == 3.0
    records = load_state(experiment.folder)["checkpoints"]
    assert (records["checkpoint_best.pth"]["epoch"], records["checkpoint_best.pth"]["kind"]) == (2, "ema")
    assert records["checkpoint_latest.pth"]["score"] is None


def test_the_files_left_by_a_whole_run_are_those_of_the_design(tmp_path):
    experiment = _experiment(tmp_path)
    for score in (0.1, 0.3, 0.2, 0.4):
        _run_epoch(experiment, score)
    assert experiment.is_complete
    assert sorted(path.name for path in experiment.folder.iterdir()) == [
        "checkpoint_2.pth",
        "checkpoint_4.pth",
        "checkpoint_best.pth",
        "checkpoint_latest.pth",
        "experiment.json",
        "logs.txt",
        "metrics.csv",
        "state.pt",
    ]


def test_a_run_that_stops_early_leaves_a_numbered_checkpoint_of_its_last_epoch(tmp_path):
    experiment = _experiment(tmp_path, num_epochs=100, early_stop_tolerance=1)
    for score in (0.2, 0.1):
        _run_epoch(experiment, score)
    assert experiment.is_complete
    assert (experiment.folder / "checkpoint_2.pth").exists()


def test_an_epoch_that_was_not_validated_counts_neither_for_nor_against_the_run(tmp_path):
    experiment = _experiment(tmp_path, early_stop_tolerance=1)
    _run_epoch(experiment, 0.2)
    _run_epoch(experiment, None)
    assert not experiment.is_complete
    assert experiment.progress.best_epoch == 1


def test_a_crash_before_the_commit_leaves_the_state_of_the_epoch_before(tmp_path, monkeypatch):
    experiment = _experiment(tmp_path)
    _run_epoch(experiment, 0.2)

    def crash(_state):
        raise OSError("disk full")

    monkeypatch.setattr(experiment, "save_state", crash)
    with pytest.raises(OSError, match="disk full"):
        _run_epoch(experiment, 0.3)
    assert load_state(experiment.folder)["progress"]["epoch"] == 1


def test_a_missing_or_damaged_state_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ExperimentError, match=r"state\.pt"):
        load_state(tmp_path)
    (tmp_path / "state.pt").write_bytes(b"half")
    with pytest.raises(ExperimentError, match=r"state\.pt"):
        load_state(tmp_path)


def test_no_epoch_is_begun_that_would_end_after_the_time_limit(tmp_path):
    now = [0.0]
    settings = TrainSettings(num_epochs=100, time_limit_s=35.0)
    experiment = Experiment(tmp_path, settings, clock=lambda: now[0])
    done = 0
    while not experiment.is_complete:
        now[0] += 10.0
        experiment.finish_epoch(float(done))
        done += 1
    assert done == 3
    assert experiment.is_out_of_time


def test_the_first_epoch_is_trained_however_little_time_there_is(tmp_path):
    experiment = Experiment(tmp_path, TrainSettings(num_epochs=3, time_limit_s=1e-9))
    assert not experiment.is_complete
