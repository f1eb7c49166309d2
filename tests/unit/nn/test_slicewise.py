from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import nn

from candy_monai.nn.padding import Pad2d
from candy_monai.nn.slicewise import SLICES_AT_ONCE, Slicewise, build_for_slices, padding_of_slices


def unet(**options: object) -> DynUNet:
    torch.manual_seed(0)
    return DynUNet(2, 1, 3, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 16], **options)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_slice_gets_what_the_network_makes_of_it_alone(axis):
    network = unet().eval()
    volumes = torch.randn(2, 1, 16, 16, 16).narrow(2 + axis, 0, 3)
    with torch.no_grad():
        output = Slicewise(network, axis)(volumes)
        for index in range(3):
            expected = network(volumes.select(2 + axis, index))
            torch.testing.assert_close(output.select(2 + axis, index), expected)
    assert output.shape == (2, 3, *volumes.shape[2:])


def test_stacked_outputs_of_deep_supervision_keep_their_axis():
    output = Slicewise(unet(deep_supervision=True, deep_supr_num=1).train(), 2)(torch.randn(2, 1, 16, 24, 5))
    assert output.shape == (2, 2, 3, 16, 24, 5)


def test_outputs_in_lists_and_dictionaries_become_volumes_each():
    class Several(nn.Module):
        def forward(self, x, *, scale):
            return {"all": [x * scale, x[..., ::2, ::2]], "pair": (x, x)}

    volumes = torch.randn(1, 2, 3, 8, 6)
    outputs = Slicewise(Several(), 0)(volumes, scale=2)
    torch.testing.assert_close(outputs["all"][0], volumes * 2)
    torch.testing.assert_close(outputs["all"][1], volumes[..., ::2, ::2])
    assert isinstance(outputs["pair"], tuple)
    torch.testing.assert_close(outputs["pair"][1], volumes)


class Pair(NamedTuple):
    logits: torch.Tensor
    loss: torch.Tensor | None


@pytest.mark.parametrize("kind", [Pair, lambda *parts: parts, lambda *parts: [*parts]], ids=["named", "tuple", "list"])
def test_a_loss_beside_the_logits_is_averaged_and_none_is_kept(kind):
    class WithLoss(nn.Module):
        def forward(self, x):
            return kind(x, x.mean() if self.training else None)

    volumes = torch.randn(2, 1, 2 * SLICES_AT_ONCE, 4, 4)
    with torch.no_grad():
        logits, loss = Slicewise(WithLoss(), 0)(volumes)
        torch.testing.assert_close(logits, volumes)
        torch.testing.assert_close(loss, volumes.mean())
        made = Slicewise(WithLoss(), 0).eval()(volumes)
    assert made[1] is None
    assert type(made) is type(kind(1, 2))


def test_gradients_are_those_of_the_slices_as_a_batch():
    sliced, batch = unet(), unet()
    volumes = torch.randn(2, 1, 16, 16, 3)
    Slicewise(sliced, 2)(volumes).square().mean().backward()
    batch(volumes.movedim(4, 1).flatten(0, 1)).square().mean().backward()
    for ours, theirs in zip(sliced.parameters(), batch.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_without_gradients_slices_are_run_in_groups_with_the_same_result():
    sizes = []

    class Counting(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return {"twice": x * 2}

    volumes = torch.randn(1, 1, 4, 4, SLICES_AT_ONCE + 3)
    with torch.no_grad():
        found = Slicewise(Counting(), 2)(volumes)["twice"]
    assert sizes == [SLICES_AT_ONCE, 3]
    assert torch.equal(found, volumes * 2)


def test_a_network_is_built_for_slices_where_there_is_an_axis_of_them():
    seen = []

    def build(shape):
        seen.append(shape)
        return nn.Identity()

    assert isinstance(build_for_slices(build, (2, 8, 9, 3), 1), Slicewise)
    assert isinstance(build_for_slices(build, (2, 8, 9, 3), None), nn.Identity)
    assert seen == [(2, 8, 3), (2, 8, 9, 3)]


def test_volumes_are_padded_as_their_slices_would_be():
    padding = padding_of_slices(Pad2d((8, 4), mode="reflect"), 0)
    assert padding(torch.zeros(1, 1, 3, 9, 9)).shape == (1, 1, 3, 16, 12)
    other = nn.Identity()
    assert padding_of_slices(other, 0) is other
    assert padding_of_slices(None, 0) is None
    pad = Pad2d(4)
    assert padding_of_slices(pad, None) is pad
