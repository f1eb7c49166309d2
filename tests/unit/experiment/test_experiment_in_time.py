import pytest

from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.settings import TrainSettings


def test_no_epoch_is_begun_that_would_end_after_the_time_limit(tmp_path):
    now = [0.0]
    settings = TrainSettings(num_epochs=100, time_limit_s=35.0)
    experiment = Experiment(tmp_path, settings, clock=lambda: now[0])
    done = 0
    while not experiment.is_complete:
        now[0] += 10.0
        experiment.finish_epoch(float(done))
        done += 1
    assert done == 3
    assert experiment.is_out_of_time


def test_those_who_watch_hear_how_many_epochs_the_time_holds(tmp_path):
    now = [0.0]
    experiment = Experiment(tmp_path, TrainSettings(num_epochs=100, time_limit_s=35.0), clock=lambda: now[0])
    now[0] += 10.0
    experiment.finish_epoch(None)
    assert experiment.epoch_finished(None, None).num_epochs == 3


def test_an_epoch_is_over_when_only_the_time_for_its_validation_is_left_and_the_next_is_cut_short(tmp_path):
    now = [0.0]
    experiment = Experiment(tmp_path, TrainSettings(num_epochs=9, time_limit_s=25.0), clock=lambda: now[0])
    for _ in range(2):
        experiment.begin_epoch(0.1)
        for _ in range(8):  # of a second each; then two for the validation
            now[0] += 1.0
            experiment.step_done(num_batches=1)
        now[0] += 2.0
        experiment.finish_epoch(0.5)
    assert experiment.expected_epochs() == 3
    experiment.begin_epoch(0.1)
    lasted = 0
    while experiment.left_s > 0:
        assert experiment.batches_left == max(1, 3 - lasted)
        now[0] += 1.0
        lasted += 1
        experiment.step_done(num_batches=1)
    assert lasted == 3  # and two seconds are left for the validation
    assert experiment.ends_with_this_epoch()
    now[0] += 2.0
    experiment.finish_epoch(0.5)
    assert experiment.is_complete


def test_after_an_epoch_that_was_not_validated_for_being_the_last_there_is_another(tmp_path):
    now = [0.0]
    experiment = Experiment(tmp_path, TrainSettings(num_epochs=9, time_limit_s=20.0), clock=lambda: now[0])
    experiment.begin_epoch(0.1)
    now[0] += 9.0
    assert not experiment.ends_with_this_epoch()
    now[0] += 8.0  # something else had the machine
    experiment.finish_epoch(None)
    assert not experiment.is_complete


@pytest.mark.parametrize(("limit_s", "is_last"), [(33.0, True), (35.0, False)])
def test_where_hardly_more_than_another_validation_has_time_the_epoch_is_the_last(tmp_path, limit_s, is_last):
    now = [0.0]
    experiment = Experiment(tmp_path, TrainSettings(num_epochs=9, time_limit_s=limit_s), clock=lambda: now[0])
    for step_s in (1.0, 2.0):  # the machine becomes slower
        experiment.begin_epoch(0.1)
        for _ in range(10):
            now[0] += step_s
            experiment.step_done(num_batches=1)
        ends = experiment.ends_with_this_epoch()
        now[0] += 0.1 * step_s
        experiment.finish_epoch(0.5)
    # 2.5 s or 4.5 s are left beside another validation, and 15 % of the last epoch's steps are 3 s.
    assert ends == experiment.is_complete == is_last


def test_processes_whose_clocks_differ_end_after_the_same_epoch(tmp_path):
    runs = []
    for name, step_s in (("first", 1.0), ("second", 2.0)):
        now = [0.0]
        settings = TrainSettings(num_epochs=9, time_limit_s=50.0)
        (tmp_path / name).mkdir()
        run = Experiment(tmp_path / name, settings, writes=name == "first", clock=lambda now=now: now[0])
        run.begin_epoch(0.1)
        for _ in range(8):
            now[0] += step_s
            run.step_done(num_batches=1)
        now[0] += 2.0 * step_s
        if name == "first":
            assert not run.ends_with_this_epoch()
        run.finish_epoch(0.5)
        runs.append(run)
    first, second = runs
    assert first.expected_epochs() != second.expected_epochs()
    second.load_clock_state(first.clock_state())
    assert second.expected_epochs() == first.expected_epochs() == 5
    assert second.clock_state() == first.clock_state()


def test_what_a_save_takes_does_not_change_whether_the_epoch_that_it_saves_is_the_last(tmp_path):
    now = [0.0]
    experiment = Experiment(tmp_path, TrainSettings(num_epochs=9, time_limit_s=21.0), clock=lambda: now[0])
    now[0] += 10.0
    experiment.finish_epoch(None)

    def save():
        now[0] += 5.0

    experiment._begin_to(save)
    experiment.wait_until_saved()
    assert not experiment.is_complete
    now[0] += 0.5
    experiment.finish_epoch(None)
    assert experiment.is_complete


def test_the_first_epoch_is_trained_however_little_time_there_is(tmp_path):
    experiment = Experiment(tmp_path, TrainSettings(num_epochs=3, time_limit_s=1e-9))
    assert not experiment.is_complete
