import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from monai.losses import DiceLoss

from candy_monai.errors import SettingsError
from candy_monai.experiment import checkpoints
from candy_monai.experiment.history import load_metrics
from candy_monai.experiment.state import load_state
from candy_monai.forecasting.reading import read_scores
from candy_monai.lightning import ExperimentFolder, ForecastEarlyStopping, ForecastProgress, SegmentationPreviews
from tests.lightning_toys import Segmenter, fitted, loaders

ROOT = Path(__file__).parents[3]


def folder_of(trainer) -> Path:
    return next(callback.folder for callback in trainer.callbacks if isinstance(callback, ExperimentFolder))


def assert_same_weights(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def accuracy(weights) -> float:
    module = Segmenter()
    module.net.load_state_dict(weights)
    module.eval()
    with torch.no_grad():
        found = [(module(images).argmax(1) == labels).float().mean() for images, labels in loaders()[1]]
    return float(torch.stack(found).mean())


def all_callbacks(folder):
    return [
        ExperimentFolder(folder, monitor="val_acc", network="net", score_range=(0, 1)),
        ForecastProgress("val_acc", score_range=(0, 1)),
        ForecastEarlyStopping("val_acc", score_range=(0, 1)),
        SegmentationPreviews(image=0, label=1),
    ]


@pytest.mark.slow
def test_with_all_callbacks_the_weights_are_the_same_to_the_bit(tmp_path, curves):
    _, plain = fitted(tmp_path / "plain", num_epochs=7)
    trainer, module = fitted(tmp_path / "ours", all_callbacks(tmp_path / "experiments"), num_epochs=7)
    assert_same_weights(plain, module)
    folder = folder_of(trainer)
    assert folder.parent == tmp_path / "experiments" / "Segmenter"
    files = {path.name for path in folder.iterdir()}
    assert files >= {
        "experiment.json",
        "logs.txt",
        "metrics.csv",
        "state.pt",
        "progress.png",
        "val_acc.png",
        "checkpoint_best.pth",
        "checkpoint_latest.pth",
        "previews",
    }
    assert not any(name.startswith(".") for name in files)
    log = (folder / "logs.txt").read_text()
    assert "predicted at epoch" in log
    assert "Best validation score" in log


def test_each_epoch_is_one_row_with_what_was_logged_in_it_whatever_hook_logged_it(tmp_path):
    trainer, _ = fitted(tmp_path, [ExperimentFolder(tmp_path / "e", monitor="val_acc")], check_val_every_n_epoch=2)
    metrics = load_metrics(folder_of(trainer) / "metrics.csv")
    assert metrics["train_epoch"] == [0.0, 1.0, 2.0]
    assert [value == value for value in metrics["val_acc"]] == [False, True, False]  # NaN where it was not validated
    assert metrics["val score"][1] == metrics["val_acc"][1]
    assert "train_loss_step" not in metrics
    assert len(set(metrics["train_loss"])) == 3
    assert metrics["learning rate"][0] == 0.01
    history = read_scores(folder_of(trainer))
    assert (len(history.scores), history.horizon) == (3, 3)


def test_the_best_weights_score_what_is_written_of_them(tmp_path):
    callback = ExperimentFolder(tmp_path / "e", monitor="val_acc", network="net")
    trainer, module = fitted(tmp_path, [callback], num_epochs=5, module=Segmenter(lr=0.3))
    folder, scores = folder_of(trainer), read_scores(folder_of(trainer)).scores
    record = load_state(folder).checkpoints["checkpoint_best.pth"]
    assert (record.epoch, record.score) == (scores.index(max(scores)) + 1, max(scores))
    assert accuracy(torch.load(folder / "checkpoint_best.pth")) == pytest.approx(max(scores), abs=1e-6)
    latest = torch.load(folder / "checkpoint_latest.pth")
    for name, value in module.net.state_dict().items():
        assert torch.equal(value, latest[name])


@pytest.mark.parametrize("ours_first", [False, True])
def test_of_a_moving_average_it_is_the_average_that_is_saved_as_the_best(tmp_path, ours_first):
    callbacks = [EMAWeightAveraging(decay=0.8), ExperimentFolder(tmp_path / "e", monitor="val_acc", network="net")]
    trainer, module = fitted(tmp_path, callbacks[::-1] if ours_first else callbacks, num_epochs=6)
    folder = folder_of(trainer)
    record = load_state(folder).checkpoints["checkpoint_best.pth"]
    assert (record.epoch, record.kind) == (6, "ema")
    best, latest = (torch.load(folder / f"checkpoint_{name}.pth") for name in ("best", "latest"))
    assert accuracy(best) == pytest.approx(record.score, abs=1e-6)
    assert accuracy(latest) != pytest.approx(record.score, abs=1e-6)
    for name, value in module.net.state_dict().items():  # the callback leaves its average in the module
        assert torch.equal(value, best[name])


def test_of_a_metric_that_is_better_when_lower_the_negative_is_the_score(tmp_path):
    trainer, _ = fitted(
        tmp_path, [ExperimentFolder(tmp_path / "e", monitor="val_loss", mode="min", score_range=(0, None))]
    )
    metrics = load_metrics(folder_of(trainer) / "metrics.csv")
    assert metrics["val score"] == [-value for value in metrics["val_loss"]]
    assert json.loads((folder_of(trainer) / "experiment.json").read_text())["score_range"] == [None, 0]


@pytest.mark.parametrize("at_validation", [False, True])
def test_a_training_that_is_continued_goes_on_in_its_folder_as_lightning_continues_it(tmp_path, at_validation):
    def run(root, *, ours, ckpt_path=None):
        keep = ModelCheckpoint(root, "{epoch}", save_top_k=-1, save_on_train_epoch_end=not at_validation)
        mine = [ExperimentFolder(root / "e", monitor="val_acc")] if ours else []
        return fitted(root, [*mine, keep], num_epochs=5, ckpt_path=ckpt_path)

    run(tmp_path / "plain", ours=False)
    _, expected = run(tmp_path / "plain", ours=False, ckpt_path=tmp_path / "plain" / "epoch=1.ckpt")
    root = tmp_path / "ours"
    begun, _ = run(root, ours=True)
    before = load_metrics(folder_of(begun) / "metrics.csv")
    # Trained to its end, and again from its third epoch on.
    trainer, module = run(root, ours=True, ckpt_path=root / "epoch=1.ckpt")
    assert_same_weights(expected, module)
    folder = folder_of(trainer)
    assert folder.samefile(folder_of(begun))
    after = load_metrics(folder / "metrics.csv")
    assert "Continued after epoch" in (folder / "logs.txt").read_text()
    for name in ("val score", "val_acc", "val_loss"):
        assert after[name][:2] == before[name][:2]
        assert after[name][2:] != before[name][2:]  # Lightning does not continue the shuffle
        assert len(after[name]) == 5
    # At a validation it is not known yet what the module logs when the epoch is over.
    assert after["train_epoch"][2:] == [2.0, 3.0, 4.0]
    assert (after["train_epoch"][1] == 1.0) is not at_validation
    assert (after["train_loss"][1] == before["train_loss"][1]) is not at_validation
    assert at_validation is math.isnan(after["train_loss"][1])  # and not that of the last step
    assert "train_loss_step" not in after
    record = load_state(folder).checkpoints["checkpoint_best.pth"]
    module.load_state_dict(torch.load(folder / "checkpoint_best.pth"))
    assert accuracy(module.net.state_dict()) == pytest.approx(record.score, abs=1e-6)
    assert record.score == after["val score"][record.epoch - 1] == max(after["val score"])


def test_a_folder_that_is_gone_is_begun_anew_with_a_warning(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer, _ = fitted(tmp_path, [ExperimentFolder(tmp_path / "e", monitor="val_acc"), keep], num_epochs=2)
    (folder_of(trainer) / "state.pt").unlink()
    with pytest.warns(UserWarning, match="continues in a new folder"):
        again, _ = fitted(
            tmp_path,
            [ExperimentFolder(tmp_path / "e", monitor="val_acc")],
            num_epochs=3,
            ckpt_path=tmp_path / "epoch=0.ckpt",
        )
    metrics = load_metrics(folder_of(again) / "metrics.csv")
    assert [value == value for value in metrics["val_acc"]] == [False, True, True]


class Failing(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == 2:
            raise OSError("the scanner is on fire")


def test_a_training_that_fails_is_told_in_the_log_and_its_folder_is_released(tmp_path):
    callback = ExperimentFolder(tmp_path / "e", monitor="val_acc")
    with pytest.raises(OSError, match="fire"):
        fitted(tmp_path, [callback, Failing()])
    assert "Interrupted in epoch 3: OSError: the scanner is on fire" in (callback.folder / "logs.txt").read_text()
    assert not (callback.folder / ".lock").exists()
    assert len(read_scores(callback.folder).scores) == 2


def test_without_validation_a_metric_of_the_training_is_the_score(tmp_path):
    callback = ExperimentFolder(tmp_path / "e", monitor="train_loss", mode="min")
    fitted(tmp_path, [callback], validates=False)
    metrics = load_metrics(callback.folder / "metrics.csv")
    assert metrics["val score"] == [-value for value in metrics["train_loss"]]


@pytest.mark.parametrize("at_validation", [False, True])
@pytest.mark.parametrize("metric", ["train_loss", "train_loss_epoch"])
def test_with_validation_a_metric_of_the_training_is_the_score_too(tmp_path, metric, at_validation):
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=not at_validation)
    callback = ExperimentFolder(tmp_path / "e", monitor=metric, mode="min")
    fitted(tmp_path, [callback, keep])
    metrics = load_metrics(callback.folder / "metrics.csv")
    assert metrics["val score"] == [-value for value in metrics["train_loss"]]


def test_a_validation_within_an_epoch_is_no_score_of_its_last_weights(tmp_path):
    callback = ExperimentFolder(tmp_path / "e", monitor="val_acc")
    fitted(tmp_path, [callback], val_check_interval=3)  # of 4 batches
    metrics = load_metrics(callback.folder / "metrics.csv")
    assert "val score" not in metrics
    assert len(metrics["val_acc"]) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"monitor": "val_ac"}, "no metric of this name was logged; known are: .*val_acc.* Did you mean 'val_acc'"),
        ({"monitor": "val_acc", "network": "model"}, "has no network of this name; its own are: net"),
        ({"monitor": "val_acc", "mode": "maximum"}, "mode must be 'min' or 'max'"),
    ],
)
def test_what_cannot_be_is_one_clear_error(tmp_path, arguments, said):
    with pytest.raises(SettingsError, match=said):
        fitted(tmp_path, [ExperimentFolder(tmp_path / "e", **arguments)])


