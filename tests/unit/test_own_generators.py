import functools
import io
import random
import secrets
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.transforms import Compose, RandFlip, RandGaussianNoise
from torch import nn

from candy_monai.own_generators import OwnGenerators

MAKERS = {
    "torch": (lambda: torch.Generator().manual_seed(3), lambda generator: float(torch.rand((), generator=generator))),
    "python": (lambda: random.Random(3), lambda generator: generator.gauss(0, 1)),
    "RandomState": (lambda: np.random.RandomState(3), lambda generator: generator.standard_normal()),
    **{
        kind.__name__: (
            lambda kind=kind: np.random.Generator(kind(3)),
            lambda generator: generator.standard_normal() + generator.integers(10, dtype=np.uint32),
        )
        for kind in (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64)
    },
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_generator_s_state_survives_a_file_of_plain_values_and_goes_on(kind):
    make, draw = MAKERS[kind]
    generator = make()
    draw(generator)  # some keep a second number for the next time
    own, file = OwnGenerators.of(part=generator), io.BytesIO()
    torch.save(own.states(), file)
    expected = [draw(generator) for _ in range(700)]
    file.seek(0)
    fresh = make()
    OwnGenerators.of(part=fresh).restore(torch.load(file, weights_only=True))
    assert [draw(fresh) for _ in range(700)] == expected


def test_generators_are_found_in_attributes_collections_modules_and_partial_functions():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator()

    part = SimpleNamespace(
        rng=random.Random(),
        listed=[1, {"deep": (np.random.default_rng(),)}],
        network=nn.Sequential(nn.ReLU(), Layer()),
        function=functools.partial(print, np.random.RandomState()),
    )
    assert OwnGenerators.of(part=part).places == (
        "part.rng",
        "part.function.1.0",
        "part.listed.1.deep.0",
        "part.network._modules.1.generator",
    )


def test_a_generator_in_two_places_is_one_and_circles_come_to_an_end():
    first, second = SimpleNamespace(rng=random.Random()), SimpleNamespace()
    second.rng, first.other, second.other = first.rng, second, first
    assert OwnGenerators.of(first=first, second=second).places == ("first.rng",)


def test_global_generators_and_those_without_a_state_are_left_to_others():
    part = [random._inst, np.random.mtrand._rand, torch.default_generator, secrets.SystemRandom()]
    assert OwnGenerators.of(part=part).places == ()


def test_monai_s_transforms_are_taken_up_whether_they_were_seeded_or_share_one_generator():
    flip, noise = RandFlip(), RandGaussianNoise()
    flip.set_random_state(0)
    own = OwnGenerators.of(transform=Compose([flip, noise]))
    states = own.states()
    expected = flip.R.random_sample(), noise.R.random_sample()
    own.restore(states)
    assert (flip.R.random_sample(), noise.R.random_sample()) == expected


def test_places_that_are_not_in_both_are_left_alone():
    saved = OwnGenerators.of(a=random.Random(1), b=random.Random(2)).states()
    kept, untouched = random.Random(5), random.Random(6)
    OwnGenerators.of(b=kept, c=untouched).restore(saved)
    assert kept.random() == random.Random(2).random()
    assert untouched.random() == random.Random(6).random()


@pytest.mark.parametrize("kind", ["python", "RandomState"])
def test_hundreds_of_keys_are_one_tensor_and_a_list_of_them_as_runs_had_it_earlier_is_read_too(kind):
    make, draw = MAKERS[kind]
    generator = make()
    states = OwnGenerators.of(it=generator).states()
    expected = draw(generator)

    def as_lists(state):
        if isinstance(state, dict):
            return {name: as_lists(value) for name, value in state.items()}
        if isinstance(state, list):
            return [as_lists(value) for value in state]
        return state.tolist() if isinstance(state, torch.Tensor) else state

    assert as_lists(states) != states
    OwnGenerators.of(it=generator).restore(as_lists(states))
    assert draw(generator) == expected
