import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
import torch
from torch import nn

from candy_monai.attachment import Surroundings, attach, attachment_of, detach
from candy_monai.nn.ema import ExponentialMovingAverage
from candy_monai.nn.padding import Pad2d


class _Identity(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.seen = []

    def forward(self, images, *others, gain=1.0):
        self.seen.append([tuple(tensor.shape) for tensor in (images, *others) if isinstance(tensor, torch.Tensor)])
        return images * self.scale * gain


class _Heads(nn.Module):
    def forward(self, images):
        return {"out": images, "coarse": images[..., ::2, ::2], "ids": images.argmax(1)}


def _attached(network, **surroundings):
    attach(network, Surroundings(num_dims=2, **surroundings))
    return network


def test_in_evaluation_images_are_padded_for_the_network_and_its_output_is_cropped():
    network = _attached(_Identity(), padding=Pad2d(8)).eval()
    images = torch.randn(1, 2, 13, 16)
    assert torch.equal(network(images), images)
    assert network.seen == [[(1, 2, 16, 16)]]


def test_in_training_images_pass_as_they_are():
    network = _attached(_Identity(), padding=Pad2d(8)).train()
    network(torch.randn(1, 2, 13, 16))
    assert network.seen == [[(1, 2, 13, 16)]]


def test_images_that_are_padded_already_pass_as_they_are_in_evaluation_too():
    network, surroundings = _Identity().eval(), Surroundings(padding=nn.ZeroPad2d(2), num_dims=2)
    attach(network, surroundings)
    with surroundings.padded_already():
        network(torch.randn(1, 2, 16, 16))
    assert network.seen == [[(1, 2, 16, 16)]]


def test_further_arguments_reach_the_network_and_those_of_the_image_s_size_are_padded_with_it():
    network = _attached(_Identity(), padding=Pad2d(8)).eval()
    images, prior, time = torch.randn(1, 2, 13, 16), torch.randn(1, 1, 13, 16), torch.tensor([0.5])
    assert torch.equal(network(images, prior, time, gain=2.0), 2 * images)
    assert network.seen == [[(1, 2, 16, 16), (1, 1, 16, 16), (1,)]]


def test_the_image_is_found_behind_other_arguments_and_by_its_name():
    class Timed(nn.Module):
        def forward(self, time, images):
            assert images.shape[2:] == (16, 16)
            return images * time

    network = _attached(Timed(), padding=Pad2d(8)).eval()
    images = torch.randn(1, 2, 13, 16)
    assert torch.equal(network(torch.ones(1), images=images), images)


def test_outputs_of_the_padded_size_are_cropped_and_those_of_other_resolutions_left_out():
    outputs = _attached(_Heads(), padding=Pad2d(8)).eval()(torch.randn(1, 2, 13, 16))
    assert outputs["out"].shape == (1, 2, 13, 16)
    assert "coarse" not in outputs


def test_the_user_s_own_autocast_reaches_the_network():
    network, kinds = nn.Conv2d(1, 1, 1), []
    network.register_forward_hook(lambda _m, _i, output: kinds.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        _attached(network)(torch.randn(1, 1, 4, 4))
    assert kinds == [torch.bfloat16]


def test_autocast_computes_in_bf16_and_returns_float32():
    network = nn.Conv2d(1, 1, 1)
    kinds = []
    network.register_forward_hook(lambda _m, _i, output: kinds.append(output.dtype))
    output = _attached(network, amp="bf16")(torch.randn(1, 1, 4, 4))
    assert kinds == [torch.bfloat16]
    assert output.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_a_call_that_fails_leaves_no_autocast_behind_and_the_next_one_works():
    network = _attached(nn.Conv2d(1, 1, 1), amp="bf16")
    with pytest.raises(RuntimeError, match="channels"):
        network(torch.randn(1, 7, 4, 4))
    assert not torch.is_autocast_enabled("cpu")
    assert network(torch.randn(1, 1, 4, 4)).dtype == torch.float32


def test_a_keyboard_interruption_leaves_no_autocast_behind_once_the_network_is_given_back():
    class Interrupted(nn.Module):
        def forward(self, images):
            raise KeyboardInterrupt

    network = _attached(Interrupted(), amp="bf16")
    with pytest.raises(KeyboardInterrupt):
        network(torch.randn(1, 1, 4, 4))
    detach(network)
    assert not torch.is_autocast_enabled("cpu")


def test_double_precision_and_whole_numbers_stay_what_they_are():
    assert _attached(_Identity().double())(torch.randn(1, 2, 4, 4).double()).dtype == torch.float64
    assert _attached(_Heads())(torch.randn(1, 2, 4, 4))["ids"].dtype == torch.int64


def test_a_named_tuple_of_outputs_stays_one():
    class Outputs(NamedTuple):
        logits: torch.Tensor
        features: torch.Tensor

    class Two(nn.Module):
        def forward(self, images):
            return Outputs(images, images)

    assert _attached(Two(), amp="bf16")(torch.randn(1, 1, 4, 4)).features.dtype == torch.float32


def test_the_network_stays_the_user_s_own():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU())
    names = list(network.state_dict())
    _attached(network, padding=Pad2d(8), amp="bf16")
    assert list(network.state_dict()) == names
    assert [name for name, _ in network.named_modules()] == ["", "0", "1"]
    assert isinstance(network[0], nn.Conv2d)
    assert network.network is network  # as trainers of earlier versions reached it


def test_a_network_with_a_part_of_that_name_keeps_it():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = nn.Conv2d(1, 1, 1)

        def forward(self, images):
            return self.network(images)

    network = _attached(Wrapped())
    detach(network)
    assert isinstance(network.network, nn.Conv2d)


def test_a_network_that_is_given_back_is_as_it_was_and_so_are_its_copies():
    network = _attached(_Identity(), padding=Pad2d(8), amp="bf16").eval()
    copied = copy.deepcopy(network)
    detach(network)
    for plain in (network, copied):
        plain(torch.randn(1, 2, 13, 16))
        assert plain.seen == [[(1, 2, 13, 16)]]
    assert not any((network._forward_pre_hooks, network._forward_hooks, network._forward_hooks_always_called))
    assert "network" not in vars(network)
    assert attachment_of(network) is None


def test_a_network_that_is_pickled_is_loaded_as_a_plain_one():
    network = _attached(nn.Sequential(nn.Identity()), padding=nn.ZeroPad2d(1)).eval()
    attachment_of(network).on_enter.append(lambda: None)
    loaded = pickle.loads(pickle.dumps(network))
    sizes = []
    loaded[0].register_forward_hook(lambda _m, inputs, _o: sizes.append(tuple(inputs[0].shape[2:])))
    loaded(torch.zeros(1, 1, 5, 5))
    assert sizes == [(5, 5)]


def test_a_network_can_be_surrounded_again_while_a_copy_of_it_is_in_use():
    network = _attached(_Identity(), padding=Pad2d(8)).eval()
    copied = _attached(copy.deepcopy(network), padding=Pad2d(4))
    for each, size in ((network, 16), (copied, 16)):
        each(torch.randn(1, 2, 13, 16))
        assert each.seen == [[(1, 2, size, 16)]]


def test_calls_of_several_threads_at_once_do_not_count_as_calls_in_each_other():
    both_are_in = threading.Barrier(2, timeout=10)

    class Waiting(_Identity):
        def forward(self, images):
            both_are_in.wait()
            return super().forward(images)

    network, images = _attached(Waiting(), padding=Pad2d(8), amp="bf16").eval(), torch.ones(1, 2, 13, 16)
    with ThreadPoolExecutor(2) as pool:
        outputs = list(pool.map(network, [images, 2 * images]))
    assert [output.shape for output in outputs] == [images.shape] * 2
    assert network.seen == [[(1, 2, 16, 16)]] * 2


def test_a_call_that_a_ctrl_c_ends_leaves_the_next_one_as_it_was():
    class Interrupted(_Identity):
        def forward(self, images):
            if not self.seen:
                self.seen.append("interrupted")
                raise KeyboardInterrupt
            return super().forward(images)

    network = _attached(Interrupted(), padding=Pad2d(8), amp="bf16").eval()
    with pytest.raises(KeyboardInterrupt), attachment_of(network).interruptible():
        network(torch.ones(1, 2, 13, 16))
    assert not torch.is_autocast_enabled("cpu")
    assert network(torch.ones(1, 2, 13, 16)).shape == (1, 2, 13, 16)
    assert network.seen == ["interrupted", [(1, 2, 16, 16)]]


def test_a_copy_pads_and_crops_by_itself():
    network = _attached(_Identity(), padding=Pad2d(8)).eval()
    ema = ExponentialMovingAverage(network).eval()
    images = torch.randn(1, 2, 13, 16)
    assert torch.equal(ema(images), images)
    assert ema.module.seen == [[(1, 2, 16, 16)]]
    assert attachment_of(ema.module) is not attachment_of(network)
    assert ema.module.network is ema.module


def test_the_user_s_own_hooks_stay():
    network, calls = _Identity(), []
    network.register_forward_pre_hook(lambda *_: calls.append("before"))
    network.register_forward_hook(lambda *_: calls.append("after"))
    _attached(network, padding=Pad2d(8))
    detach(network)
    network(torch.zeros(1, 1, 4, 4))
    assert calls == ["before", "after"]


def test_a_network_that_calls_itself_is_surrounded_once():
    class Twice(nn.Module):
        sizes = ()

        def forward(self, images, again=True):
            self.sizes += (tuple(images.shape[2:]),)
            return self(images[..., 1:, :], again=False) if again else images

    network = _attached(Twice(), padding=Pad2d(8)).eval()
    network(torch.randn(1, 1, 13, 16))
    assert network.sizes == ((16, 16), (15, 16))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("make", [torch.jit.script, torch.fx.symbolic_trace])
def test_scripted_and_traced_networks_are_padded_too(make):
    network = _attached(make(nn.Sequential(nn.Conv2d(1, 1, 3, padding=1))), padding=Pad2d(8), amp="bf16").eval()
    output = network(torch.randn(1, 1, 13, 16))
    assert (output.shape, output.dtype) == ((1, 1, 13, 16), torch.float32)
    detach(network)
    assert network(torch.zeros(1, 1, 13, 16)).shape == (1, 1, 13, 16)


@pytest.mark.parametrize("ndim", [2, 3])
def test_channels_last_changes_the_layout_and_not_the_result(ndim):
    conv = nn.Conv2d if ndim == 2 else nn.Conv3d
    network, images = conv(3, 4, 3), torch.randn(1, 3, *(6,) * ndim)
    expected = network(images)
    attach(network, Surroundings(channels_last=True))
    form = torch.channels_last if ndim == 2 else torch.channels_last_3d
    assert network.weight.is_contiguous(memory_format=form)
    assert torch.allclose(network(images), expected, atol=1e-5)


def test_a_network_that_cannot_be_compiled_runs_as_it_is_and_says_why():
    network = _Identity()
    network._compiled_call_impl = lambda images: (_ for _ in ()).throw(RuntimeError("not with me"))
    _attached(network, padding=Pad2d(8)).eval()
    images = torch.ones(1, 1, 2, 2)
    assert torch.equal(network(images), images)
    assert attachment_of(network).compile_failure == "RuntimeError: not with me"
    assert torch.equal(network(images), images)
    assert network.seen == 2 * [[(1, 1, 8, 8)]]


def test_only_the_network_is_compiled_and_not_what_surrounds_it_nor_its_copy():
    network, compiled = _Identity(), []

    def backend(graph, _):
        compiled.append(graph)
        return graph

    network.compile(backend=backend)
    _attached(network, padding=Pad2d(8), amp="bf16").eval()
    images = torch.randn(1, 2, 13, 16)
    assert torch.equal(network(images), images)
    assert attachment_of(network).compile_failure is None
    (graph,) = compiled
    assert [node.op for node in graph.graph.nodes if node.op.startswith("call")] == 2 * ["call_function"]  # a * b * c
    assert copy.deepcopy(network)._compiled_call_impl is None
    detach(network)
    assert torch.equal(network(images), images)
    assert network._compiled_call_impl is not None


@pytest.mark.slow
def test_a_compiled_network_gives_what_it_gives_uncompiled():
    network = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU())
    images = torch.randn(1, 1, 8, 8)
    expected = network(images)
    network.compile()
    assert torch.allclose(_attached(network)(images), expected, atol=1e-5)
    assert attachment_of(network).compile_failure is None
