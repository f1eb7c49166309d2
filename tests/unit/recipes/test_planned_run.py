import itertools

import pytest
import torch

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.samples.store import CaseStore
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.recipes.planned_run import case_loader, num_workers, patch_loader
from candy_monai.recipes.prepare import evenly_spaced
from tests.plans import small_plan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    phantom = write_phantom_dataset(folder / "d", num_cases=3, shape=(24, 24, 16))
    return CaseStore.build(NNUNetDataset(phantom), small_plan(), folder / "store")


def test_an_epoch_has_the_planned_steps_of_the_planned_patches(store):
    plan = small_plan()
    loader = patch_loader(store, store.case_ids, plan, seed=0, device=CPU)
    assert len(loader) == plan.iterations_per_epoch
    batch = next(iter(loader))
    assert batch["image"].shape == (plan.batch_size, 1, *plan.patch_shape)
    assert batch["label"].shape == (plan.batch_size, 1, *plan.patch_shape)
    assert len(batch["case_id"]) == plan.batch_size


def test_a_seed_and_an_epoch_decide_the_patches(store):
    def first(seed, epoch):
        loader = patch_loader(store, store.case_ids, small_plan(), seed=seed, device=CPU)
        loader.sampler.set_epoch(epoch)
        return next(iter(loader))["image"]

    assert torch.equal(first(1, 0), first(1, 0))
    assert not torch.equal(first(1, 0), first(1, 1))
    assert not torch.equal(first(1, 0), first(2, 0))


def test_whole_cases_come_one_at_a_time_and_no_case_is_no_loader(store):
    loader = case_loader(store, store.case_ids, device=CPU)
    assert [batch["case_id"] for batch in loader] == [[case_id] for case_id in store.case_ids]
    assert case_loader(store, (), device=CPU) is None


def test_some_of_the_cases_are_spread_over_all():
    cases = [f"case_{index}" for index in range(16)]
    assert evenly_spaced(cases, 4) == ("case_0", "case_4", "case_8", "case_12")
    assert evenly_spaced(cases, 99) == evenly_spaced(cases, None) == tuple(cases)


@pytest.mark.parametrize("num_cases", [1, 2, 7, 32, 33])
def test_a_smaller_choice_of_cases_is_part_of_every_larger_one_in_the_same_order(num_cases):
    cases = [f"case_{index}" for index in range(num_cases)]
    choices = [evenly_spaced(cases, count) for count in range(num_cases + 1)]
    assert [len(choice) for choice in choices] == list(range(num_cases + 1))
    assert all(set(small) < set(large) for small, large in itertools.pairwise(choices))
    assert all(list(choice) == sorted(choice, key=cases.index) for choice in choices)


def test_a_cpu_prepares_batches_itself_and_a_gpu_has_them_prepared(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 32)
    assert num_workers(CPU) == 0
    assert num_workers(torch.device("cuda")) == 8
