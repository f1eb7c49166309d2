import pytest
import torch

from candy_monai.recipes import launching


@pytest.mark.parametrize(("num_parallel", "threads"), [(3, "2"), (16, "1")])
def test_processes_at_the_same_time_share_the_cores(monkeypatch, num_parallel, threads):
    monkeypatch.setattr(launching, "usable_cores", lambda: 8)
    assert launching.environment_of(0, num_parallel, "cpu")["OMP_NUM_THREADS"] == threads


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [(None, ["0", "1", "0"]), ("2, 3", ["2", "3", "2"]), ("GPU-8932f937,MIG-d5ab", ["GPU-8932f937", "MIG-d5ab"])],
)
def test_each_process_gets_one_of_the_gpus_that_this_one_sees(monkeypatch, visible, gpus):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    chosen = [launching.environment_of(slot, 3, "auto")["CUDA_VISIBLE_DEVICES"] for slot in range(len(gpus))]
    assert chosen == gpus
