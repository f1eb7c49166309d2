import pytest

from candy_monai.experiment.events import RunFinished, RunInterrupted, StepFinished
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.observer import FrontendObserver
from tests.events import epoch_finished, run_started


class _Recorder(Frontend):
    def __init__(self):
        super().__init__({})
        self.calls = []

    def on_experiment_created(self, *arguments):
        self.calls.append(("created", *arguments))

    def on_experiment_updated(self, *arguments):
        self.calls.append(("updated", *arguments))

    def on_experiment_completed(self, *arguments):
        self.calls.append(("completed", *arguments))

    def on_experiment_interrupted(self, *arguments):
        self.calls.append(("interrupted", *arguments))


STARTED = run_started(note="n", early_stop_tolerance=3)


def _told(*events):
    frontend = _Recorder()
    observer = FrontendObserver(frontend, lambda _message: None)
    for event in events:
        observer.receive(event)
    return frontend.calls


def test_each_event_becomes_the_callback_of_its_kind():
    epoch = epoch_finished(2, metrics={"loss": (1.0, 0.5)}, early_stop_tolerance=2)
    end = RunFinished(epoch=5, best_score=0.1, best_epoch=2)
    assert _told(STARTED, StepFinished(1, "training", 1, 2), epoch, end) == [
        ("created", "20251101-14-a3f2", "MyTrainer", "UNet", "n", 10, 20.0, 5, 3),
        ("updated", "20251101-14-a3f2", 2, {"loss": [1.0, 0.5]}, 2),
        ("completed", "20251101-14-a3f2"),
    ]


def test_an_interruption_brings_its_error():
    error = RuntimeError("x")
    assert _told(STARTED, RunInterrupted(error))[-1] == ("interrupted", "20251101-14-a3f2", error)


def test_a_frontend_that_changes_the_metrics_changes_a_copy():
    class Lying(_Recorder):
        def on_experiment_updated(self, experiment_id, epoch, metrics, early_stop_tolerance):
            metrics["loss"].clear()
            metrics.clear()

    losses = [1.0, 0.5]
    metrics = {"loss": losses}
    FrontendObserver(Lying(), lambda _message: None).receive(epoch_finished(2, metrics=metrics))
    assert metrics == {"loss": [1.0, 0.5]}


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_what_would_end_the_thread_becomes_an_ordinary_error(error):
    class Ending(_Recorder):
        def on_experiment_created(self, *arguments):
            raise error

    with pytest.raises(RuntimeError, match=type(error).__name__):
        FrontendObserver(Ending(), lambda _message: None).receive(STARTED)


def test_a_frontend_s_messages_go_to_the_log_of_the_run_that_is_being_told():
    class Talking(_Recorder):
        def on_experiment_created(self, *arguments):
            self.log(f"hello {arguments[0]}")

    first, second, frontend = [], [], Talking()
    for said in (first, second):
        FrontendObserver(frontend, said.append).receive(STARTED)
    assert first == second == ["hello 20251101-14-a3f2"]
