import pytest
import torch
from torch import nn, optim
from torch.amp.grad_scaler import GradScaler
from torch.utils.checkpoint import checkpoint

from candy_monai.errors import SettingsError
from candy_monai.training.gradients import ScaledBackward, WeighedPasses, clear_gradients, scale_gradients
from candy_monai.training.toolbox import TrainerToolbox

SCALE = 1024.0


def test_passes_add_up_to_their_weighed_sum_on_top_of_what_was_there():
    weight, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    weight.sum().mul(10).backward()
    passes = WeighedPasses([weight, unused])
    for share, slope in ((0.5, 1.0), (0.5, 2.0), (0.25, 8.0)):
        passes.begin(share)
        (slope * weight.sum()).backward()
    passes.end()
    assert weight.grad.tolist() == pytest.approx([10 + 0.5 + 1 + 2] * 2)
    assert unused.grad is None


def test_sparse_gradients_are_scaled_too():
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    scale_gradients([table.weight], 3.0)
    assert table.weight.grad.to_dense().tolist() == [[0, 0], [3, 3], [0, 0], [0, 0]]


def test_gradients_of_parameters_that_are_not_optimized_do_not_pile_up():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD([model.weight])
    toolbox = TrainerToolbox(model=model, optimizer=optimizer, scheduler=None, criterion=nn.Identity())
    model(torch.ones(1)).sum().backward()
    clear_gradients(toolbox)
    assert model.bias.grad is model.weight.grad is None


def _scaled(weight):
    scaled = ScaledBackward(GradScaler("cpu", init_scale=SCALE))
    scaled.watch([weight], optim.SGD([weight], lr=0.1))
    return scaled


def test_every_loss_that_is_backpropagated_is_scaled_whatever_its_way_from_the_weights():
    weight = nn.Parameter(torch.tensor(3.0))
    with _scaled(weight).active():
        (2 * weight).backward(retain_graph=True)
        weight.square().backward()
        torch.stack([weight, weight]).backward(gradient=torch.tensor([1.0, 4.0]))
    assert weight.grad == SCALE * (2 + 6 + 5)


def test_nothing_is_scaled_outside_of_the_block_or_without_half_precision():
    weight = nn.Parameter(torch.tensor(3.0))
    with _scaled(weight).active():
        pass
    weight.mul(2).backward()
    with ScaledBackward(GradScaler("cpu", enabled=False)).active():
        weight.mul(2).backward()
    assert weight.grad == 4


def test_a_gradient_that_is_a_term_of_the_loss_is_scaled_once():
    weight, images = nn.Parameter(torch.tensor(3.0)), torch.tensor(2.0, requires_grad=True)
    with _scaled(weight).active():
        (slope,) = torch.autograd.grad(weight * images, images, create_graph=True)
        slope.square().backward()  # w * w
    assert slope == 3
    assert weight.grad == SCALE * 6


def test_recomputed_layers_are_scaled_once():
    weight = nn.Parameter(torch.tensor(3.0))
    images = torch.tensor(2.0, requires_grad=True)
    with _scaled(weight).active():
        checkpoint(lambda x: x * weight, images, use_reentrant=True).backward()
    assert weight.grad == SCALE * 2


def test_gradients_that_are_assigned_are_refused_and_those_that_only_weigh_a_loss_are_not():
    weight = nn.Parameter(torch.tensor(3.0))
    scaled = _scaled(weight)
    with scaled.active():
        (slope,) = torch.autograd.grad(2 * weight, weight)
        (slope * weight).backward()
    with scaled.active():  # a second batch of the same step, and one that reaches nothing
        weight.mul(2).backward()
    with scaled.active():
        pass
    assert weight.grad == SCALE * 4
    with pytest.raises(SettingsError, match="do not assign gradients"), scaled.active():
        (weight.grad,) = torch.autograd.grad(2 * weight, weight)


def test_gradients_that_the_scale_does_not_reach_are_refused():
    weight = nn.Parameter(torch.tensor(3.0))
    scaled = _scaled(weight)
    with pytest.raises(SettingsError, match=r"loss\.backward"), scaled.active():
        torch.autograd.backward(weight * 2)
    scaled.close()
    with scaled.active():
        torch.autograd.backward(weight * 2)


def test_a_step_with_gradients_that_are_still_scaled_is_refused():
    weight = nn.Parameter(torch.tensor(3.0))
    optimizer = optim.SGD([weight], lr=1.0)
    scaled = ScaledBackward(GradScaler("cpu", init_scale=SCALE))
    scaled.watch([weight], optimizer)
    with scaled.active():
        weight.mul(2).backward()
    with pytest.raises(SettingsError, match=r'"fp16".*super\(\)\.step.*"bf16"'):
        optimizer.step()
    with scaled.unscaled(optimizer):
        scaled.scaler.step(optimizer)
    assert weight == 1
    scaled.close()
    optimizer.step()
