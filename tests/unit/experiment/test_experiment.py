import errno
import json
import re
import sys
import threading
from pathlib import Path

import pytest
import torch

from candy_monai.errors import ExperimentError, RunFailedError
from candy_monai.experiment.description import ExperimentDescription
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.folder import LOCK
from candy_monai.experiment.settings import TrainSettings
from candy_monai.experiment.state import RunWeights, TrainerState, load_state, stored_weights, weight_file
from candy_monai.files import finish_file

NO_STATE = TrainerState(optimizer={})


def _experiment(parent, **settings):
    settings = TrainSettings(**{"num_epochs": 4, "seed": 7, "num_checkpoints": 2, **settings})
    folder = Experiment.publish(parent, settings, ExperimentDescription(trainer="T"), _weights(0.0), NO_STATE)
    return Experiment(folder, settings)


def _weights(value):
    return RunWeights(raw={"w": torch.tensor(value)}, scored={"w": torch.tensor(value + 0.5)}, kind="ema")


def _files(experiment):
    return sorted({path.name for path in experiment.folder.iterdir()} - {LOCK})  # held until it is closed


def _run_epoch(experiment, score):
    experiment.history.record("loss", 1.0)
    improved = experiment.finish_epoch(score)
    weights = _weights(float(experiment.progress.epoch))
    experiment.save_epoch(weights, NO_STATE, score=score, is_best=improved)
    experiment.wait_until_saved()


def test_a_folder_is_born_with_its_description_its_log_and_a_first_state(tmp_path):
    experiment = _experiment(tmp_path)
    assert _files(experiment) == ["experiment.json", "logs.txt", "state.pt"]
    description = json.loads((experiment.folder / "experiment.json").read_text())
    assert description["settings"]["seed"] == 7
    assert description["trainer"] == "T"
    assert load_state(experiment.folder).progress.epoch == 0


def test_the_best_checkpoint_holds_the_weights_that_were_scored(tmp_path):
    experiment = _experiment(tmp_path)
    for score in (0.1, 0.3, 0.2):
        _run_epoch(experiment, score)
    best = torch.load(experiment.folder / "checkpoint_best.pth", weights_only=True)
    latest = torch.load(experiment.folder / "checkpoint_latest.pth", weights_only=True)
    assert best["w"] == 2.5
    assert latest["w"] == 3.0
    records = load_state(experiment.folder).checkpoints
    assert (records["checkpoint_best.pth"].epoch, records["checkpoint_best.pth"].kind) == (2, "ema")
    assert records["checkpoint_latest.pth"].score is None


def test_scores_of_the_best_weights_stay_until_these_are_replaced(tmp_path):
    experiment = _experiment(tmp_path)
    _run_epoch(experiment, 0.3)
    scores = experiment.folder / "validation.json"
    scores.write_text("{}")
    _run_epoch(experiment, 0.2)
    assert scores.is_file()
    _run_epoch(experiment, 0.4)
    assert not scores.exists()


