from __future__ import annotations

import os
import time

import pytest
import torch

from candy_monai.data import workers
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.demo.phantom import write_phantom_dataset

BYTES_PER_CASE = 48 * 16**3  # one channel and its label


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return NNUNetDataset(
        write_phantom_dataset(tmp_path_factory.mktemp("d") / "d", num_cases=6, shape=(16, 16, 16), num_channels=1)
    ).cases


@pytest.mark.parametrize(("room_for", "expected"), [(100, 4), (3, 3), (1, 1), (0.5, 1)])
def test_so_many_cases_are_worked_on_as_fit_into_the_free_memory(cases, monkeypatch, room_for, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(workers, "free_memory_bytes", lambda: int(room_for * BYTES_PER_CASE / 0.6) + 8)
    assert workers.case_workers(cases) == expected


def test_neither_processors_nor_cases_nor_the_limit_are_exceeded(cases, monkeypatch):
    monkeypatch.setattr(workers, "free_memory_bytes", lambda: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert workers.case_workers(cases) == 6
    assert workers.case_workers(cases, 2) == 2
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers.case_workers(cases) == 1


def test_threads_share_those_that_pytorch_computes_with_and_leave_them_as_they_were(cases, monkeypatch):
    monkeypatch.setattr(workers, "free_memory_bytes", lambda: None)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with workers.case_pool(cases, 2) as pool:
            assert set(pool.map(lambda _: torch.get_num_threads(), range(8))) == {2}
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_what_has_not_begun_when_one_case_fails_is_not_begun_any_more(cases):
    begun = []

    def work(number):
        begun.append(number)
        time.sleep(0.02)
        raise KeyboardInterrupt

    def work_on_all():
        with workers.case_pool(cases, 1) as pool:
            futures = [pool.submit(work, number) for number in range(50)]
            futures[0].result()

    with pytest.raises(KeyboardInterrupt):
        work_on_all()
    assert len(begun) < 50
