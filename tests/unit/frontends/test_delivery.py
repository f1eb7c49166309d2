from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import torch

from candy_monai.experiment.events import MessageLogged, RunFinished, RunInterrupted, RunScored, StepFinished
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.delivery import Dashboards, Delivery, FrontendObserver
from candy_monai.frontends.hybrid import create_hybrid_frontend
from tests.events import epoch_finished, run_started

FINISHED = RunFinished(epoch=3, best_score=0.5, best_epoch=1)


class _Told(Frontend):
    """Remembers what it is told, and waits in every callback until it may go on."""

    def __init__(self, *, is_free=True):
        super().__init__({})
        self.told = []
        self.is_at_work = threading.Event()
        self.may_go_on = threading.Event()
        if is_free:
            self.may_go_on.set()

    def _tell(self, what):
        self.told.append(what)
        self.is_at_work.set()
        assert self.may_go_on.wait(30)

    def on_experiment_created(self, experiment_id, *arguments):
        self._tell(f"created {experiment_id}")

    def on_experiment_updated(self, experiment_id, epoch, metrics, early_stop_tolerance):
        self._tell(f"updated {epoch}")

    def on_experiment_completed(self, experiment_id):
        self._tell(f"completed {experiment_id}")


def _deliver(frontend, *events, report=lambda _message: None, after=None):
    delivery = Delivery(frontend, report, after=after)
    for event in events:
        delivery.receive(event)
    return delivery


def test_a_frontend_that_answers_has_been_told_all_when_closing_returns():
    frontend = _Told()
    _deliver(frontend, run_started(experiment_id="a"), epoch_finished(1), FINISHED).close()
    assert frontend.told[0] == "created a"
    assert frontend.told[-1] == "completed a"


def test_a_busy_frontend_is_told_the_start_the_newest_epoch_and_the_end():
    frontend = _Told(is_free=False)
    delivery = _deliver(frontend, run_started(experiment_id="a"))
    assert frontend.is_at_work.wait(10)
    time.sleep(0.6)
    for event in (epoch_finished(1), epoch_finished(2), epoch_finished(3), FINISHED):
        delivery.receive(event)
    frontend.may_go_on.set()
    delivery.close()
    assert delivery.wait(stuck_after_s=10, at_most_s=10)
    assert frontend.told == ["created a", "updated 3", "completed a"]


def test_a_frontend_that_keeps_up_is_told_every_epoch():
    frontend = _Told(is_free=False)
    delivery = _deliver(frontend, run_started(experiment_id="a"))
    for epoch in range(1, 6):
        delivery.receive(epoch_finished(epoch))
    frontend.may_go_on.set()
    delivery.close()
    assert frontend.told == ["created a", *(f"updated {epoch}" for epoch in range(1, 6))]


def test_no_more_than_a_few_events_wait_even_if_each_call_is_short():
    frontend = _Told(is_free=False)
    delivery = _deliver(frontend, run_started(), *(epoch_finished(epoch) for epoch in range(100)))
    assert len(delivery._events) <= 8
    frontend.may_go_on.set()


def test_only_what_a_frontend_can_be_told_is_kept_and_no_preview_with_it():
    frontend = _Told(is_free=False)
    delivery = _deliver(frontend, run_started())
    assert frontend.is_at_work.wait(10)
    for event in (MessageLogged("x"), StepFinished(1, "training", 1, 1), epoch_finished(1, preview=torch.zeros(1))):
        delivery.receive(event)
    (event,) = delivery._events
    assert event.preview is None
    frontend.may_go_on.set()


def test_a_call_that_has_been_going_on_for_long_is_not_waited_for(hanging):
    said = []
    delivery = _deliver(hanging({}), run_started(), report=said.append)
    time.sleep(0.6)  # longer than one call may take in a short run
    started = time.monotonic()
    delivery.close()
    assert time.monotonic() - started < 0.2
    assert said == ["Hanging is still being updated, in the background"]


def test_closing_waits_a_moment_only_for_a_call_that_has_just_begun(hanging):
    delivery = _deliver(hanging({}), run_started())
    started = time.monotonic()
    delivery.close()
    assert 0.4 < time.monotonic() - started < 1.0


def test_what_is_left_at_the_end_of_the_run_is_delivered_in_the_background():
    frontend = _Told(is_free=False)
    delivery = _deliver(frontend, run_started(experiment_id="a"), FINISHED)
    delivery.close()
    assert frontend.told == ["created a"]
    frontend.may_go_on.set()
    assert delivery.wait(stuck_after_s=10, at_most_s=10)
    assert frontend.told == ["created a", "completed a"]


