import json

import pytest

from candy_monai.data.datasets.nnunet_description import read_dataset_description
from candy_monai.experiment.checkpoints import CheckpointRecord
from candy_monai.experiment.description import DESCRIPTION, FORMAT
from candy_monai.experiment.settings import TrainSettings
from candy_monai.experiment.state import Progress, RunState, TrainerState, save_state
from candy_monai.recipes.fold_scores import summary_of_folds


@pytest.fixture
def description(tmp_path):
    content = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    return read_dataset_description(tmp_path)


def _finished(folder, *, epochs, best_epoch):
    """Write what a finished run leaves that had a budget, and therefore fewer epochs than planned."""
    folder.mkdir()
    (folder / DESCRIPTION).write_text(json.dumps({"format": FORMAT, "settings": {"num_epochs": 100}}))
    best = CheckpointRecord(epoch=best_epoch, score=0.5, kind="raw", digest="d")
    state = RunState(
        settings=TrainSettings(num_epochs=100),
        progress=Progress(epoch=epochs, best_score=0.5, best_epoch=best_epoch),
        history={"rows": [], "pending": {}},
        early_stopping={"num_stale_epochs": 0},
        is_complete=True,
        kind="raw",
        trainer=TrainerState(optimizer={}, schedule_epochs=100),
        checkpoints={"checkpoint_best.pth": best},
    )
    save_state(folder, state, confirm=lambda: None)
    return folder


def test_the_summary_says_how_many_epochs_each_fold_was_trained(tmp_path, description):
    runs = {
        0: _finished(tmp_path / "a", epochs=7, best_epoch=5),
        1: _finished(tmp_path / "b", epochs=9, best_epoch=9),
        2: None,
    }
    folds = summary_of_folds(runs, description)["folds"]
    assert [(fold["epochs"], fold["best_epoch"]) for fold in folds] == [(7, 5), (9, 9), (None, None)]
    assert [fold["experiment"] for fold in folds] == [str(tmp_path / "a"), str(tmp_path / "b"), None]
