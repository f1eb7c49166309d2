from __future__ import annotations

import json
import math

import pytest

from candy_monai.errors import BadInputError
from candy_monai.forecasting.reading import read_scores

NNUNET_LOG = """
#######################################################################
Please cite the following paper when using nnU-Net:
2026-03-01 22:00:00.123456: do_dummy_2d_data_aug: False
2026-03-01 22:00:01.000000: Epoch 0
2026-03-01 22:00:01.000001: Current learning rate: 0.01
2026-03-01 22:02:00.000000: train_loss -0.1
2026-03-01 22:02:00.000001: val_loss -0.25
2026-03-01 22:02:00.000002: Pseudo dice [np.float32(0.2), np.float32(0.4)]
2026-03-01 22:02:00.000003: Epoch time: 120.5 s
2026-03-01 22:02:00.000004: Yayy! New best EMA pseudo Dice: 0.3
2026-03-01 22:02:01.000000: Epoch 1
2026-03-01 22:02:01.000001: Current learning rate: 0.00999
2026-03-01 22:04:00.000001: val_loss -0.5
2026-03-01 22:04:00.000002: Pseudo dice [0.5, nan, 0.7]
2026-03-01 22:04:00.000003: Epoch time: 60.5 s
2026-03-01 22:04:01.000000: Epoch 2
2026-03-01 22:04:01.000001: Current learning rate: 0.00998
"""


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_of_nnunet_s_log_the_score_is_the_mean_pseudo_dice_over_the_classes_that_have_one(tmp_path):
    history = read_scores(write(tmp_path / "training_log_2026_3_1_22_00_00.txt", NNUNET_LOG))
    assert history.scores == pytest.approx((0.3, 0.6))
    assert history.learning_rates == (0.01, 0.00999)
    assert history.durations_s == (120.5, 60.5)
    assert (history.first_epoch, history.name) == (0, "Pseudo dice")


def test_nnunet_plans_1000_epochs_unless_its_debug_json_says_otherwise(tmp_path):
    log = write(tmp_path / "training_log_2026_3_1_22_00_00.txt", NNUNET_LOG)
    assert read_scores(log).horizon == 1000
    write(tmp_path / "debug.json", json.dumps({"num_epochs": "250"}))
    assert read_scores(log).horizon == 250


def test_nnunet_s_loss_is_negated(tmp_path):
    history = read_scores(write(tmp_path / "log.txt", NNUNET_LOG), column="val_loss")
    assert (history.scores, history.name) == ((0.25, 0.5), "-val_loss")


def test_a_resumed_run_of_nnunet_is_read_from_all_its_logs_the_later_one_winning(tmp_path):
    write(tmp_path / "training_log_2026_3_1_22_00_00.txt", NNUNET_LOG)
    resumed = "2026-03-02 08:00:00.0: Epoch 1\n2026-03-02 08:02:00.0: Pseudo dice [0.9]\n"
    write(tmp_path / "training_log_2026_3_2_08_00_00.txt", resumed)
    assert read_scores(tmp_path).scores == pytest.approx((0.3, 0.9))


def test_a_line_of_nnunet_that_a_crash_cut_off_is_no_score(tmp_path):
    cut = "2026-03-02 08:02:00.0: Pseudo dice [np.float32(0.9), np.flo"
    history = read_scores(write(tmp_path / "log.txt", NNUNET_LOG + cut))
    assert history.scores == pytest.approx((0.3, 0.6, math.nan), nan_ok=True)


def test_our_metrics_come_with_the_plan_of_their_experiment(tmp_path):
    write(
        tmp_path / "metrics.csv",
        "epoch,val score,learning rate,epoch duration\n1,0.1,0.01,2.0\n2,,0.005,3.0\n3,0.3,,\n",
    )
    write(tmp_path / "experiment.json", json.dumps({"settings": {"num_epochs": 50}}))
    history = read_scores(tmp_path)
    assert history.scores == pytest.approx((0.1, math.nan, 0.3), nan_ok=True)
    assert history.learning_rates == pytest.approx((0.01, 0.005, math.nan), nan_ok=True)
    assert (history.horizon, history.first_epoch) == (50, 1)


def test_lightning_s_metrics_have_several_rows_an_epoch_and_count_from_0(tmp_path):
    rows = "epoch,step,train_loss,val_dice\n0,9,0.8,\n0,9,,0.4\n1,19,0.6,\n1,19,,0.5\n3,39,,0.6\n"
    history = read_scores(write(tmp_path / "metrics.csv", rows), column="val_dice")
    assert history.scores == pytest.approx((0.4, 0.5, math.nan, 0.6), nan_ok=True)
    assert (history.first_epoch, history.horizon) == (0, None)


def test_a_csv_without_epochs_has_one_a_row(tmp_path):
    assert read_scores(write(tmp_path / "a.csv", "val score\n0.1\n0.2\n")).scores == (0.1, 0.2)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_csv_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    (tmp_path / "a.csv").write_text("epoch,val score\n1,0.1\n2,0.2\n", encoding=encoding)
    assert read_scores(tmp_path / "a.csv").scores == (0.1, 0.2)


@pytest.mark.parametrize("column", ["val_loss", "val assd", "perplexity"])
def test_a_metric_that_is_better_when_lower_is_negated_and_named_so(tmp_path, column):
    history = read_scores(write(tmp_path / "a.csv", f"epoch,{column}\n1,0.5\n2,0.25\n"), column=column)
    assert (history.scores, history.name) == ((-0.5, -0.25), f"-{column}")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.csv", "", "holds no epoch"),
        ("metrics.csv", "epoch,val score\n", "holds no epoch"),
        ("metrics.csv", "epoch,val dice\n1,0.5\n", "no column 'val score', only 'val dice'. Choose one with --column"),
        ("metrics.csv", "epoch,val score\n1,good\n", "'good', which is not a number"),
        ("metrics.csv", "epoch,val score\n1.5,0.5\n", "1.5 is not an epoch number"),
        ("metrics.csv", "epoch,val score\n9999999999,0.5\n", "is not an epoch number"),
        ("metrics.csv", "epoch,val score\n,0.5\n", "'epoch' holds no number"),
        ("log.txt", "nothing of nnU-Net", "holds no line 'Pseudo dice ...'"),
        ("log.txt", "\x00\xff" * 50, "holds no line 'Pseudo dice ...'"),
    ],
)
def test_what_holds_no_scores_is_refused_with_the_file_and_the_reason(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(BadInputError) as caught:
        read_scores(path)
    assert name in str(caught.value)
    assert message in str(caught.value)


def test_a_misspelt_column_is_refused_with_the_closest_one(tmp_path):
    path = write(tmp_path / "a.csv", "epoch,val_dice\n1,0.5\n")
    with pytest.raises(BadInputError, match="Did you mean 'val_dice'"):
        read_scores(path, column="val_dise")


def test_a_folder_without_scores_and_a_missing_file_are_refused(tmp_path):
    with pytest.raises(BadInputError, match=r"neither a metrics\.csv nor a training_log"):
        read_scores(tmp_path)
    with pytest.raises(BadInputError, match="no such file"):
        read_scores(tmp_path / "missing.csv")
