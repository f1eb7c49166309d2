import math
import warnings

import pytest
import torch
from torch import nn

from candy_monai.attachment import Surroundings, attach
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.network import (
    check_precision,
    check_takes_complex,
    choose_precision,
    copyable,
    count_macs,
    initialize_lazy,
    num_parameters,
    plain_network,
    plain_weights,
)
from candy_monai.nn.ema import ExponentialMovingAverage


@pytest.mark.parametrize(
    "wrap",
    [
        lambda network: network,
        ExponentialMovingAverage,
        torch.optim.swa_utils.AveragedModel,
        nn.DataParallel,
        lambda network: torch.compile(network, backend="eager"),
    ],
)
def test_the_weights_are_found_under_the_network_s_own_names_inside_any_wrapping(wrap):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    attach(network, Surroundings())
    wrapped = wrap(network)
    assert type(plain_network(wrapped)) is nn.Sequential
    assert plain_weights(wrapped).keys() == network.state_dict().keys()


def test_weights_hold_what_a_network_adds_to_its_state():
    class Counting(nn.Conv2d):
        def get_extra_state(self):
            return {"calls": 3}

        def set_extra_state(self, state):
            pass

    assert plain_weights(Counting(1, 1, 1))["_extra_state"] == {"calls": 3}


def test_lazy_layers_are_initialized_by_one_example_and_the_mode_is_kept():
    network = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.BatchNorm2d(4).eval())
    initialize_lazy(network, torch.randn(1, 2, 8, 8))
    assert [part.training for part in (network, *network)] == [True, True, True, False]
    assert network[0].weight.shape == (4, 2, 3, 3)
    assert torch.equal(network[1].running_mean, torch.zeros(4))


def test_lazy_layers_that_an_example_does_not_initialize_name_what_to_do():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.LazyConv2d(1, 1)

        def forward(self, images):
            return images

    with pytest.raises(BadInputError, match=r"build_network .*head\.weight"):
        initialize_lazy(Unused(), torch.zeros(1, 1, 4, 4))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_a_network_with_normalized_weights_can_be_copied_and_counted(norm):
    network = nn.Sequential(norm(nn.Conv2d(1, 2, 3)))
    images = torch.randn(1, 1, 6, 6)
    output = network(images)
    with copyable(network):
        ema = ExponentialMovingAverage(network)
    assert network[0].weight.requires_grad
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    for _ in range(200):
        ema.update_parameters(network)  # draws as near as float32 can tell
    assert not torch.allclose(network(images), output)
    assert torch.allclose(ema(images), network(images), atol=1e-4)
    assert count_macs(network, (1, 6, 6)) == 2 * 9 * 16


def test_macs_are_counted_without_touching_weights_or_random_numbers():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Dropout(0.5), nn.BatchNorm2d(8))
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in network.state_dict().items()}
    assert count_macs(network, (3, 10, 10)) == 3 * 8 * 9 * 100
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in state.items())
    assert network.training


def test_macs_of_a_network_that_cannot_run_on_meta_tensors_are_nan():
    class Reads(nn.Module):
        def forward(self, images):
            return images * images.sum().item()

    assert math.isnan(count_macs(Reads(), (1, 4, 4)))


def test_only_trainable_parameters_are_counted():
    network = nn.Linear(3, 2)
    network.bias.requires_grad_(False)
    assert num_parameters(network) == 6


@pytest.mark.parametrize(("amp", "expected"), [(None, None), ("bf16", "bf16"), ("fp16", "fp16"), ("auto", None)])
def test_on_a_cpu_the_automatic_precision_is_that_of_the_weights(amp, expected):
    assert choose_precision(amp, torch.device("cpu")) == expected


def test_a_precision_that_a_device_has_not_is_refused_instead_of_computed_in_float32(monkeypatch):
    for amp in (None, "auto", "off", "bf16", "fp16"):
        check_precision(amp, torch.device("cpu"))
    for amp in (None, "auto", "off"):
        check_precision(amp, torch.device("meta"))
    with pytest.raises(SettingsError, match="PyTorch cannot compute in bf16 on meta .*choose another precision"):
        check_precision("bf16", torch.device("meta"))
    monkeypatch.setattr(torch, "autocast", lambda *_: warnings.warn("unsupported: disabling autocast", stacklevel=1))
    with pytest.raises(SettingsError, match=r"fp16 on cpu .*disabling autocast"):
        check_precision("fp16", torch.device("cpu"))


def test_a_network_that_takes_complex_images_is_given_them():
    class Magnitude(nn.Conv2d):
        def forward(self, images):
            return super().forward(images.abs())

    check_takes_complex(Magnitude(1, 1, 1), torch.ones(1, 1, 4, 4, dtype=torch.complex64))
    check_takes_complex(nn.Conv2d(1, 1, 1, dtype=torch.complex64), torch.ones(1, 1, 4, 4, dtype=torch.complex64))
