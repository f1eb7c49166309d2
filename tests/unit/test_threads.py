import signal
import threading
import time

import pytest

from candy_monai.threads import SteadyThread


def test_a_ctrl_c_while_it_is_waited_for_does_not_make_it_count_as_ended():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    release = threading.Event()
    thread = SteadyThread(target=release.wait, args=(30,), daemon=True)
    thread.start()
    timer = threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        thread.join(30)
    timer.join()
    signal.signal(signal.SIGINT, before)
    assert thread.is_alive()
    started = time.monotonic()
    thread.join(0.1)
    assert time.monotonic() - started >= 0.1
    release.set()
    thread.join(30)
    assert not thread.is_alive()


def test_a_thread_whose_work_raises_has_ended(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    thread = SteadyThread(target=lambda: 1 / 0)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
