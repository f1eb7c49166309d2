import threading

import pytest

from candy_monai.experiment.writer import Writer


def test_work_is_done_beside_and_one_thing_after_the_other():
    writer, go, done = Writer(), threading.Event(), []
    writer.start(lambda: go.wait(10) and done.append(1))
    assert writer.is_busy
    assert done == []
    go.set()
    writer.start(lambda: done.append(2))
    writer.wait()
    assert done == [1, 2]
    assert not writer.is_busy


def test_a_failure_reaches_whoever_waits_and_nothing_more_is_written():
    def fail():
        raise OSError("broken")

    writer, done = Writer(), []
    writer.start(fail)
    for _ in range(2):
        with pytest.raises(OSError, match="broken"):
            writer.wait()
    with pytest.raises(OSError, match="broken"):
        writer.start(lambda: done.append(1))
    writer.join()
    assert done == []


def test_where_nothing_was_written_there_is_nothing_to_wait_for():
    writer = Writer()
    writer.wait()
    assert not writer.is_busy
