import pytest

from candy_monai.experiment.time_limit import StepPace, epochs_in_time


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


@pytest.mark.parametrize(("limit_s", "expected"), [(49.0, 5), (41.0, 4), (42.4, 4), (44.0, 5)])
def test_where_an_epoch_can_be_cut_short_one_is_begun_of_which_a_part_fits_besides_its_end(limit_s, expected):
    # Of 10 s two are the end; of the other 8 s more than 15 %, 1.2 s, must fit: 40 + 2 + 1.2 s are needed for a fifth.
    fits = epochs_in_time([10.0] * 4, elapsed_s=40.0, num_epochs=9, limit_s=limit_s, closing_s=2.0)
    assert fits == expected


def test_the_pace_of_steps_is_the_median_of_the_recent_ones_and_unknown_at_first():
    pace = StepPace()
    pace.begin_epoch()
    for epoch_s in (5.0, 9.0, 10.0):  # the first counts from the epoch's begin, which may be long
        pace.step_done(epoch_s, num_batches=1)
    assert pace.batches_in(10.0) is None
    pace.step_done(11.0, num_batches=1)  # 4, 1 and 1 s
    assert pace.batches_in(10.0) == 10
    assert pace.batches_in(-1.0) == 1


def test_what_follows_the_last_step_of_a_validated_epoch_counts():
    pace = StepPace()
    pace.step_done(8.0, num_batches=1)
    pace.end_epoch(8.5, validated=False)
    assert pace.closing_s == 0.5
    pace.step_done(8.0, num_batches=1)
    pace.end_epoch(11.0, validated=True)
    assert pace.closing_s == 3.0


def test_what_follows_the_last_step_counts_as_slow_as_the_machine_is_now():
    pace = StepPace()
    for epoch_s in range(8):
        pace.step_done(float(epoch_s), num_batches=1)
    pace.end_epoch(9.0, validated=True)
    assert pace.coming_closing_s == 2.0
    pace.begin_epoch()
    for epoch_s in range(0, 80, 3):
        pace.step_done(float(epoch_s), num_batches=1)
    assert pace.coming_closing_s == 6.0
    pace.end_epoch(84.0, validated=True)  # which took as long as was to be expected
    assert pace.coming_closing_s == pace.closing_s == 6.0