class EverySecond(Segmenter):
    """Logs its accuracy in every second epoch only."""

    def validation_step(self, batch, index):
        if self.current_epoch % 2 == 0:
            super().validation_step(batch, index)


def test_an_epoch_in_which_the_metric_was_not_logged_has_no_score(tmp_path):
    callbacks = [
        ExperimentFolder(tmp_path / "e", monitor="val_acc"),
        ForecastProgress("val_acc"),
        ForecastEarlyStopping("val_acc"),
    ]
    fitted(tmp_path, callbacks, num_epochs=5, module=EverySecond())
    metrics = load_metrics(callbacks[0].folder / "metrics.csv")
    assert [math.isnan(score) for score in metrics["val score"]] == [False, True, False, True, False]
    expected = pytest.approx(metrics["val_acc"], nan_ok=True)
    assert metrics["val score"] == callbacks[1]._curve.scores == callbacks[2]._curve.scores == expected


def test_without_validation_a_metric_that_is_not_logged_is_a_warning_as_in_lightning(tmp_path):
    callbacks = [ExperimentFolder(tmp_path / "e", monitor="val_acc"), ForecastProgress("val_acc")]
    with pytest.warns(UserWarning, match="no metric of this name was logged.* There is no validation"):
        fitted(tmp_path, callbacks, limit_val_batches=0)
    assert len(load_metrics(callbacks[0].folder / "metrics.csv")["train_loss"]) == 3


