from __future__ import annotations

import os

import pytest

from candy_monai.data import workers
from candy_monai.data.nnunet import NNUNetDataset
from candy_monai.data.phantom import write_phantom_dataset

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