def test_the_next_run_s_events_wait_for_those_of_the_run_before():
    frontend = _Told(is_free=False)
    first = _deliver(frontend, run_started(experiment_id="a"), FINISHED)
    assert frontend.is_at_work.wait(10)
    second = _deliver(frontend, run_started(experiment_id="b"), FINISHED, after=first)
    first.close()
    frontend.may_go_on.set()
    assert second.wait(stuck_after_s=10, at_most_s=1) is False  # it has not been closed: its thread waits for more
    second.close()
    assert frontend.told == ["created a", "completed a", "created b", "completed b"]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), ValueError("x")])
def test_whatever_a_callback_raises_is_reported_and_the_end_is_told_all_the_same(error):
    class Raising(_Told):
        def on_experiment_updated(self, *arguments):
            raise error

    frontend, said = Raising(), []
    _deliver(frontend, run_started(experiment_id="a"), epoch_finished(1), FINISHED, report=said.append).close()
    assert frontend.told == ["created a", "completed a"]
    assert len(said) == 2
    assert "failed, and the run continues" in said[0]
    assert type(error).__name__ in said[0]
    assert said[1] == "Raising did not receive 1 of 1 epochs"


def test_the_log_counts_the_epochs_that_were_left_out_while_a_frontend_was_busy():
    frontend, said = _Told(is_free=False), []
    delivery = _deliver(frontend, run_started(experiment_id="a"), report=said.append)
    assert frontend.is_at_work.wait(10)
    time.sleep(0.6)
    for event in (epoch_finished(1), epoch_finished(2), epoch_finished(3), FINISHED):
        delivery.receive(event)
    frontend.may_go_on.set()
    delivery.close()
    assert delivery.wait(stuck_after_s=10, at_most_s=10)
    assert said[-1] == "_Told did not receive 2 of 3 epochs"


def test_of_a_frontend_that_catches_up_only_the_last_epochs_are_lost():
    class CatchingUp(_Told):
        catches_up = True
        refuses = (1, 3)

        def on_experiment_updated(self, experiment_id, epoch, metrics, early_stop_tolerance):
            if epoch in self.refuses:
                raise ValueError("x")

    epochs = [epoch_finished(epoch) for epoch in (1, 2, 3)]
    said = []
    _deliver(CatchingUp(), run_started(), *epochs, FINISHED, report=said.append).close()
    assert said[-1] == "CatchingUp did not receive 1 of 3 epochs"
    said = []
    _deliver(CatchingUp(), run_started(epoch=1), *epochs[1:2], FINISHED, report=said.append).close()
    assert said == []


def test_what_a_frontend_that_was_left_out_did_not_hear_is_counted():
    class Down(_Told):
        def on_experiment_updated(self, *arguments):
            raise ValueError("x")

    said = []
    delivery = _deliver(Down(), run_started(), report=said.append)
    for epoch in range(1, 8):
        delivery.receive(epoch_finished(epoch))
        deadline = time.monotonic() + 10
        while delivery._events and time.monotonic() < deadline:
            time.sleep(0.001)
    delivery.receive(FINISHED)
    delivery.close()
    assert said[-2:] == [
        "Down failed 5 times in a row and is left out from now on",
        "Down did not receive 7 of 7 epochs and the end",
    ]


class _Listening(_Told):
    def __init__(self, **facts):
        super().__init__(**facts)
        self.events = []

    def on_event(self, event):
        self.events.append(event)

    def on_experiment_closed(self, experiment_id):
        self._tell(f"closed {experiment_id}")


def test_a_frontend_that_wants_more_gets_the_events_and_hears_when_no_more_is_to_come():
    frontend, epoch = _Listening(), epoch_finished(1, metrics={"loss": [0.5]}, preview=torch.zeros(1), step=4)
    started = run_started(experiment_id="a")
    _deliver(frontend, started, StepFinished(1, "training", 1, 1), epoch, FINISHED).close()
    assert frontend.events[0] == started
    assert (frontend.events[1].step, frontend.events[1].preview) == (4, None)
    assert frontend.events[2:] == [FINISHED]
    assert frontend.told[-2:] == ["completed a", "closed a"]


def test_the_final_scores_are_told_after_the_run_and_before_it_is_closed(tmp_path):
    frontend, scored = _Listening(), RunScored(scores={"dice": 0.5}, num_cases=3, file=tmp_path)
    dashboards = Dashboards(frontend)
    with dashboards.staying_open():
        (delivery,) = dashboards.deliveries(print)
        for event in (run_started(experiment_id="a"), FINISHED):
            delivery.receive(event)
        delivery.close()  # as the run ends
        delivery.receive(scored)
        assert delivery.wait(stuck_after_s=1, at_most_s=0.2) is False
    assert frontend.events[-1] == scored
    assert frontend.told[-1] == "closed a"
    assert len(frontend.events) == 3


