import errno
import shutil

import pytest
import torch

from candy_monai.experiment import checkpoints, experiment
from candy_monai.experiment.description import ExperimentDescription
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.history import load_metrics
from candy_monai.experiment.hosted import HostedExperiment
from candy_monai.experiment.settings import TrainSettings
from candy_monai.experiment.state import RunWeights, TrainerState, load_state

NO_STATE = TrainerState(optimizer={})


@pytest.fixture
def run(tmp_path):
    settings = TrainSettings(num_epochs=6, num_checkpoints=0)
    description = ExperimentDescription(trainer="T")
    warned = []
    folder = Experiment.publish(tmp_path, settings, description, _weights(0), NO_STATE)
    made = HostedExperiment(folder, settings, warn=warned.append)
    yield made, warned
    made.close()


def _weights(epoch):
    weights = {"w": torch.tensor(float(epoch))}
    return RunWeights(raw=weights, scored=weights, kind="raw")


def _train_epoch(run, score):
    run.history.record("loss", 1.0)
    improved = run.finish_epoch(score)
    run.save_epoch(_weights(run.progress.epoch), NO_STATE, score=score, is_best=improved)
    run.wait_until_saved()
    run.log(f"epoch {run.progress.epoch}")


def _full(*_arguments, **_keywords):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (checkpoints, "_save"),
        (checkpoints, "finish_file"),
        (checkpoints.Checkpoints, "publish"),
        (experiment, "History"),
    ],
    ids=["weights", "at the end of a file", "after the commit", "metrics.csv"],
)
def test_on_a_disk_that_is_full_for_a_while_the_run_goes_on_and_is_saved_afterwards(run, monkeypatch, module, name):
    run, warned = run
    _train_epoch(run, 0.2)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, _full)
        for score in (0.5, 0.3):
            _train_epoch(run, score)
    assert len(warned) in (1, 2)
    assert "cannot be written (No space left on device). The training continues" in warned[0]
    for score in (0.4, 0.1):
        _train_epoch(run, score)
    state = load_state(run.folder)
    assert state.progress.epoch == 5
    assert load_metrics(run.folder / "metrics.csv")["val score"] == [0.2, 0.5, 0.3, 0.4, 0.1]
    best = torch.load(run.folder / "checkpoint_best.pth")["w"]
    # The weights of the best epoch may not have been written; what the folder says of them is true.
    assert (state.progress.best_epoch, state.progress.best_score) in ((2, 0.5), (4, 0.4))
    assert best == state.progress.best_epoch == state.checkpoints["checkpoint_best.pth"].epoch
    assert torch.load(run.folder / "checkpoint_latest.pth")["w"] == 5.0
    checkpoints.Checkpoints(run.folder, num_epochs=6, num_checkpoints=0).reconcile()
    assert not [path.name for path in run.folder.iterdir() if path.name.endswith(".next")]


def test_of_a_folder_that_was_removed_there_is_a_warning_and_no_error(run):
    run, warned = run
    _train_epoch(run, 0.2)
    shutil.rmtree(run.folder)
    for score in (0.3, 0.4):
        _train_epoch(run, score)
    run.describe(ExperimentDescription(trainer="T"))
    run.close()
    assert warned
    assert run.progress.epoch == 3
