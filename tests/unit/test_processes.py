from datetime import timedelta

import pytest
import torch
from torch import distributed
from torch.utils.data import DataLoader, IterableDataset

from candy_monai.data.sampling import SeededSampler, shared_loader
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.processes import Processes, _parts


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE 2"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "to numbers"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(monkeypatch, variables, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=words):
        Processes.from_environment()


def test_without_torchrun_there_is_one_process_that_tells_nobody():
    processes = Processes.from_environment()
    assert (processes.rank, processes.world_size, processes.is_main) == (0, 1, True)
    tensor = torch.ones(2)
    with processes.connected(torch.device("cpu")):
        means, counts = processes.all_reduce_mean([tensor], [True, False])
        assert means[0] is tensor
        assert counts == [1, 0]
        processes.broadcast_tensors([tensor])
        assert processes.broadcast("x") == "x"
        assert processes.all_gather(3) == processes.gather(3) == [3]
        assert processes.all_reduce_any([True, False]) == [True, False]
    assert tensor.tolist() == [1, 1]


def test_processes_wait_for_days_for_what_the_first_does_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "new_group", lambda **keywords: asked.append(keywords))
    with Processes(rank=1, world_size=2).connected(torch.device("cpu")):
        pass
    assert asked[0]["timeout"] > timedelta(days=1)


def test_each_process_takes_the_gpu_of_its_number_unless_one_is_named():
    processes = Processes(rank=5, world_size=8, local_rank=1)
    assert processes.device_of(torch.device("cuda")) == torch.device("cuda", 1)
    assert processes.device_of(torch.device("cuda", 3)) == torch.device("cuda", 3)
    assert processes.device_of(torch.device("cpu")) == torch.device("cpu")
    assert Processes().device_of(torch.device("cuda")) == torch.device("cuda")


def test_batch_normalisation_over_several_processes_needs_gpus():
    processes = Processes(rank=0, world_size=2)
    processes.check_sync_batchnorm(torch.device("cuda", 0))
    Processes().check_sync_batchnorm(torch.device("cpu"))
    with pytest.raises(SettingsError, match="2 processes train on cpu here: leave it out"):
        processes.check_sync_batchnorm(torch.device("cpu"))


def test_tensors_are_sent_in_parts_of_one_type_and_each_once():
    tensors = [torch.zeros(3 << 20), torch.zeros(6 << 20), torch.zeros(5, dtype=torch.int64), torch.zeros(1)]
    parts = list(_parts(tensors))
    assert sorted(id(t) for part in parts for t in part) == sorted(map(id, tensors))
    assert all(len({t.dtype for t in part}) == 1 for part in parts)
    assert [[t.numel() for t in part] for part in parts] == [[3 << 20, 6 << 20], [1], [5]]


def test_our_sampler_s_shares_are_disjoint_equal_and_together_the_first_of_the_order():
    data = list(range(7))
    loader = DataLoader(data, batch_size=1, sampler=SeededSampler(data, seed=2))
    whole = [int(batch) for batch in loader]
    shares = []
    for rank in range(3):
        share = shared_loader(loader, Processes(rank=rank, world_size=3), evenly=True)
        assert len(share) == 2
        shares.append([int(batch) for batch in share])
    assert [index for group in zip(*shares, strict=True) for index in group] == whole[:6]
    assert [int(batch) for batch in loader] == whole


@pytest.mark.parametrize(("rank", "expected"), [(0, 3), (1, 2), (2, 2)])
def test_every_validation_case_is_in_some_share(rank, expected):
    share = shared_loader(DataLoader(range(7)), Processes(rank=rank, world_size=3), evenly=False)
    assert len(share) == expected


class _Stream(IterableDataset):
    def __iter__(self):
        return iter(range(4))


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (DataLoader(_Stream()), "over an IterableDataset"),
        (DataLoader(range(4), batch_sampler=[[0, 1], [2, 3]]), "with a batch_sampler"),
        (DataLoader(range(2)), "2 training samples cannot be split among 3"),
    ],
)
def test_loaders_that_cannot_be_shared_out_are_refused(loader, words):
    with pytest.raises(BadInputError, match=words):
        shared_loader(loader, Processes(rank=0, world_size=3), evenly=True)