def test_a_run_whose_dashboards_stay_open_closes_them_when_it_fails():
    frontend = _Listening()
    dashboards = Dashboards(frontend)

    def fail():
        with dashboards.staying_open():
            (delivery,) = dashboards.deliveries(print)
            delivery.receive(run_started(experiment_id="a"))
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    assert frontend.told == ["created a", "closed a"]


def test_dashboards_that_no_run_began_with_are_not_closed():
    frontend = _Listening()
    dashboards = Dashboards(frontend)
    (delivery,) = dashboards.deliveries(print)
    delivery.receive(run_started(experiment_id="a"))
    delivery.close()
    with dashboards.staying_open():
        pass
    assert frontend.told == ["created a", "closed a"]


def test_each_part_of_a_hybrid_has_a_delivery_of_its_own():
    class One(Frontend):
        pass

    class Two(Frontend):
        pass

    both = Dashboards(create_hybrid_frontend(One, Two)({})).deliveries(lambda _message: None)
    assert [delivery.name for delivery in both] == ["One", "Two"]
    for delivery in both:
        delivery.close()
    assert Dashboards().deliveries(print) == ()


PROGRAM = """
import sys, time
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.delivery import Delivery
from tests.events import run_started
from candy_monai.experiment.events import RunFinished

class Slow(Frontend):
    def on_experiment_created(self, *arguments):
        time.sleep(float(sys.argv[1]))
    def on_experiment_completed(self, *arguments):
        print("completed", flush=True)

delivery = Delivery(Slow({}), lambda message: print(message, flush=True))
delivery.receive(run_started())
delivery.receive(RunFinished(epoch=1, best_score=0.0, best_epoch=0))
time.sleep(float(sys.argv[2]))
delivery.close()
print("closed", time.monotonic(), flush=True)
"""


def _program(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    closed = next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("closed"))
    return done.stdout.splitlines(), time.monotonic() - closed


@pytest.mark.slow
def test_a_slow_frontend_is_told_the_end_before_the_program_ends():
    shown, _ = _program(2.0, 0.0)
    assert shown[-1] == "completed"


@pytest.mark.slow
def test_a_frontend_that_hangs_does_not_keep_the_program_from_ending():
    shown, lingered_s = _program(1000, 5.5)  # the run was longer than a last call may take
    assert shown[-1] == "Slow did not answer in time and did not receive the start and the end"
    assert lingered_s < 4.5  # the interpreter's own end on a busy machine, and less than a last call may take


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


_STARTED = run_started(note="n", early_stop_tolerance=3)


def _told(*events):
    frontend = _Recorder()
    observer = FrontendObserver(frontend, lambda _message: None)
    for event in events:
        observer.receive(event)
    return frontend.calls


def test_each_event_becomes_the_callback_of_its_kind():
    epoch = epoch_finished(2, metrics={"loss": (1.0, 0.5)}, early_stop_tolerance=2)
    end = RunFinished(epoch=5, best_score=0.1, best_epoch=2)
    assert _told(_STARTED, StepFinished(1, "training", 1, 2), epoch, end) == [
        ("created", "20251101-14-a3f2", "MyTrainer", "UNet", "n", 10, 20.0, 5, 3),
        ("updated", "20251101-14-a3f2", 2, {"loss": [1.0, 0.5]}, 2),
        ("completed", "20251101-14-a3f2"),
    ]


def test_an_interruption_brings_its_error():
    error = RuntimeError("x")
    assert _told(_STARTED, RunInterrupted(error))[-1] == ("interrupted", "20251101-14-a3f2", error)


def test_a_frontend_that_changes_the_metrics_changes_a_copy():
    class Lying(_Recorder):
        def on_experiment_updated(self, experiment_id, epoch, metrics, early_stop_tolerance):
            metrics["loss"].clear()
            metrics.clear()

    losses = [1.0, 0.5]
    metrics = {"loss": losses}
    FrontendObserver(Lying(), lambda _message: None).receive(epoch_finished(2, metrics=metrics))
    assert metrics == {"loss": [1.0, 0.5]}


def test_a_frontend_s_messages_go_to_the_log_of_the_run_that_is_being_told():
    class Talking(_Recorder):
        def on_experiment_created(self, *arguments):
            self.log(f"hello {arguments[0]}")

    first, second, frontend = [], [], Talking()
    for said in (first, second):
        FrontendObserver(frontend, said.append).receive(_STARTED)
    assert first == second == ["hello 20251101-14-a3f2"]
