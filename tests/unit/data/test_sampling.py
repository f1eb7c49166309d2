import pickle

import pytest

from candy_monai.data.samples.patches import EpochSampler
from candy_monai.data.sampling import SeededIndex, SeededSampler, at
from candy_monai.errors import BadInputError


def test_each_epoch_visits_every_sample_once_in_an_order_of_its_own():
    sampler = SeededSampler(range(20), seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


def test_order_and_seeds_are_functions_of_seed_and_epoch_alone():
    def drawn(seed):
        sampler = SeededSampler(range(8), seed=seed)
        sampler.set_epoch(4)
        return [(int(index), index.seed) for index in sampler]

    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)


def test_without_shuffling_the_order_is_the_dataset_s_and_the_seeds_still_change():
    sampler = SeededSampler(range(5), shuffle=False)
    first = [index.seed for index in sampler]
    sampler.set_epoch(1)
    assert list(sampler) == [0, 1, 2, 3, 4]
    assert [index.seed for index in sampler] != first


@pytest.mark.parametrize("sampler", [SeededSampler(range(6), seed=2), EpochSampler(6)])
def test_one_iteration_starts_later_when_it_is_told_to_and_the_next_does_not(sampler):
    whole = list(sampler)
    sampler.start_at(4)
    assert list(sampler) == whole[4:]
    assert list(sampler) == whole
    assert len(sampler) == 6


def test_an_index_brings_its_seed_to_another_process():
    index = pickle.loads(pickle.dumps(SeededIndex(3, 99)))
    assert (index, index.seed) == (3, 99)


def test_an_index_into_another_dataset_keeps_the_seed():
    assert at(2, SeededIndex(7, 99)).seed == 99
    assert type(at(2, 7)) is int


def test_an_empty_dataset_cannot_be_sampled():
    with pytest.raises(BadInputError, match="at least one sample"):
        SeededSampler([])
