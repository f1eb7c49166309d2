import errno
import os
import subprocess
import sys
import threading
import time

import pytest

from candy_monai.errors import ExperimentError
from candy_monai.experiment.lock import FolderLock

_KILLED_WITH_A_WORKER = """
import os, sys, time
from pathlib import Path
from candy_monai.experiment.lock import FolderLock
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
