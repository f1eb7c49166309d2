from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from functools import partial

import nibabel
import numpy as np
import pytest
import torch

from candy_monai.data import workers
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.processes import Processes

BYTES_PER_CASE = 48 * 16**3  # one channel and its label


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return NNUNetDataset(
        write_phantom_dataset(tmp_path_factory.mktemp("d") / "d", num_cases=6, shape=(16, 16, 16), num_channels=1)
    ).cases


@pytest.mark.parametrize(("room_for", "expected"), [(100, 4), (3, 3), (1, 1), (0.5, 1)])
def test_so_many_cases_are_worked_on_as_fit_into_the_free_memory(cases, monkeypatch, room_for, expected):
    monkeypatch.setattr(workers, "usable_cores", lambda: 4)
    monkeypatch.setattr(workers, "free_memory_bytes", lambda: int(room_for * BYTES_PER_CASE / 0.6) + 8)
    assert workers.case_workers(cases) == expected


def test_neither_processors_nor_cases_nor_the_limit_are_exceeded(cases, monkeypatch):
    monkeypatch.setattr(workers, "free_memory_bytes", lambda: None)
    monkeypatch.setattr(workers, "usable_cores", lambda: 64)
    assert workers.case_workers(cases) == 6
    assert workers.case_workers(cases, 2) == 2


def test_memory_bounds_how_many_cases_are_measured_at_once(tmp_path, monkeypatch):
    files = [tmp_path / f"{index}.nii.gz" for index in range(8)]
    for file in files:
        nibabel.save(nibabel.Nifti1Image(np.zeros((10, 10, 10), np.uint8), np.eye(4)), file)
    monkeypatch.setattr(workers, "usable_cores", lambda: 6)
    for free, expected in ((10**9, 6), (250_000, 2), (1000, 1), (None, 6)):
        monkeypatch.setattr(workers, "free_memory_bytes", lambda free=free: free)
        assert workers.measuring_workers(files) == expected
    monkeypatch.setattr(workers, "free_memory_bytes", lambda: 10**9)
    files[0].unlink()
    assert workers.measuring_workers(files) == 1


def test_the_cores_of_a_job_count_and_those_of_the_machine_where_no_share_is_known(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4}, raising=False)
    assert workers.usable_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert workers.usable_cores() == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers.usable_cores() == 1


def test_processes_of_one_machine_share_its_memory_and_its_cores(cases, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(workers, "free_memory_bytes", lambda: int(6 * BYTES_PER_CASE / 0.6) + 8)
    assert workers.case_workers(cases) == 6
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert workers.usable_cores() == 8
    assert workers.case_workers(cases) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert workers.usable_cores() == 2  # bound to cores of its own


@pytest.mark.parametrize("jobs", [1, 3])
def test_results_come_in_the_order_of_the_tasks(jobs):
    def task(index):
        time.sleep(0.01 * (index % 3))
        return index

    assert list(workers.in_order(((lambda index=index: task(index)) for index in range(10)), jobs)) == list(range(10))


def test_no_more_cases_than_jobs_are_taken_before_their_results_are():
    taken = []

    def tasks():
        for index in range(12):
            taken.append(index)
            yield lambda: None

    for number, _ in enumerate(workers.in_order(tasks(), 3), start=1):
        assert len(taken) - number < 3


def test_results_that_are_small_may_wait_so_that_no_thread_is_idle():
    last, begun = threading.Event(), []

    def task(index):
        begun.append(index)
        if index == 5:
            last.set()
        return index if index else last.wait(30)

    assert list(workers.in_order((partial(task, index) for index in range(6)), 2, ahead=8))[1:] == [1, 2, 3, 4, 5]
    assert last.is_set()


def test_as_many_tasks_run_at_once_as_there_are_jobs():
    together = threading.Barrier(2, timeout=30)
    assert len(list(workers.in_order([together.wait, together.wait], 2))) == 2


def test_an_error_reaches_the_caller_and_the_threads_of_pytorch_are_as_they_were():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        list(workers.in_order([lambda: 1, lambda: 1 / 0, lambda: 2], 2))
    assert torch.get_num_threads() == before


def test_threads_share_those_that_pytorch_computes_with():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert set(workers.in_order([torch.get_num_threads] * 8, 2)) == {2}
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_what_has_not_begun_when_one_case_fails_is_not_begun_any_more():
    begun = []

    def work():
        begun.append(1)
        time.sleep(0.02)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(workers.in_order([work] * 50, 2, ahead=50))
    assert len(begun) < 50


def test_each_process_begins_with_its_share_and_goes_through_those_of_the_others(tmp_path):
    first, second = (
        [list(share) for share in workers.shares(range(5), Processes(rank=rank, world_size=2), tmp_path / "locks")]
        for rank in (0, 1)
    )
    assert first == [[0, 2, 4], [1, 3]]
    assert second == [[1, 3], [0, 2, 4]]
    assert not list((tmp_path / "locks").iterdir())


@pytest.mark.parametrize("processes", [None, Processes()])
def test_one_process_has_everything_and_locks_nothing(tmp_path, processes):
    assert list(workers.shares("abc", processes, tmp_path / "locks")) == ["abc"]
    assert not (tmp_path / "locks").exists()


def test_on_a_file_system_without_locks_no_marker_is_waited_for(tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    both = Processes(rank=0, world_size=2), Processes(rank=1, world_size=2)
    working, others = (workers.shares(range(4), processes, tmp_path) for processes in both)
    assert next(working) == range(0, 4, 2)
    assert list(others) == [range(1, 4, 2), range(0, 4, 2)]


def test_the_share_of_another_process_is_waited_for_and_taken_up_when_that_one_is_killed(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from filelock import FileLock\n"
        f"with FileLock(r'{tmp_path / '.share-2-of-2.lock'}'):\n    print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        taken = []
        thread = threading.Thread(
            target=lambda: taken.extend(workers.shares(range(4), Processes(rank=0, world_size=2), tmp_path))
        )
        thread.start()
        time.sleep(0.2)
        assert taken == [range(0, 4, 2)]
        other.kill()
        thread.join(30)
        assert taken == [range(0, 4, 2), range(1, 4, 2)]
