from pathlib import Path

from candy_monai.experiment.events import EpochFinished, RunFinished, RunInterrupted, RunStarted, StepFinished
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.observer import FrontendObserver


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


STARTED = RunStarted(
    experiment_id="20251101-14-a3f2",
    folder=Path("f"),
    trainer="MyTrainer",
    model="UNet",
    note="n",
    num_params=10,
    num_macs=20.0,
    num_epochs=5,
    early_stop_tolerance=3,
)


def _told(*events):
    frontend = _Recorder()
    observer = FrontendObserver(frontend)
    for event in events:
        observer.receive(event)
    return frontend.calls


def test_each_event_becomes_the_callback_of_its_kind():
    epoch = EpochFinished(
        epoch=2,
        num_epochs=5,
        metrics={"loss": (1.0, 0.5)},
        score=0.1,
        best_score=0.1,
        best_epoch=2,
        early_stop_tolerance=2,
        preview=None,
    )
    end = RunFinished(epoch=5, best_score=0.1, best_epoch=2)
    assert _told(STARTED, StepFinished(1, "training", 1, 2), epoch, end) == [
        ("created", "20251101-14-a3f2", "MyTrainer", "UNet", "n", 10, 20.0, 5, 3),
        ("updated", "20251101-14-a3f2", 2, {"loss": [1.0, 0.5]}, 2),
        ("completed", "20251101-14-a3f2"),
    ]


def test_an_interruption_brings_its_error():
    error = RuntimeError("x")
    assert _told(STARTED, RunInterrupted(error))[-1] == ("interrupted", "20251101-14-a3f2", error)