def test_the_files_left_by_a_whole_run_are_those_of_the_design(tmp_path):
    experiment = _experiment(tmp_path)
    for score in (0.1, 0.3, 0.2, 0.4):
        _run_epoch(experiment, score)
    assert experiment.is_complete
    assert _files(experiment) == [
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


def _reopened(folder):
    state = load_state(folder)
    experiment = Experiment(folder, state.settings)
    experiment.restore(state)
    return experiment, stored_weights(state, experiment.checkpoints, folder)


@pytest.mark.parametrize("moment", ["save_state", "publish"])
def test_a_crash_before_and_after_the_commit_leaves_weights_and_state_of_one_epoch(tmp_path, monkeypatch, moment):
    experiment = _experiment(tmp_path)
    _run_epoch(experiment, 0.2)

    def crash(*_arguments, **_options):
        raise OSError("power failure")

    if moment == "publish":
        monkeypatch.setattr(experiment.checkpoints, "publish", crash)
    else:
        monkeypatch.setattr("candy_monai.experiment.experiment.save_state", crash)
    with pytest.raises(RunFailedError, match="power failure"):
        _run_epoch(experiment, 0.3)
    experiment.close()
    epoch = 2 if moment == "publish" else 1
    best = weight_file(experiment.folder, "checkpoint_best.pth")
    assert torch.load(best, weights_only=True)["w"] == epoch + 0.5
    reopened, weights = _reopened(experiment.folder)
    assert reopened.progress.epoch == epoch
    assert (weights.raw["w"], weights.scored["w"]) == (epoch, epoch + 0.5)
    assert torch.load(experiment.folder / "checkpoint_best.pth", weights_only=True)["w"] == epoch + 0.5
    assert not [name for name in _files(experiment) if name.startswith(".")]


def test_averaged_weights_that_no_file_holds_are_in_the_state(tmp_path):
    experiment = _experiment(tmp_path, num_checkpoints=0)
    for score in (0.3, 0.1):
        _run_epoch(experiment, score)
    experiment.close()
    _, weights = _reopened(experiment.folder)
    assert (weights.raw["w"], weights.scored["w"]) == (2.0, 2.5)


def test_files_of_the_same_weights_are_written_once(tmp_path):
    experiment = _experiment(tmp_path, num_checkpoints=4)
    _run_epoch(experiment, 0.2)
    best, numbered = (experiment.folder / name for name in ("checkpoint_best.pth", "checkpoint_1.pth"))
    assert best.samefile(numbered)
    _run_epoch(experiment, 0.3)
    assert torch.load(numbered, weights_only=True)["w"] == 1.5
    assert torch.load(best, weights_only=True)["w"] == 2.5


def test_a_full_disk_is_an_error_that_says_what_to_do_and_the_state_before_is_whole(tmp_path, monkeypatch):
    experiment = _experiment(tmp_path)
    _run_epoch(experiment, 0.2)

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("candy_monai.experiment.checkpoints.torch.save", full)
    with pytest.raises(RunFailedError, match="disk is full.*free some space"):
        _run_epoch(experiment, 0.3)
    experiment.close()
    reopened, weights = _reopened(experiment.folder)
    assert reopened.progress.epoch == 1
    assert weights.raw["w"] == 1.0


def test_where_no_folder_can_be_made_nothing_is_said_of_a_run_to_continue(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("candy_monai.experiment.checkpoints.torch.save", full)
    with pytest.raises(RunFailedError, match="the experiment's folder cannot be created .No space left on device.$"):
        _experiment(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", ["log", "describe", "restore"])
def test_whatever_a_full_disk_does_not_take_fails_the_run(tmp_path, monkeypatch, write):
    experiment = _experiment(tmp_path)
    _run_epoch(experiment, 0.2)
    state = load_state(experiment.folder)

    def full(*_arguments, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("candy_monai.experiment.experiment.log_line", full)
    monkeypatch.setattr("candy_monai.experiment.description.atomic_write_text", full)
    monkeypatch.setattr("candy_monai.experiment.history.History.save_csv", full)
    writes = {
        "log": lambda: experiment.log("a message"),
        "describe": lambda: experiment.describe(ExperimentDescription()),
        "restore": lambda: experiment.restore(state),
    }
    with pytest.raises(RunFailedError, match="disk is full.*continue this run"):
        writes[write]()
    experiment.close()


def test_the_folder_is_born_with_the_texts_that_belong_in_it(tmp_path):
    settings = TrainSettings(num_epochs=1)
    files = {"splits_final.json": "[]"}
    folder = Experiment.publish(tmp_path, settings, ExperimentDescription(), _weights(0.0), NO_STATE, files=files)
    assert (folder / "splits_final.json").read_text() == "[]"


def test_training_goes_on_while_an_epoch_is_written_and_it_is_saved_as_it_was(tmp_path, monkeypatch):
    experiment = _experiment(tmp_path)
    may_write, save = threading.Event(), torch.save

    def slowly(*arguments):
        assert may_write.wait(10)
        save(*arguments)

    monkeypatch.setattr("candy_monai.experiment.checkpoints.torch.save", slowly)
    weights, momentum = _weights(1.0), torch.tensor([1.0, 2.0])
    experiment.history.record("loss", 0.5)
    experiment.finish_epoch(0.2)
    experiment.save_epoch(weights, TrainerState(optimizer={"momentum": momentum}), score=0.2, is_best=True)
    assert not experiment.is_saved
    assert load_state(experiment.folder).progress.epoch == 0
    for tensor in (weights.raw["w"], weights.scored["w"], momentum):  # the next step
        tensor.zero_()
    experiment.history.record("loss", 9.0)
    experiment.progress.batch = 1
    may_write.set()
    experiment.wait_until_saved()
    assert experiment.is_saved
    experiment.close()
    reopened, saved = _reopened(experiment.folder)
    assert (saved.raw["w"], saved.scored["w"]) == (1.0, 1.5)
    assert load_state(experiment.folder).trainer.optimizer["momentum"].tolist() == [1.0, 2.0]
    assert (reopened.progress.epoch, reopened.progress.batch) == (1, 0)
    assert reopened.history.pending() == {}
    assert (experiment.folder / "metrics.csv").read_text().splitlines()[1].startswith("1,0.5,")


def test_what_could_not_be_written_is_said_by_every_later_save(tmp_path, monkeypatch):
    experiment = _experiment(tmp_path)

    def refuse(*_arguments, **_options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("candy_monai.experiment.experiment.save_state", refuse)
    experiment.save_point(_weights(1.0), NO_STATE)
    for again in (experiment.wait_until_saved, lambda: experiment.save_point(_weights(2.0), NO_STATE)):
        with pytest.raises(RunFailedError, match="Input/output error"):
            again()
    experiment.close()


def test_a_weight_file_that_was_changed_afterwards_is_refused_by_name(tmp_path):
    experiment = _experiment(tmp_path)
    _run_epoch(experiment, 0.2)
    experiment.close()
    torch.save({"w": torch.tensor(9.0)}, experiment.folder / "checkpoint_latest.pth")
    with pytest.raises(ExperimentError, match=r"checkpoint_latest\.pth: differs from the file that was saved"):
        _reopened(experiment.folder)


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path):
    experiment = _experiment(tmp_path)
    with pytest.raises(ExperimentError, match="being trained at this moment"):
        Experiment(experiment.folder, experiment.settings)
    experiment.close()
    Experiment(experiment.folder, experiment.settings).close()


def test_within_an_epoch_the_weights_are_in_the_state_and_the_files_stay_those_of_the_last_epoch(tmp_path):
    experiment = _experiment(tmp_path)
    _run_epoch(experiment, 0.2)
    experiment.progress.batch = 3
    experiment.history.record("loss", torch.tensor(0.25))
    experiment.save_point(_weights(7.0), NO_STATE)
    experiment.close()  # waits for what is being written
    reopened, weights = _reopened(experiment.folder)
    assert (reopened.progress.epoch, reopened.progress.batch) == (1, 3)
    assert (weights.raw["w"], weights.scored["w"]) == (7.0, 7.5)
    assert torch.load(experiment.folder / "checkpoint_latest.pth", weights_only=True)["w"] == 1.0
    reopened.history.record("loss", 0.75)
    assert reopened.history.close_epoch() == {"loss": 0.5}


def test_a_state_of_an_earlier_format_is_refused_by_name(tmp_path):
    torch.save({"format": 1}, tmp_path / "state.pt")
    with pytest.raises(ExperimentError, match="format 1.*earlier version"):
        load_state(tmp_path)


def test_a_missing_or_damaged_state_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ExperimentError, match=r"state\.pt"):
        load_state(tmp_path)
    (tmp_path / "state.pt").write_bytes(b"half")
    with pytest.raises(ExperimentError, match=r"state\.pt"):
        load_state(tmp_path)


def _validate_epoch(experiment, score):
    experiment.history.record("val score", score)
    _run_epoch(experiment, score)


@pytest.mark.slow  # two hundred forecasts
def test_by_forecast_a_run_that_has_long_passed_its_peak_stops_and_one_that_still_rises_goes_on(tmp_path):
    settings = {"num_epochs": 100, "early_stop_tolerance": "forecast", "val_score_prediction": False}
    peaked, rising = _experiment(tmp_path, **settings), _experiment(tmp_path, **settings)
    for epoch in range(1, 96):
        if not peaked.is_complete:
            _validate_epoch(peaked, 0.08 * epoch * 2.718 ** (1 - epoch / 10))  # its peak is at epoch 10
        _validate_epoch(rising, 0.8 * epoch / 100)
    assert peaked.is_complete
    assert 10 < peaked.progress.epoch < 90
    assert not rising.is_complete


def test_the_forecast_of_a_run_goes_to_those_who_watch(tmp_path):
    experiment = _experiment(tmp_path, num_epochs=50)
    for epoch in range(1, 11):
        _validate_epoch(experiment, 1 - 0.8**epoch)
    assert experiment.epoch_finished(0.9, None).forecast == experiment.forecast
    assert experiment.forecast.score > 1 - 0.8**10
    assert experiment.epoch_finished(None, None).forecast is None


def test_weights_are_on_the_disk_before_the_state_that_names_them_takes_its_place(tmp_path, monkeypatch):
    experiment, done = _experiment(tmp_path, num_checkpoints=0), []
    replace = Path.replace

    def finish(file):
        done.append(f"on disk: {re.sub('-.*[.]', '-*.', Path(file.name).name)}")
        finish_file(file)

    def placed(self, target):
        done.append(f"in place: {Path(target).name}")
        return replace(self, target)

    monkeypatch.setattr("candy_monai.experiment.checkpoints.finish_file", finish)
    monkeypatch.setattr(Path, "replace", placed)
    _run_epoch(experiment, 0.2)
    experiment.close()
    assert done == [
        "on disk: .checkpoint_latest.pth.next",
        "on disk: .checkpoint_best.pth.next",
        "on disk: .state-*.pt",
        "in place: state.pt",
        "in place: checkpoint_latest.pth",
        "in place: checkpoint_best.pth",
        "in place: metrics.csv",
    ]


def test_weights_that_do_not_reach_the_disk_take_the_whole_epoch_back(tmp_path, monkeypatch):
    experiment = _experiment(tmp_path)
    _run_epoch(experiment, 0.2)
    written = []

    def fail(file):
        written.append(file)
        file.close()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("candy_monai.experiment.checkpoints.finish_file", fail)
    with pytest.raises(RunFailedError, match="Input/output error"):
        _run_epoch(experiment, 0.3)
    experiment.close()
    assert [Path(file.name).name for file in written] == [".checkpoint_latest.pth.next"]
    reopened, weights = _reopened(experiment.folder)
    assert (reopened.progress.epoch, weights.raw["w"], weights.scored["w"]) == (1, 1.0, 1.5)


@pytest.mark.skipif(sys.platform == "win32", reason="sets a limit of Unix")
def test_a_file_that_may_not_grow_is_reported_and_the_last_state_is_whole(tmp_path):
    import resource

    experiment = _experiment(tmp_path)
    _run_epoch(experiment, 0.2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        with pytest.raises(RunFailedError, match="a file would exceed the size limit"):
            _run_epoch(experiment, 0.3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    experiment.close()
    reopened, weights = _reopened(experiment.folder)
    assert (reopened.progress.epoch, weights.raw["w"], weights.scored["w"]) == (1, 1.0, 1.5)
