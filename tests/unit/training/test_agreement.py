from __future__ import annotations

import pytest
import torch
from torch import nn, optim

from candy_monai.errors import SettingsError
from candy_monai.processes import Processes
from candy_monai.training.agreement import Agreement, SaveTimer, agree
from candy_monai.training.toolbox import TrainerToolbox


def test_one_process_agrees_with_itself_and_keeps_its_gradients():
    network = nn.Linear(1, 1)
    network(torch.ones(1, 1)).sum().backward()
    optimizer = optim.SGD(network.parameters(), lr=0.1)
    toolbox = TrainerToolbox(network, optimizer, optim.lr_scheduler.ConstantLR(optimizer), nn.MSELoss())
    own = Agreement(usable=False, save=True, stop=False, cut=True)
    assert agree(own, toolbox, Processes()) == own
    assert network.weight.grad.item() == 1.0


def test_a_run_is_saved_after_so_many_batches_and_never_without_an_interval():
    timer = SaveTimer(3)
    assert [timer.is_over(batch) for batch in (2, 3)] == [False, True]
    timer.restart(3)
    assert [timer.is_over(batch) for batch in (5, 6)] == [False, True]
    assert not SaveTimer(None).is_over(10**6)


def test_a_run_is_saved_after_so_much_time():
    now = [0.0]
    timer = SaveTimer("90s", clock=lambda: now[0])
    assert not timer.is_over(5)
    now[0] = 90.0
    assert timer.is_over(5)
    timer.restart(5)
    assert not timer.is_over(6)


def test_what_is_no_interval_is_refused():
    with pytest.raises(SettingsError, match="save_every"):
        SaveTimer("often")
