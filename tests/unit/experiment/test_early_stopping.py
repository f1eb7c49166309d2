from candy_monai.experiment.early_stopping import EarlyStopping, is_hopeless
from candy_monai.experiment.settings import FORECAST_CONFIDENCE
from candy_monai.forecasting.best_score import LEVELS


def test_it_stops_after_exactly_the_tolerated_number_of_epochs_without_improvement():
    stopping = EarlyStopping(3)
    stopped_at = []
    for epoch, improved in enumerate([True, False, False, True, False, False, False], start=1):
        stopping.update(improved=improved)
        if stopping.triggered:
            stopped_at.append(epoch)
    assert stopped_at == [7]


def test_no_tolerance_never_stops():
    stopping = EarlyStopping(None)
    for _ in range(1000):
        stopping.update(improved=False)
    assert not stopping.triggered
    assert stopping.remaining is None


def test_the_count_survives_a_restart():
    before, after = EarlyStopping(2), EarlyStopping(2)
    before.update(improved=False)
    after.load_state_dict(before.state_dict())
    after.update(improved=False)
    assert after.triggered


def test_by_forecast_it_stops_after_three_epochs_in_a_row_without_prospect():
    stopping = EarlyStopping("forecast", confidence=0.9)
    stopped_at = []
    for epoch, chance in enumerate([None, 0.05, 0.1, 0.3, 0.1, 0.08, 0.02], start=1):
        stopping.update(improved=False, chance=chance)
        if stopping.triggered:
            stopped_at.append(epoch)
    assert stopped_at == [7]
    assert "90% sure" in stopping.reason


def test_by_forecast_an_improvement_alone_does_not_keep_a_run_going_nor_does_its_lack_stop_it():
    stopping = EarlyStopping("forecast")
    for _ in range(100):
        stopping.update(improved=False, chance=0.5)
    assert not stopping.triggered
    for _ in range(3):
        stopping.update(improved=True, chance=0.0)
    assert stopping.triggered


def test_a_gain_is_excluded_with_a_confidence_up_to_the_highest_quantile_of_a_forecast():
    for level in LEVELS:
        assert is_hopeless(1 - level, level)
        assert not is_hopeless(1 - level + 0.01, level)
    assert not is_hopeless(None, 0.9)
    assert FORECAST_CONFIDENCE.accepts(LEVELS[-1])
    assert not FORECAST_CONFIDENCE.accepts(LEVELS[-1] + 0.01)
