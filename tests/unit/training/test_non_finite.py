import math

import pytest
import torch
from torch import nn

from candy_monai.errors import NonFiniteLossError
from candy_monai.training.non_finite import KeptBuffers, LossWatch


@pytest.mark.parametrize("loss", [math.nan, math.inf, torch.tensor(math.nan)])
def test_stopping_names_epoch_step_cases_and_remedy(loss):
    watch = LossWatch("stop", epoch=4)
    assert watch.admits(0.5, step=1, case_ids=())
    with pytest.raises(NonFiniteLossError, match=r"epoch 4 at step 2 \(cases a, b\).*learning rate"):
        watch.admits(loss, step=2, case_ids=("a", "b"))


def test_skipping_counts_the_steps_and_remembers_the_first():
    watch = LossWatch("skip", epoch=1)
    admitted = [watch.admits(loss, step=i, case_ids=()) for i, loss in enumerate((1.0, math.nan, 2.0, math.inf), 1)]
    assert admitted == [True, False, True, False]
    assert watch.num_skipped == 2
    assert "step 2" in watch.first_skipped


def test_a_loss_on_another_device_is_not_read_before_the_epoch_s_end():
    watch = LossWatch("stop", epoch=1)
    assert watch.admits(torch.empty((), device="meta"), step=1, case_ids=())
    watch._unread = [(3, torch.tensor(1.0), ()), (4, torch.tensor(math.nan), ("case_7",))]
    with pytest.raises(NonFiniteLossError, match="step 4.*case_7"):
        watch.settle()
    watch.settle()


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
