import atexit
import subprocess
import sys
import threading

import pytest

from candy_monai.experiment.events import MessageLogged, RunFinished, StepFinished
from candy_monai.observers.base import BackgroundObserver, Observer, ObserverGroup
from tests.events import epoch_finished


class Recorder(Observer):
    def __init__(self):
        self.events = []
        self.closed = 0

    def receive(self, event):
        self.events.append(event)

    def close(self):
        self.closed += 1


class Failing(Observer):
    name = "the failing one"

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def receive(self, event):
        self.calls += 1
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error


def test_one_observer_s_failure_does_not_keep_the_event_from_the_others():
    recorder, reports = Recorder(), []
    group = ObserverGroup([Failing(ValueError("bad")), recorder], reports.append)
    group.receive(MessageLogged("hello"))
    assert recorder.events == [MessageLogged("hello")]
    assert reports == ["the failing one failed, and the run continues: ValueError: bad"]


def test_a_failure_is_reported_once_for_each_kind_of_error():
    reports = []
    errors = [ValueError("a"), ValueError("b"), None, KeyError("c"), ValueError("d")]
    group = ObserverGroup([Failing(*errors)], reports.append)
    for _ in errors:
        group.receive(MessageLogged(""))
    assert len(reports) == 2


def test_an_observer_is_left_out_after_five_failures_in_a_row_and_not_before():
    reports = []
    failing = Failing(*[OSError("down")] * 20)
    group = ObserverGroup([failing], reports.append)
    for _ in range(20):
        group.receive(MessageLogged(""))
    assert failing.calls == 5
    assert "left out" in reports[-1]


def test_a_success_in_between_starts_the_count_again():
    failing = Failing(*([OSError("down")] * 4 + [None]) * 5)
    group = ObserverGroup([failing], lambda _message: None)
    for _ in range(25):
        group.receive(MessageLogged(""))
    assert failing.calls == 25


def test_ctrl_c_inside_an_observer_is_not_swallowed():
    group = ObserverGroup([Failing(KeyboardInterrupt())], lambda _message: None)
    with pytest.raises(KeyboardInterrupt):
        group.receive(MessageLogged(""))


@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit(), BrokenPipeError()])
def test_nothing_else_that_an_observer_raises_ends_the_run(error):
    recorder, reports = Recorder(), []
    group = ObserverGroup([Failing(error), recorder], reports.append)
    group.receive(MessageLogged("hello"))
    assert recorder.events == [MessageLogged("hello")]
    assert reports == [f"the failing one failed, and the run continues: {type(error).__name__}: {error}"]


def test_a_keyboard_interrupt_on_another_thread_is_the_observer_s_own():
    recorder, reports = Recorder(), []
    group = ObserverGroup([Failing(KeyboardInterrupt()), recorder], reports.append)
    observer = BackgroundObserver(group, patience_s=10)
    observer.receive(MessageLogged("hello"))
    observer.close()
    assert recorder.events == [MessageLogged("hello")]
    assert len(reports) == 1


def test_neither_a_report_that_fails_nor_an_error_without_text_ends_the_run():
    class MuteError(Exception):
        def __str__(self):
            raise ValueError("no text")

    def report(_message):
        raise OSError("the disk is full")

    ObserverGroup([Failing(MuteError())], report).receive(MessageLogged("hello"))
    reports = []
    ObserverGroup([Failing(MuteError())], reports.append).receive(MessageLogged("hello"))
    assert "MuteError" in reports[0]


def test_events_reach_a_background_observer_in_order_and_all_before_close_returns():
    recorder = Recorder()
    observer = BackgroundObserver(recorder, patience_s=10)
    events = [epoch_finished(1), epoch_finished(2), RunFinished(epoch=2, best_score=0.0, best_epoch=0)]
    for event in events:
        observer.receive(event)
    observer.close()
    assert recorder.events == events
    assert recorder.closed == 1


def test_steps_are_not_passed_to_a_background_observer():
    recorder = Recorder()
    observer = BackgroundObserver(recorder, patience_s=10)
    observer.receive(StepFinished(1, "training", 1, 1))
    observer.close()
    assert recorder.events == []


def test_a_busy_observer_gets_only_the_newest_epoch_if_it_asks_so():
    started, may_go_on = threading.Event(), threading.Event()

    class Busy(Recorder):
        def receive(self, event):
            super().receive(event)
            started.set()
            may_go_on.wait(10)

    busy = Busy()
    observer = BackgroundObserver(busy, patience_s=10, newest_epoch_only=True)
    observer.receive(epoch_finished(1))
    assert started.wait(10)
    for epoch in (2, 3, 4):
        observer.receive(epoch_finished(epoch))
    may_go_on.set()
    observer.close()
    assert [event.epoch for event in busy.events] == [1, 4]


def test_epochs_that_wait_for_a_hanging_observer_do_not_fill_the_memory():
    release = threading.Event()

    class Hanging(Observer):
        def receive(self, event):
            release.wait(30)

    observer = BackgroundObserver(Hanging(), patience_s=0.05, newest_epoch_only=True)
    observer.receive(MessageLogged("the start"))
    for epoch in range(100):
        observer.receive(epoch_finished(epoch))
    assert len(observer._events) <= 2
    release.set()


def test_closing_waits_no_longer_than_its_patience_for_an_observer_that_hangs():
    release = threading.Event()

    class Hanging(Observer):
        def receive(self, event):
            release.wait(30)

    observer = BackgroundObserver(Hanging(), patience_s=0.05)
    observer.receive(MessageLogged(""))
    observer.close()
    assert observer._thread.is_alive()
    release.set()


LEFT_BEHIND = """
import threading
import time
import torch
from candy_monai.observers.base import BackgroundObserver, Observer


class Slow(Observer):
    def receive(self, event):
        while threading.main_thread().is_alive():
            torch.ones(300, 300) @ torch.ones(300, 300)
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            torch.ones(300, 300) @ torch.ones(300, 300)
        print("drawn")


observer = BackgroundObserver(Slow(), patience_s=2)
observer.receive(object())
"""
CLOSED = """
observer.close()
print("closed")
"""
NEVER_CLOSED = """
print("closed")
"""
INTERRUPTED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
try:
    observer.close()
except KeyboardInterrupt:
    print("closed")
"""


@pytest.mark.parametrize("ending", [CLOSED, NEVER_CLOSED, INTERRUPTED], ids=["closed", "never closed", "Ctrl-C"])
def test_what_was_left_behind_at_work_does_not_abort_the_process_at_its_end(ending):
    ended = subprocess.run([sys.executable, "-c", LEFT_BEHIND + ending], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout.split()) == (0, ["closed", "drawn"]), ended.stderr


def test_a_process_that_ends_waits_for_the_event_at_work_and_not_for_all_that_are_pending():
    started, release, seen = threading.Event(), threading.Event(), []

    class Slow(Observer):
        def receive(self, event):
            seen.append(event)
            started.set()
            release.wait(30)

    observer = BackgroundObserver(Slow(), patience_s=0.05)
    for text in "abc":
        observer.receive(MessageLogged(text))
    started.wait(30)
    observer._end_with_process()
    release.set()
    observer._thread.join(30)
    assert seen == [MessageLogged("a")]
    atexit.unregister(observer._end_with_process)
