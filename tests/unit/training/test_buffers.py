import torch
from torch import nn

from candy_monai.training.buffers import KeptBuffers


class _Replacing(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("none", None)

    def forward(self, images):
        self.seen = torch.cat([self.seen, images.flatten()])
        return images


def test_buffers_come_back_whether_they_were_changed_or_replaced():
    network = nn.Sequential(nn.BatchNorm1d(1), _Replacing())
    kept, statistics = KeptBuffers([network]), network[0].running_mean
    network(torch.full((2, 1), float("nan")))
    kept.restore()
    assert network[0].running_mean is statistics
    assert statistics.tolist() == [0.0]
    assert network[0].num_batches_tracked == 0
    assert network[1].seen.tolist() == [0.0, 0.0]
