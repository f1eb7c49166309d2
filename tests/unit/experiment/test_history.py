import math

import numpy as np
import pytest
import torch

from candy_monai.errors import BadInputError
from candy_monai.experiment.history import History, column_beside, last_epoch_as_text, load_metrics


def test_an_epoch_s_metric_is_the_mean_of_what_was_recorded():
    history = History()
    history.record("loss", 1.0)
    history.record("loss", torch.tensor(3.0))
    assert history.close_epoch() == {"loss": 2.0}


def test_a_value_that_was_not_measured_is_left_out_of_the_mean():
    history = History()
    for value in (0.5, math.nan, torch.tensor(math.nan), torch.tensor(0.7)):
        history.record("dice", value)
    assert math.isclose(history.close_epoch()["dice"], 0.6, rel_tol=1e-6)


def test_a_metric_that_is_never_measured_is_nan_and_an_empty_cell(tmp_path):
    history = History()
    history.record("dice 2", math.nan)
    history.record("loss", 1.0)
    history.close_epoch()
    history.save_csv(tmp_path / "metrics.csv")
    assert (tmp_path / "metrics.csv").read_text() == "epoch,dice 2,loss\n1,,1.0\n"


def test_a_metric_that_appears_late_is_nan_before(tmp_path):
    history = History()
    history.record("loss", 2.0)
    history.close_epoch()
    history.record("loss", 1.0)
    history.record("val score", 0.5)
    history.close_epoch()
    assert math.isnan(history.metrics()["val score"][0])
    history.save_csv(tmp_path / "metrics.csv")
    loaded = load_metrics(tmp_path / "metrics.csv")
    assert loaded["loss"] == [2.0, 1.0]
    assert math.isnan(loaded["val score"][0])
    assert loaded["val score"][1] == 0.5


def test_a_tensor_of_several_numbers_is_refused_where_it_is_recorded():
    with pytest.raises(ValueError, match=r"'dice'.*\(2,\)"):
        History().record("dice", torch.zeros(2))


def test_recording_keeps_no_graph_alive():
    history = History()
    weight = torch.ones(1, requires_grad=True)
    history.record("loss", (weight * 2).sum())
    assert not history._pending["loss"][0].requires_grad


def test_a_saved_history_continues_where_it_was():
    history, copy = History(), History()
    history.record("loss", 1.0)
    history.close_epoch()
    copy.load_state_dict(history.state_dict())
    copy.record("loss", 0.5)
    copy.close_epoch()
    assert copy.metrics() == {"loss": [1.0, 0.5]}
    assert len(history) == 1


def test_metric_names_with_commas_and_quotes_survive_the_file(tmp_path):
    history = History()
    history.record('dice, "left"', 0.25)
    history.close_epoch()
    history.save_csv(tmp_path / "metrics.csv")
    assert load_metrics(tmp_path / "metrics.csv") == {'dice, "left"': [0.25]}


def test_the_log_s_line_leaves_out_what_was_not_measured():
    assert last_epoch_as_text({"loss": [0.5, 0.25], "dice 2": [0.1, math.nan]}) == "loss 0.25"


def test_the_log_lists_the_worst_of_many_classes():
    text = last_epoch_as_text({f"val dice {index}": [index / 100] for index in range(20)})
    assert text.startswith("val dice 0 0, val dice 1 0.01, ")
    assert text.endswith("val dice 4 0.04 (the 5 lowest of 20 classes of val dice)")


def test_a_history_knows_the_metrics_that_it_has_closed():
    history = History()
    history.record("loss", 1.0)
    assert "loss" not in history
    history.close_epoch()
    again = History()
    again.load_state_dict(history.state_dict())
    assert "loss" in history
    assert "loss" in again


def test_a_recorded_tensor_or_array_that_is_changed_afterwards_is_kept_as_it_was():
    history, count, array = History(), torch.zeros(()), np.zeros(1)
    for _ in range(4):
        count += 1
        array += 1
        history.record("count", count)
        history.record("array", array)
    assert history.close_epoch() == {"count": 2.5, "array": 2.5}


def test_a_masked_number_was_not_measured():
    history = History()
    for value in (np.ma.masked, np.ma.array(3, mask=True), np.ma.array(2.0)):
        history.record("dice", value)
    assert history.close_epoch() == {"dice": 2.0}


@pytest.mark.parametrize("value", [torch.tensor(2**40 + 1), torch.tensor(0.1, dtype=torch.float64), 2**40 + 1])
def test_a_number_is_kept_as_exactly_as_it_was_recorded(value):
    history = History()
    history.record("count", value)
    assert history.close_epoch() == {"count": float(value)}


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("0.5", "'0.5'"),
        (None, "None"),
        ([1.0], "a list"),
        (np.ones(2), "an array of shape"),
        (1j, "a complex"),
        (np.complex64(1 + 2j), "a complex64"),
        (np.datetime64("2026-01-01"), "a datetime64"),
        (10**400, "a number too large"),
    ],
)
def test_what_is_no_number_is_refused_when_it_is_recorded(value, found):
    with pytest.raises(BadInputError, match=f"metric 'dice' must be one number, got {found}"):
        History().record("dice", value)


def test_the_columns_of_a_run_are_not_averaged_with_metrics_of_these_names():
    for name in ("epoch", "learning rate", "epoch duration", "val score", "combined loss"):
        assert column_beside(name) == f"{name} (metric)"
    for name in ("dice", "score", "val combined loss", "Epoch"):
        assert column_beside(name) == name


def test_the_loss_of_a_loop_that_records_it_itself_is_the_loss():
    history = History()
    history.record(column_beside("combined loss"), 2.0)
    assert history.close_epoch({"val score": 0.5}) == {"combined loss": 2.0, "val score": 0.5}
    history.record(column_beside("combined loss"), 2.0)
    history.record("combined loss", 1.0)
    assert history.close_epoch() == {"combined loss (metric)": 2.0, "combined loss": 1.0}
