import math

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from candy_monai.errors import SettingsError
from candy_monai.lightning import ForecastEarlyStopping
from tests.lightning_toys import Segmenter, fitted


class Scripted(Segmenter):
    """Logs a score that rises and comes to rest, or goes on to rise."""

    def __init__(self, *, rests: bool, sign: float = 1.0) -> None:
        super().__init__()
        self.rests, self.sign, self.seen = rests, sign, []

    def validation_step(self, batch, index):
        epoch = self.current_epoch + 1
        rise = 0.8 * (1 - math.exp(-epoch / 2)) if self.rests else 0.02 * epoch
        value = self.sign * (rise + 0.01 * math.sin(7 * epoch**2))
        self.log("score", value)


def epochs_with(tmp_path, *, rests: bool, sign: float = 1.0, **arguments) -> int:
    callback = ForecastEarlyStopping("score", **arguments)
    module = Scripted(rests=rests, sign=sign)
    trainer, _ = fitted(tmp_path, [callback], num_epochs=40, module=module, limit_train_batches=1, limit_val_batches=1)
    return trainer.current_epoch


@pytest.mark.slow
def test_a_metric_that_came_to_rest_ends_the_training_and_one_that_rises_does_not(tmp_path):
    assert epochs_with(tmp_path, rests=True) < 40
    assert epochs_with(tmp_path, rests=False) == 40


@pytest.mark.slow
def test_a_metric_that_is_better_when_lower_ends_it_at_the_same_epoch(tmp_path):
    rising = epochs_with(tmp_path, rests=True, score_range=(None, None))
    falling = epochs_with(tmp_path, rests=True, sign=-1.0, mode="min", score_range=(None, None))
    assert rising == falling < 40


def test_it_is_lightnings_early_stopping_with_its_reason(tmp_path):
    callback = ForecastEarlyStopping("score", patience=2)
    trainer, _ = fitted(
        tmp_path,
        [callback],
        num_epochs=40,
        module=Scripted(rests=True),
        limit_train_batches=1,
        limit_val_batches=1,
    )
    assert isinstance(callback, EarlyStopping)
    assert trainer.early_stopping_callback is callback
    assert callback.stopped_epoch == trainer.current_epoch - 1
    assert "The forecast is 90% sure, 2 checks in a row" in callback.stopping_reason_message


@pytest.mark.slow
def test_a_training_that_is_continued_stops_where_it_would_have(tmp_path):
    def run(folder, *, num_epochs=40, ckpt_path=None):
        keep = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
        trainer, _ = fitted(
            folder,
            [ForecastEarlyStopping("score", num_epochs=40), keep],
            num_epochs=num_epochs,
            module=Scripted(rests=True),
            limit_train_batches=1,
            limit_val_batches=1,
            ckpt_path=ckpt_path,
        )
        return trainer.current_epoch

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", num_epochs=8)
    assert run(tmp_path / "parts", ckpt_path=tmp_path / "parts" / "epoch=7.ckpt") == whole


def test_a_checkpoint_from_within_an_epoch_is_continued(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=3)  # an epoch has 4 steps
    fitted(tmp_path, [ForecastEarlyStopping("val_acc"), keep], num_epochs=2)
    resumed = ForecastEarlyStopping("val_acc")
    fitted(tmp_path, [resumed], num_epochs=2, ckpt_path=tmp_path / "step=3.ckpt")
    assert len(resumed._curve.scores) == 2


class Failing(Segmenter):
    """Logs a score that is NaN in the third epoch."""

    def validation_step(self, batch, index):
        self.log("score", math.nan if self.current_epoch == 2 else 0.5)


@pytest.mark.parametrize(("check_finite", "expected"), [(True, 3), (False, 5)])
def test_a_metric_that_is_nan_ends_the_training_as_lightning_does_unless_told_otherwise(
    tmp_path, check_finite, expected
):
    callback = ForecastEarlyStopping("score", check_finite=check_finite)
    few = {"limit_train_batches": 1, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    trainer, _ = fitted(tmp_path, [callback], num_epochs=5, module=Failing(), **few)
    assert trainer.current_epoch == expected
    assert ("not finite" in str(callback.stopping_reason_message)) is check_finite


@pytest.mark.parametrize("name", ["min_delta", "stopping_threshold", "divergence_threshold"])
def test_what_the_forecast_does_not_heed_is_refused(name):
    with pytest.raises(SettingsError, match=f"{name} has no effect"):
        ForecastEarlyStopping("score", **{name: 0.1})


def test_a_training_without_an_end_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="neither max_epochs nor max_steps"):
        fitted(tmp_path, [ForecastEarlyStopping("val_acc")], num_epochs=-1)


def test_its_state_is_plain_and_loads_weights_only(tmp_path):
    callback = ForecastEarlyStopping("val_acc")
    fitted(tmp_path, [callback], num_epochs=2)
    torch.save(callback.state_dict(), tmp_path / "state.pt")
    other = ForecastEarlyStopping("val_acc")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.state_dict() == callback.state_dict()


@pytest.mark.parametrize(
    "arguments",
    [
        {"confidence": 0.5},
        {"confidence": 0.99},
        {"margin": -1},
        {"patience": 0},
        {"mode": "up"},
        {"num_epochs": 0},
        {"score_range": 1},
    ],
)
def test_a_number_out_of_range_is_refused(arguments):
    with pytest.raises(SettingsError, match=next(iter(arguments))):
        ForecastEarlyStopping("val_acc", **arguments)
