from candy_monai.experiment.events import MessageLogged
from candy_monai.observers.screen import WarningsObserver, screen_observer, shown_by
from tests.events import epoch_finished, run_started

RUN = (
    run_started(),
    MessageLogged("[10:00] Warning: careful", "Warning: careful"),
    MessageLogged("[10:00] hello", "hello"),
    epoch_finished(1),
)


def test_only_warnings_are_passed_on():
    warned = []
    observer = WarningsObserver(warned.append)
    for event in RUN:
        observer.receive(event)
    assert warned == ["careful"]


def test_a_program_may_choose_what_a_run_is_shown_by():
    chosen = WarningsObserver(print)
    with shown_by(chosen):
        assert screen_observer() is chosen
    assert screen_observer() is not chosen
