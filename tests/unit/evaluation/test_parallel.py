import threading
import time

import pytest
import torch

from candy_monai.evaluation.parallel import in_order, jobs_for


@pytest.mark.parametrize("jobs", [1, 3])
def test_results_come_in_the_order_of_the_tasks(jobs):
    def task(index):
        time.sleep(0.01 * (index % 3))
        return index

    assert list(in_order(((lambda index=index: task(index)) for index in range(10)), jobs)) == list(range(10))


def test_no_more_cases_than_jobs_are_taken_before_their_results_are():
    taken = []

    def tasks():
        for index in range(12):
            taken.append(index)
            yield lambda: None

    for number, _ in enumerate(in_order(tasks(), 3), start=1):
        assert len(taken) - number < 3


def test_as_many_tasks_run_at_once_as_there_are_jobs():
    together = threading.Barrier(2, timeout=30)
    assert len(list(in_order([together.wait, together.wait], 2))) == 2


def test_an_error_reaches_the_caller_and_the_threads_of_pytorch_are_as_they_were():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        list(in_order([lambda: 1, lambda: 1 / 0, lambda: 2], 2))
    assert torch.get_num_threads() == before


def test_memory_bounds_how_many_cases_are_measured_at_once(tmp_path, monkeypatch):
    import nibabel
    import numpy as np

    files = [tmp_path / f"{index}.nii.gz" for index in range(8)]
    for file in files:
        nibabel.save(nibabel.Nifti1Image(np.zeros((10, 10, 10), np.uint8), np.eye(4)), file)
    monkeypatch.setattr("candy_monai.evaluation.parallel.os.cpu_count", lambda: 6)
    for free, jobs in ((10**9, 6), (250_000, 2), (1000, 1), (None, 6)):
        monkeypatch.setattr("candy_monai.evaluation.parallel.free_memory_bytes", lambda free=free: free)
        assert jobs_for(files) == jobs
