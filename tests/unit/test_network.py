import copy
import math

import pytest
import torch
from torch import nn

from candy_monai.network import (
    NetworkAdapter,
    choose_precision,
    count_macs,
    num_parameters,
    plain_network,
    plain_weights,
)
from candy_monai.nn.ema import ExponentialMovingAverage
from candy_monai.nn.padding import Pad2d


class _Identity(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        return images * self.scale


class _Heads(nn.Module):
    def forward(self, images):
        return {"out": images, "coarse": images[..., ::2, ::2], "ids": images.argmax(1)}


def test_in_evaluation_images_are_padded_for_the_network_and_its_output_is_cropped():
    adapter = NetworkAdapter(_Identity(), padding=Pad2d(8)).eval()
    images = torch.randn(1, 2, 13, 16)
    assert torch.equal(adapter(images), images)
    assert adapter.network.seen == [(1, 2, 16, 16)]


def test_in_training_images_pass_as_they_are():
    adapter = NetworkAdapter(_Identity(), padding=Pad2d(8)).train()
    adapter(torch.randn(1, 2, 13, 16))
    assert adapter.network.seen == [(1, 2, 13, 16)]


def test_outputs_of_the_padded_size_are_cropped_and_those_of_other_resolutions_left_out():
    outputs = NetworkAdapter(_Heads(), padding=Pad2d(8)).eval()(torch.randn(1, 2, 13, 16))
    assert outputs["out"].shape == (1, 2, 13, 16)
    assert "coarse" not in outputs


def test_the_user_s_own_autocast_reaches_the_network():
    network, kinds = nn.Conv2d(1, 1, 1), []
    network.register_forward_hook(lambda _m, _i, output: kinds.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        NetworkAdapter(network)(torch.randn(1, 1, 4, 4))
    assert kinds == [torch.bfloat16]


def test_a_copy_of_the_adapter_of_a_network_that_copies_itself_is_an_adapter():
    adapter = NetworkAdapter(torch.fx.symbolic_trace(nn.Conv2d(1, 1, 1)), padding=Pad2d(4), amp="bf16")
    assert isinstance(copy.deepcopy(adapter), NetworkAdapter)


def test_autocast_computes_in_bf16_and_returns_float32():
    network = nn.Conv2d(1, 1, 1)
    kinds = []
    network.register_forward_hook(lambda _m, _i, output: kinds.append(output.dtype))
    output = NetworkAdapter(network, amp="bf16")(torch.randn(1, 1, 4, 4))
    assert kinds == [torch.bfloat16]
    assert output.dtype == torch.float32


def test_whole_numbers_stay_whole():
    assert NetworkAdapter(_Heads())(torch.randn(1, 2, 4, 4))["ids"].dtype == torch.int64


def test_the_network_s_attributes_can_be_read_through_the_adapter():
    adapter = NetworkAdapter(_Identity())
    assert adapter.seen == []
    with pytest.raises(AttributeError, match="missing"):
        _ = adapter.missing


def test_the_weights_are_found_under_the_network_s_own_names_inside_any_wrapping():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    adapter = NetworkAdapter(network, padding=Pad2d(4))
    assert plain_network(adapter) is network
    for wrapped in (adapter, ExponentialMovingAverage(adapter), torch.optim.swa_utils.AveragedModel(adapter)):
        assert plain_weights(wrapped).keys() == network.state_dict().keys()


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


def test_a_factor_reaches_the_weights_gradients_and_leaves_the_outputs():
    factor = torch.tensor(4.0)
    adapter = NetworkAdapter(_Identity()).train()
    images = torch.ones(1, 1, 2, 2)
    with adapter.gradient_factor(0.5), adapter.gradient_factor(factor):
        outputs = adapter(images)
        outputs.sum().backward()
    assert torch.equal(outputs.detach(), images)
    assert adapter.network.scale.grad == 4 * 0.5 * 4
    adapter(images).sum().backward()
    assert adapter.network.scale.grad == 8 + 4


def test_outputs_without_a_gradient_pass_under_a_factor():
    adapter = NetworkAdapter(_Heads()).train()
    with adapter.gradient_factor(0.5):
        outputs = adapter(torch.randn(1, 2, 4, 4, requires_grad=True))
    assert outputs["ids"].dtype == torch.int64


@pytest.mark.parametrize("ndim", [2, 3])
def test_channels_last_changes_the_layout_and_not_the_result(ndim):
    conv = nn.Conv2d if ndim == 2 else nn.Conv3d
    network, images = conv(3, 4, 3), torch.randn(1, 3, *(6,) * ndim)
    expected = network(images)
    adapter = NetworkAdapter(copy.deepcopy(network), channels_last=True)
    form = torch.channels_last if ndim == 2 else torch.channels_last_3d
    assert adapter.network.weight.is_contiguous(memory_format=form)
    assert torch.allclose(adapter(images), expected, atol=1e-5)
    assert plain_weights(adapter).keys() == network.state_dict().keys()


def test_a_network_that_cannot_be_compiled_runs_as_it_is_and_says_why():
    class Stubborn(nn.Module):
        def forward(self, images):
            if torch.compiler.is_compiling():
                raise RuntimeError("not with me")
            return images

    network = Stubborn()
    network._compiled_call_impl = lambda images: (_ for _ in ()).throw(RuntimeError("not with me"))
    adapter = NetworkAdapter(network)
    images = torch.ones(1, 1, 2, 2)
    assert torch.equal(adapter(images), images)
    assert adapter.compile_failure == "RuntimeError: not with me"
    assert torch.equal(adapter(images), images)


@pytest.mark.slow
def test_a_compiled_network_keeps_the_names_of_its_weights_and_its_copy_is_not_compiled():
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
    names, images = network.state_dict().keys(), torch.randn(1, 1, 8, 8)
    expected = network(images)
    network.compile()
    adapter = NetworkAdapter(network)
    assert torch.allclose(adapter(images), expected, atol=1e-5)
    assert adapter.compile_failure is None
    assert plain_weights(adapter).keys() == names
    copied = ExponentialMovingAverage(adapter)
    assert plain_network(copied)._compiled_call_impl is None


@pytest.mark.parametrize(("amp", "expected"), [(None, None), ("bf16", "bf16"), ("fp16", "fp16"), ("auto", None)])
def test_on_a_cpu_the_automatic_precision_is_that_of_the_weights(amp, expected):
    assert choose_precision(amp, torch.device("cpu")) == expected
