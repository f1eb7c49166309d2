from __future__ import annotations

import torch
from torch import nn

from candy_monai.nn.previous_stage import WithPreviousStage, build_for_inputs, without_ids
from candy_monai.nn.slicewise import Slicewise


class _Seen(nn.Module):
    def forward(self, x):
        self.x = x
        return x[:, :1]


def test_the_network_sees_each_id_in_a_channel_of_its_own_and_no_background():
    network = _Seen()
    ids = torch.tensor([0.0, 1.0, 2.0, 3.0]).reshape(1, 1, 4, 1)
    image = torch.randn(1, 2, 4, 1)
    output = WithPreviousStage(network, 3)(torch.cat([image, ids], dim=1))
    assert torch.equal(network.x[:, :2], image)
    assert network.x[0, 2:, :, 0].tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert torch.equal(output, image[:, :1])


def test_ids_that_no_class_has_are_background():
    network = _Seen()
    WithPreviousStage(network, 1)(torch.tensor([2.0, 0.5, -1.0]).reshape(1, 1, 3))
    assert network.x.tolist() == [[[0, 0, 0]]]


def test_the_ids_survive_half_precision():
    network = _Seen()
    ids = torch.arange(1.0, 201.0).reshape(1, 1, 200)
    WithPreviousStage(network, 200)(ids.to(torch.bfloat16))
    assert torch.equal(network.x[0].float(), torch.eye(200))


def test_a_network_is_built_for_the_channels_that_it_sees():
    shapes = []

    def build(shape):
        shapes.append(shape)
        return nn.Identity()

    built = build_for_inputs(build, (2, 8, 8, 8), slice_axis=None, num_previous=4)
    assert isinstance(built, WithPreviousStage)
    assert isinstance(build_for_inputs(build, (2, 8, 8, 8), slice_axis=2, num_previous=0), Slicewise)
    assert shapes == [(5, 8, 8, 8), (2, 8, 8)]
    assert without_ids((2, 8), 0) == (2, 8)
