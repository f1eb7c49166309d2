from __future__ import annotations

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel

from candy_monai.errors import SettingsError
from candy_monai.nn.ema import ExponentialMovingAverage


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def set_all(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def test_the_first_update_keeps_a_tenth_of_the_start():
    model = nn.Linear(1, 1)
    set_all(model, 0.0)
    ema = ExponentialMovingAverage(model)
    set_all(model, 1.0)
    ema.update_parameters(model)
    assert ema.module.weight.item() == pytest.approx(0.9)


@given(decay=st.floats(0, 0.9999), steps=st.integers(1, 30))
@settings(max_examples=25)
def test_every_update_follows_the_stated_rule(decay, steps):
    model = nn.Linear(1, 1)
    ema = ExponentialMovingAverage(model, decay=decay)
    expected = model.weight.item()
    for t in range(steps):
        set_all(model, float(t % 3))
        ema.update_parameters(model)
        d = min(decay, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * (t % 3)
    assert ema.module.weight.item() == pytest.approx(expected, abs=1e-6)


def test_after_its_warm_up_the_decay_is_the_one_asked_for():
    model = nn.Linear(1, 1)
    ema = ExponentialMovingAverage(model, decay=0.5)
    for _ in range(8):  # (1 + 8) / (10 + 8) = 0.5
        ema.update_parameters(model)
    before = ema.module.weight.item()
    set_all(model, 4.0)
    ema.update_parameters(model)
    assert ema.module.weight.item() == pytest.approx(0.5 * before + 0.5 * 4.0, abs=1e-6)


def test_buffers_are_copied_also_integer_ones():
    model = small()
    ema = ExponentialMovingAverage(model)
    model(torch.randn(2, 1, 5, 5))
    ema.update_parameters(model)
    assert torch.equal(ema.module[1].running_mean, model[1].running_mean)
    assert ema.module[1].num_batches_tracked.item() == 1


def test_integer_parameters_are_copied():
    model = nn.Module()
    model.table = nn.Parameter(torch.tensor([1, 2]), requires_grad=False)
    ema = ExponentialMovingAverage(model)
    model.table += 5
    ema.update_parameters(model)
    assert ema.module.table.tolist() == [6, 7]


def test_parameters_of_several_types_are_averaged():
    model = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1).double()])
    set_all(model, 0.0)
    ema = ExponentialMovingAverage(model)
    set_all(model, 1.0)
    ema.update_parameters(model)
    assert [layer.weight.item() for layer in ema.module] == pytest.approx([0.9, 0.9])


def test_the_model_is_not_changed_by_being_averaged():
    model = small()
    before = copy.deepcopy(model.state_dict())
    ema = ExponentialMovingAverage(model)
    ema.update_parameters(model)
    set_all(ema.module, 3.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_average_never_requires_gradients():
    ema = ExponentialMovingAverage(small())
    ema.update_parameters(small())
    assert not any(parameter.requires_grad for parameter in ema.parameters())


def test_training_mode_is_left_to_the_caller():
    ema = ExponentialMovingAverage(small()).eval()
    ema.update_parameters(small().train())
    assert not ema.module[1].training


def test_it_is_the_average_model_that_pytorch_knows():
    ema = ExponentialMovingAverage(small())
    assert isinstance(ema, AveragedModel)
    x = torch.randn(1, 1, 5, 5)
    assert torch.equal(ema.eval()(x), ema.module.eval()(x))


def test_an_average_saved_and_loaded_goes_on_with_the_same_bits():
    model = small()
    straight = ExponentialMovingAverage(model, decay=0.9)
    for value in range(5):
        set_all(model, float(value))
        straight.update_parameters(model)
    file = io.BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    resumed = ExponentialMovingAverage(small(), decay=0.9)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.num_updates == 5
    for ema in (straight, resumed):
        set_all(model, 7.0)
        ema.update_parameters(model)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    assert resumed.num_updates == straight.num_updates == 6


def test_a_copy_of_an_average_counts_on_its_own():
    model = small()
    ema = ExponentialMovingAverage(model)
    twin = copy.deepcopy(ema)
    state = ema.state_dict()
    ema.update_parameters(model)
    assert (ema.num_updates, twin.num_updates) == (1, 0)
    ema.update_parameters(model)
    twin.load_state_dict(state)
    assert twin.num_updates == 2  # state_dict shares storage with the live average
    assert ema.num_updates == 2


def test_its_state_loads_into_pytorchs_own_class():
    model = small()
    ema = ExponentialMovingAverage(model)
    ema.update_parameters(model)
    plain = AveragedModel(model)
    plain.load_state_dict(ema.state_dict())
    assert plain.n_averaged.item() == 1


def test_a_model_of_another_shape_is_refused():
    ema = ExponentialMovingAverage(nn.Linear(2, 1))
    with pytest.raises(ValueError, match="not the one that is averaged"):
        ema.update_parameters(nn.Linear(3, 1))


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(SettingsError):
        ExponentialMovingAverage(nn.Linear(1, 1), decay=decay)


def test_extra_states_are_copied():
    class Counting(nn.Linear):
        calls = ()

        def get_extra_state(self):
            return list(self.calls)

        def set_extra_state(self, state):
            self.calls = state

    model = Counting(1, 1)
    ema = ExponentialMovingAverage(model)
    model.calls = [1, 2]
    ema.update_parameters(model)
    model.calls.append(3)
    assert ema.module.calls == [1, 2]


def test_what_the_model_is_given_later_is_averaged_from_then_on():
    model = nn.Sequential(nn.Linear(1, 1))
    ema = ExponentialMovingAverage(model)
    ema.update_parameters(model)
    model[0].register_buffer("calls", torch.tensor(3))
    model[0].gain = nn.Parameter(torch.tensor(1.0))
    model.append(nn.BatchNorm1d(1))
    ema.update_parameters(model)
    assert list(ema.module.state_dict()) == list(model.state_dict())
    model[0].calls.fill_(4)
    model[0].gain.data.fill_(2.0)
    ema.update_parameters(model)
    assert ema.module[0].calls == 4
    assert ema.module[0].gain == pytest.approx(1 + (1 - 3 / 12))
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
