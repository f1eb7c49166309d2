from candy_monai.experiment.early_stopping import EarlyStopping


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