class FullDisk(Callback):
    """Lets the writing of weights fail in the second and the third epoch."""

    def __init__(self, monkeypatch):
        self._monkeypatch, self._save = monkeypatch, checkpoints._save

    def on_train_epoch_start(self, trainer, module):
        save = self._fail if trainer.current_epoch in (1, 2) else self._save
        self._monkeypatch.setattr(checkpoints, "_save", save)

    def _fail(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_does_not_end_the_training(tmp_path, monkeypatch):
    _, plain = fitted(tmp_path, num_epochs=5)
    callback = ExperimentFolder(tmp_path / "e", monitor="val_acc")
    with pytest.warns(UserWarning, match=r"cannot be written \(No space left on device\). The training continues"):
        _, module = fitted(tmp_path, [callback, FullDisk(monkeypatch)], num_epochs=5)
    assert_same_weights(plain, module)
    assert len(read_scores(callback.folder).scores) == 5
    latest = torch.load(callback.folder / "checkpoint_latest.pth")
    assert all(torch.equal(latest[name], value) for name, value in module.state_dict().items())


def test_another_fit_for_more_epochs_continues_in_the_same_folder(tmp_path):
    callback = ExperimentFolder(tmp_path / "e", monitor="val_acc")
    trainer, module = fitted(tmp_path, [callback], num_epochs=2)
    trainer.fit_loop.max_epochs = 5
    trainer.fit(module, *loaders())
    (folder,) = (tmp_path / "e" / "Segmenter").iterdir()
    metrics = load_metrics(folder / "metrics.csv")
    assert [math.isfinite(score) for score in metrics["val score"]] == [True] * 5
    assert read_scores(folder).horizon == 5
    assert "Continued after epoch 2" in (folder / "logs.txt").read_text()
    fitted(tmp_path, [callback], num_epochs=2)  # another training
    assert callback.folder != folder


def test_a_checkpoint_saved_after_the_training_is_continued_in_the_same_folder(tmp_path):
    callback = ExperimentFolder(tmp_path / "e", monitor="val_acc")
    trainer, _ = fitted(tmp_path, [callback], num_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = ExperimentFolder(tmp_path / "e", monitor="val_acc")
    fitted(tmp_path, [again], num_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert again.folder.samefile(callback.folder)
    assert [math.isfinite(score) for score in read_scores(again.folder).scores] == [True] * 3


def test_a_training_that_is_continued_for_longer_says_so_in_its_description(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    callback = ExperimentFolder(tmp_path / "e", monitor="val_acc")
    fitted(tmp_path, [callback, keep], num_epochs=2)
    before = load_metrics(callback.folder / "metrics.csv")["epoch duration"]
    with pytest.raises(OSError, match="fire"):
        fitted(tmp_path, [callback, Failing()], num_epochs=6, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert read_scores(callback.folder).horizon == 6
    assert "Continued after epoch 2" in (callback.folder / "logs.txt").read_text()
    after = load_metrics(callback.folder / "metrics.csv")["epoch duration"]
    assert after[1] > before[1] / 2


def test_a_dry_run_leaves_no_folder(tmp_path):
    fitted(tmp_path, [ExperimentFolder(tmp_path / "e", monitor="val_acc")], fast_dev_run=True)
    assert not (tmp_path / "e").exists()


@pytest.mark.slow
def test_of_two_processes_the_first_one_writes_one_folder(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from candy_monai.lightning import ExperimentFolder, ForecastEarlyStopping, ForecastProgress\n"
        "from tests.lightning_toys import fitted\n"
        f"ours = [ExperimentFolder({str(tmp_path / 'e')!r}, monitor='val_acc'), ForecastProgress('val_acc'),\n"
        "        ForecastEarlyStopping('val_acc')]\n"
        f"fitted({str(tmp_path)!r}, ours, num_epochs=7, devices=2, strategy='ddp')\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "e" / "Segmenter").iterdir()
    assert len(read_scores(folder).scores) == 7
    assert json.loads((folder / "experiment.json").read_text())["processes"] == 2


@pytest.mark.parametrize("softmax", [False, True])
def test_a_loss_of_monai_that_gets_logits_is_said_in_the_log(tmp_path, softmax):
    class Diced(Segmenter):
        def __init__(self):
            super().__init__()
            self.loss = DiceLoss(to_onehot_y=True, softmax=softmax)

        def training_step(self, batch, index):
            images, labels = batch
            return self.loss(self(images), labels[:, None])

    trainer, module = fitted(
        tmp_path, [ExperimentFolder(tmp_path / "runs", monitor="val_acc")], num_epochs=1, module=Diced()
    )
    log = (folder_of(trainer) / "logs.txt").read_text(encoding="utf-8")
    assert log.count("Warning: the loss DiceLoss was given no activation") == (not softmax)
    assert not module.loss._forward_pre_hooks
