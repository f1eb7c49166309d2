import errno
import os
import re
import subprocess
import sys
import threading
import time
from datetime import datetime

import pytest
from filelock import FileLock

from candy_monai.errors import ExperimentError
from candy_monai.experiment.folder import FolderLock, log_line, publish_folder


def _clock():
    return datetime(2025, 11, 1, 14, 30)


def test_the_id_is_the_hour_and_four_characters(tmp_path):
    folder = publish_folder(tmp_path, lambda _folder, _id: None)
    assert re.fullmatch(r"\d{8}-\d{2}-[0-9a-f]{4}", folder.name)


def test_a_folder_that_cannot_be_filled_never_appears(tmp_path):
    def fill(folder, _id):
        (folder / "a.txt").write_text("a")
        raise RuntimeError("stopped half-way")

    with pytest.raises(RuntimeError):
        publish_folder(tmp_path, fill)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_id_is_drawn_again_and_the_other_run_s_folder_stays_as_it_is(tmp_path):
    draws = iter(["aaaa", "aaaa", "bbbb"])
    fill = lambda folder, experiment_id: (folder / "id.txt").write_text(experiment_id)  # noqa: E731
    first = publish_folder(tmp_path, fill, clock=_clock, draw=lambda: next(draws))
    second = publish_folder(tmp_path, fill, clock=_clock, draw=lambda: next(draws))
    assert (first.name, second.name) == ("20251101-14-aaaa", "20251101-14-bbbb")
    assert (first / "id.txt").read_text() == "20251101-14-aaaa"


def test_a_folder_that_another_process_publishes_at_the_same_moment_is_not_replaced(tmp_path):
    draws = iter(["aaaa", "bbbb"])

    def fill(folder, _id):
        if "aaaa" in folder.name:  # the other process is quicker
            (tmp_path / "20251101-14-aaaa").mkdir()
            (tmp_path / "20251101-14-aaaa" / "theirs.txt").write_text("theirs")

    assert publish_folder(tmp_path, fill, clock=_clock, draw=lambda: next(draws)).name == "20251101-14-bbbb"
    assert (tmp_path / "20251101-14-aaaa" / "theirs.txt").exists()


def test_a_parent_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExperimentError, match="file/UNetTrainer"):
        publish_folder(tmp_path / "file" / "UNetTrainer", lambda _folder, _id: None)


_KILLED_WITH_A_WORKER = """
import os, sys, time
from pathlib import Path
from candy_monai.experiment.folder import FolderLock
lock = FolderLock(Path(sys.argv[1]))
worker = os.fork()
if worker == 0:
    print(os.getpid(), flush=True)  # by itself: it holds the lock until it has started
    time.sleep(60)
    os._exit(0)
time.sleep(60)
"""


def test_a_folder_is_held_until_it_is_released_and_nothing_is_left_in_it(tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(ExperimentError, match="being trained at this moment"):
        FolderLock(tmp_path)
    lock.release()
    lock.release()
    FolderLock(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_only_probed_for_a_moment_stops_no_run(tmp_path):
    probe = FileLock(tmp_path / ".lock", thread_local=False)
    probe.acquire()
    threading.Timer(0.1, probe.release).start()
    FolderLock(tmp_path).release()


def test_another_thread_may_release_a_folder(tmp_path):
    lock = FolderLock(tmp_path)
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    FolderLock(tmp_path).release()


def test_a_forked_worker_that_lives_on_does_not_keep_the_folder(tmp_path):
    lock = FolderLock(tmp_path)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        lock.release()  # has nothing to release
        os.write(tell, b"forked")
        time.sleep(30)
        os._exit(0)
    try:
        os.read(told, 6)
        with pytest.raises(ExperimentError):
            FolderLock(tmp_path)
        lock.release()
        FolderLock(tmp_path).release()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_killed_process_s_folder_is_free_although_its_worker_lives_on(tmp_path):
    command = [sys.executable, "-c", _KILLED_WITH_A_WORKER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        try:
            with pytest.raises(ExperimentError, match="being trained at this moment"):
                FolderLock(tmp_path)
            process.kill()
            process.wait()
            os.kill(worker, 0)  # it lives
            FolderLock(tmp_path).release()
        finally:
            process.kill()
            os.kill(worker, 9)


def test_a_folder_on_a_file_system_without_locks_is_trained_in_all_the_same(tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    FolderLock(tmp_path).release()
    FolderLock(tmp_path).release()


@pytest.mark.parametrize("message", ["plain", "[bold]not markup[/]", "naïve ✓ 日本", "100 % {braces} %s", "a\ud800b"])
def test_any_text_is_logged_verbatim(tmp_path, message):
    log_line(tmp_path, message, clock=lambda: datetime(2026, 1, 2, 3, 4, 5))
    shown = message.encode("utf-8", "backslashreplace").decode()
    assert (tmp_path / "logs.txt").read_text(encoding="utf-8") == f"[2026-01-02 03:04:05] {shown}\n"
