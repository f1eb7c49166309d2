import os
import time

import pytest

from candy_monai.errors import ExperimentError
from candy_monai.experiment.lock import FolderLock


def test_a_folder_is_held_until_it_is_released(tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(ExperimentError, match="being trained at this moment"):
        FolderLock(tmp_path)
    lock.release()
    FolderLock(tmp_path).release()


def test_a_forked_worker_that_lives_on_does_not_keep_the_folder(tmp_path):
    lock = FolderLock(tmp_path)
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
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
