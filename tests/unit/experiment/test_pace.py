import pytest

from candy_monai.experiment.pace import epochs_in_time


def test_without_a_limit_or_before_the_first_epoch_the_run_is_as_long_as_planned():
    assert epochs_in_time([9.0, 9.0], elapsed_s=18.0, num_epochs=5, limit_s=None) == 5
    assert epochs_in_time([], elapsed_s=0.0, num_epochs=5, limit_s=1.0) == 5
    assert epochs_in_time([0.0], elapsed_s=0.0, num_epochs=5, limit_s=1.0) == 5


@pytest.mark.parametrize(
    ("limit_s", "expected"),
    [(100.0, 8), (60.0, 6), (59.0, 5), (20.0, 2), (1.0, 2)],
)
def test_as_many_epochs_are_expected_as_fit_and_none_that_is_done_is_taken_back(limit_s, expected):
    assert epochs_in_time([10.0, 10.0], elapsed_s=20.0, num_epochs=8, limit_s=limit_s) == expected


def test_what_the_machine_does_now_counts_and_not_what_it_did_long_ago():
    # 100 s are left, and the last epochs took 20 s each.
    durations_s = [5.0] * 4 + [20.0] * 4
    assert epochs_in_time(durations_s, elapsed_s=100.0, num_epochs=99, limit_s=200.0) == 8 + 5
