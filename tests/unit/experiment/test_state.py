import math
import os
from dataclasses import replace

import pytest
import torch

from candy_monai.errors import ExperimentError
from candy_monai.experiment.checkpoints import CheckpointRecord
from candy_monai.experiment.settings import TrainSettings
from candy_monai.experiment.state import Progress, RunState, TrainerState, load_state, save_state

STATE = RunState(
    settings=TrainSettings(num_epochs=4),
    progress=Progress(epoch=3, best_score=0.5, best_epoch=2),
    history={"rows": [], "pending": {}},
    early_stopping={"num_stale_epochs": 1},
    is_complete=False,
    kind="raw",
    trainer=TrainerState(optimizer={"lr": 0.1}, schedule_epochs=4),
    checkpoints={"checkpoint_best.pth": CheckpointRecord(epoch=2, score=0.5, kind="raw", digest="d")},
)


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_saved_is_what_is_loaded(tmp_path, verify):
    save_state(tmp_path, STATE, confirm=lambda: None)
    loaded = load_state(tmp_path, verify=verify)
    assert replace(loaded, progress=STATE.progress) == STATE
    assert (loaded.progress.epoch, loaded.progress.best_score) == (3, 0.5)


def test_a_state_without_the_trainer_s_own_part_is_of_an_earlier_version_and_is_read():
    content = STATE.to_dict()
    del content["extra"]
    assert RunState.from_dict(content).trainer.extra == {}


@pytest.mark.parametrize("name", ["settings", "progress", "history", "checkpoints", "optimizer", "is_complete"])
def test_a_state_with_something_missing_is_refused(name):
    content = STATE.to_dict()
    del content[name]
    with pytest.raises(ExperimentError, match=f"not a state that this version can read.*{name}"):
        RunState.from_dict(content)


def test_a_state_whose_format_is_no_number_is_refused():
    with pytest.raises(ExperimentError, match="this version reads format"):
        RunState.from_dict(STATE.to_dict() | {"format": torch.ones(2)})


@pytest.mark.parametrize("damaged", [{"epoch": "x"}, {"epoch": -5}, {"step": None}, {"best_score": "x"}], ids=str)
def test_a_state_whose_progress_is_no_number_is_refused_by_its_name(damaged):
    content = STATE.to_dict()
    with pytest.raises(ExperimentError, match=f"not a state that this version can read.*{next(iter(damaged))} is"):
        RunState.from_dict(content | {"progress": content["progress"] | damaged})


class _Evil:
    def __reduce__(self):
        return os.mkdir, ("made",)


def test_a_state_that_would_execute_something_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({**STATE.to_dict(), "extra": _Evil()}, tmp_path / "state.pt")
    with pytest.raises(ExperimentError, match="state.pt: not readable") as caught:
        load_state(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_a_nan_or_infinite_score_never_becomes_the_best():
    progress = Progress()
    assert not progress.offer(math.nan, epoch=1)
    assert not progress.offer(math.inf, epoch=2)
    assert progress.offer(-0.5, epoch=3)
    assert (progress.best_score, progress.best_epoch) == (-0.5, 3)


def test_an_equal_score_is_no_improvement():
    progress = Progress()
    assert progress.offer(0.5, epoch=1)
    assert not progress.offer(0.5, epoch=2)
