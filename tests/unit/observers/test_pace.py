import pytest

from candy_monai.experiment.events import StepFinished
from candy_monai.forecasting.best_score import Forecast
from candy_monai.observers.pace import Pace
from tests.events import epoch_finished


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def _steps(pace, clock, numbers, *, phase="training", total=10, size=4, seconds=0.5):
    for number in numbers:
        clock.now += seconds
        pace.step(StepFinished(3, phase, number, total, size))


def test_the_speed_is_that_of_the_phase_since_its_first_step(clock):
    pace = Pace(clock=clock)
    _steps(pace, clock, [1])
    assert (pace.samples_per_s, pace.phase_left_s, pace.speed()) == (None, None, "")
    _steps(pace, clock, [2, 3, 4])
    assert (pace.samples_per_s, pace.steps_per_s, pace.phase_left_s) == (8.0, 2.0, 3.0)
    assert pace.speed() == "8 samples/s, 3 s left"
    _steps(pace, clock, [1, 2], phase="validation", size=1, seconds=2.0)
    assert pace.speed() == "0.5 cases/s, 16 s left"


def test_where_the_size_of_a_step_is_unknown_steps_are_counted(clock):
    pace = Pace(clock=clock)
    _steps(pace, clock, [1, 2, 3], size=None, total=None)
    assert (pace.samples_per_s, pace.phase_left_s) == (None, None)
    assert pace.speed() == "2 steps/s"


def test_the_end_of_the_run_comes_nearer_between_two_epochs(clock):
    pace = Pace(clock=clock)
    assert (pace.run_left_s, pace.outlook()) == (None, "")
    forecast = Forecast(epoch=9, score=0.75, interval=(0.7, 0.8), reason=None, quantiles=(0.75,) * 19)
    durations = {"epoch duration": [10.0, 20.0]}
    pace.epoch(epoch_finished(2, num_epochs=10, metrics=durations, best_score=0.5, best_epoch=2, forecast=forecast))
    assert pace.outlook() == "the run ends in 2 min, best 0.5000, 0.7500 expected"
    clock.now += 30
    assert pace.run_left_s == 90.0
    _steps(pace, clock, [1])
    assert pace.title() == "Epoch 3 of 10 training"


def test_a_run_does_not_end_before_its_phase(clock):
    pace = Pace(clock=clock)
    pace.epoch(epoch_finished(9, num_epochs=10, metrics={"epoch duration": [1.0] * 9}))
    _steps(pace, clock, [1, 2, 3], seconds=2.0)
    assert pace.run_left_s == pace.phase_left_s == 14.0
    _steps(pace, clock, [1], total=None, seconds=2.0)
    assert (pace.run_left_s, pace.outlook()) == (None, "")


def test_of_a_run_that_ends_by_the_clock_the_number_of_epochs_is_about_so_many(clock):
    pace = Pace(clock=clock)
    pace.epoch(epoch_finished(2, num_epochs=10, has_time_limit=True))
    _steps(pace, clock, [1])
    assert pace.title() == "Epoch 3 of about 10 training"
