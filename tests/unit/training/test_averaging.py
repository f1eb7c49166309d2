"""One process with a process group: what the watch sees, and what is sent, without torchrun."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import distributed, nn, optim

from candy_monai.errors import BadInputError
from candy_monai.processes import Processes
from candy_monai.training import early_gradients
from candy_monai.training.averaging import GradientAverage
from candy_monai.training.toolbox import TrainerToolbox


@pytest.fixture
def group(monkeypatch):
    """A process group of this process, and the number of messages that it sends."""
    small = functools.partial(early_gradients.DistributedDataParallel, bucket_cap_mb=1e-5)
    monkeypatch.setattr(early_gradients, "DistributedDataParallel", small)
    monkeypatch.setattr(distributed, "_DEFAULT_FIRST_BUCKET_BYTES", 16)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    sent, all_reduce = [], distributed.all_reduce
    monkeypatch.setattr(distributed, "all_reduce", lambda *a, **k: (sent.append(a[0].numel()), all_reduce(*a, **k))[1])
    yield sent
    distributed.destroy_process_group()


class _Steps:
    """A network, its average, and steps of several kinds."""

    def __init__(self, *, why_not=None):
        torch.manual_seed(0)
        self.first, self.second, self.side = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        self.network = nn.ModuleList([self.first, self.second, self.side, nn.Linear(2, 2)])  # the last one: unused
        optimizer = optim.SGD(self.network.parameters(), lr=0.1)
        toolbox = TrainerToolbox(self.network, optimizer, optim.lr_scheduler.ConstantLR(optimizer), nn.MSELoss())
        self.said = []
        self.gradients = GradientAverage(toolbox, Processes(), why_not=why_not, log=self.said.append)

    def loss(self, *, side=True):
        hidden = self.first(torch.linspace(0, 1, 3)).tanh()
        return (self.second(hidden) + (self.side(hidden) if side else 0)).square().mean()

    def once(self, backward=None, *, flags=(False, True)):
        self.network.zero_grad()
        with self.gradients.passing(is_last=True):
            (backward or (lambda: self.loss().backward()))()
        own = copy.deepcopy([parameter.grad for parameter in self.network.parameters()])
        assert self.gradients.average(flags) == list(flags)
        of_all = [parameter.grad for parameter in self.network.parameters()]
        assert [each is None for each in own] == [each is None for each in of_all]
        assert all(a is None or torch.equal(a, b) for a, b in zip(own, of_all, strict=True))


def test_gradients_of_one_pass_are_sent_in_parts_from_the_second_step_on(group):
    steps = _Steps()
    steps.once()
    assert "while they are computed, in 4 messages" in steps.said[-1]
    group.clear()
    before = list(steps.network.state_dict())
    steps.once()
    assert len(group) == 3  # the last part goes with the flags, which a process by itself tells nobody
    assert list(steps.network.state_dict()) == before
    assert len(steps.said) == 1
    steps.gradients.close()
    assert not any(parameter._post_accumulate_grad_hooks for parameter in steps.network.parameters())


def _twice(steps):
    steps.loss().backward()
    steps.loss().backward()


def _clipped(steps):
    steps.loss().backward()
    nn.utils.clip_grad_norm_(steps.network.parameters(), 1e-3)


def _through_data(steps):
    steps.loss().backward()
    for parameter in steps.second.parameters():
        parameter.grad.data.mul_(2)


def _assigned(steps):
    steps.loss().backward()
    steps.second.weight.grad = steps.second.weight.grad * 2


@pytest.mark.parametrize(
    ("backward", "reason"),
    [
        (_twice, "several passes"),
        (_clipped, "changes gradients after its pass"),
        (_assigned, "changes gradients after its pass"),
        (_through_data, "changes gradients after its pass"),
        (lambda steps: steps.loss(side=False).backward(), "2.weight"),
        (lambda steps: None, "0.weight"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_step_that_is_not_one_pass_is_averaged_after_it_and_so_are_all_later_ones(group, backward, reason, first):
    if first and reason.startswith(("0", "2")):
        pytest.skip("what no process has a gradient of in the first step is left out")
    if not first and backward is _through_data:
        pytest.skip("is seen by comparing the gradients, as in the first step alone")
    steps = _Steps()
    if not first:
        steps.once()
    steps.once(lambda: backward(steps))
    assert "after the passes of each step" in steps.said[-1]
    assert reason in steps.said[-1]
    said = len(steps.said)
    steps.once()
    steps.once()
    assert len(steps.said) == said


def test_a_parameter_that_is_reached_twice_while_gradients_are_sent_is_an_error_that_says_what_to_do(group):
    steps = _Steps()
    steps.once()

    def partly_twice():
        steps.loss(side=False).backward()
        steps.loss(side=False).backward()

    with pytest.raises(BadInputError, match="set _one_pass = False"):
        steps.once(partly_twice)


def test_when_other_parameters_are_trained_the_next_step_decides_anew(group):
    steps = _Steps()
    steps.once()
    for is_trained, num_messages in ((False, 2), (True, 4)):
        steps.first.requires_grad_(is_trained)
        steps.once()
        assert "the set of trained parameters has changed" in steps.said[-1]
        steps.once()
        assert f"while they are computed, in {num_messages} messages" in steps.said[-1]
    for _ in range(2):  # with every step
        for is_trained in (False, True):
            steps.first.requires_grad_(is_trained)
            steps.once()
            steps.once()
    said = len(steps.said)
    steps.first.requires_grad_(False)
    steps.once()
    assert len(steps.said) == said


def test_a_resumed_run_sends_the_same_parts_from_its_first_step_on(group):
    steps, again = _Steps(), _Steps()
    steps.once()
    again.gradients.load_state_dict(steps.gradients.state_dict())
    assert again.said == steps.said
    group.clear()
    steps.once()
    parts = group.copy()
    group.clear()
    again.once()
    assert group == parts
    steps.first.requires_grad_(False)
    again = _Steps()
    again.first.requires_grad_(False)
    again.gradients.load_state_dict(steps.gradients.state_dict())
    assert not again.said  # the first step decides anew
    steps.first.requires_grad_(True)
    steps.once(lambda: _twice(steps))
    resumed = _Steps()
    resumed.gradients.load_state_dict(steps.gradients.state_dict())
    assert resumed.said == steps.said[-1:]


def test_gradients_are_never_sent_early_where_that_is_ruled_out(group):
    steps = _Steps(why_not="Mine has _one_pass = False")
    steps.once()
    steps.once()
    assert steps.said == ["Gradients are averaged after the passes of each step: Mine has _one_pass = False"]
