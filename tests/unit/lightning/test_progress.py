import csv

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from candy_monai.errors import SettingsError
from candy_monai.forecasting.best_score import forecast
from candy_monai.lightning import ForecastProgress
from tests.lightning_toys import fitted


def logged(trainer):
    with open(f"{trainer.logger.log_dir}/metrics.csv") as file:
        return list(csv.DictReader(file))


def test_the_forecast_goes_to_the_loggers_and_the_first_to_the_screen(tmp_path, capsys):
    callback = ForecastProgress("val_acc", score_range=(0, 1))
    trainer, _ = fitted(tmp_path, [callback], num_epochs=8)
    rows = [row for row in logged(trainer) if row.get("val_acc_forecast")]
    assert [int(row["epoch"]) for row in rows] == [5, 6]  # six scores are needed, and at the end nothing is left
    scores = callback._curve.scores
    rates = [callback._curve._rates[epoch] for epoch in range(7)]
    said = forecast(scores[:7], 8, score_range=(0, 1), learning_rates=rates)
    assert float(rows[1]["val_acc_forecast"]) == pytest.approx(said.score, abs=1e-6)
    assert float(rows[1]["val_acc_forecast_low"]) == pytest.approx(said.interval[0], abs=1e-6)
    assert float(rows[1]["val_acc_forecast_high"]) == pytest.approx(said.interval[1], abs=1e-6)
    assert "val_acc: 0." in capsys.readouterr().out


def test_of_a_loss_the_forecast_is_a_loss(tmp_path):
    trainer, _ = fitted(
        tmp_path, [ForecastProgress("val_loss", mode="min", score_range=(0, None), verbose=False)], num_epochs=8
    )
    losses = [float(row["val_loss"]) for row in logged(trainer) if row.get("val_loss")]
    row = next(row for row in logged(trainer) if row.get("val_loss_forecast"))
    assert 0 <= float(row["val_loss_forecast_low"]) <= float(row["val_loss_forecast"]) <= min(losses[:6])


def test_a_training_that_is_continued_remembers_its_scores(tmp_path):
    keep = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    whole = ForecastProgress("val_acc")
    fitted(tmp_path, [whole, keep], num_epochs=8)
    resumed = ForecastProgress("val_acc")
    trainer, _ = fitted(tmp_path, [resumed], num_epochs=8, ckpt_path=tmp_path / "epoch=5.ckpt")
    assert resumed._curve.scores[:6] == whole._curve.scores[:6]
    assert len(resumed._curve.scores) == 8
    assert [int(row["epoch"]) for row in logged(trainer) if row.get("val_acc_forecast")] == [6]


def test_a_metric_of_the_training_is_that_of_the_epoch(tmp_path):
    callback = ForecastProgress("train_loss", mode="min")
    trainer, _ = fitted(tmp_path, [callback])
    assert callback._curve.scores == [
        -float(row["train_loss_epoch"]) for row in logged(trainer) if row["train_loss_epoch"]
    ]


def test_another_training_begins_with_no_scores_of_the_one_before(tmp_path):
    callback = ForecastProgress("val_acc")
    fitted(tmp_path, [callback], num_epochs=8)
    fitted(tmp_path, [callback], num_epochs=2)
    assert len(callback._curve.scores) == 2


def test_the_sanity_check_is_no_score(tmp_path):
    callback = ForecastProgress("val_acc")
    fitted(tmp_path, [callback], num_epochs=2, num_sanity_val_steps=2)
    assert len(callback._curve.scores) == 2


def test_a_metric_that_is_not_logged_is_named_with_those_that_are(tmp_path):
    with pytest.raises(SettingsError, match=r"monitor='dice'.*val_acc"):
        fitted(tmp_path, [ForecastProgress("dice")])
