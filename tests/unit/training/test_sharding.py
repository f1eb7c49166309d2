"""An optimizer with the state of a share: in a group of one process, whose share is everything."""

import copy

import pytest
import torch
from torch import distributed, nn

from candy_monai.errors import SettingsError
from candy_monai.processes import Processes
from candy_monai.training.sharding import is_sharded, load_whole_state, options_of, sharded, unsharded, whole_state


@pytest.fixture(autouse=True)
def _group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def _network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def _groups(network):
    return [{"params": network[0].parameters(), "lr": 0.1}, {"params": network[1].parameters(), "weight_decay": 0.5}]


def _step(network, optimizer, seed):
    optimizer.zero_grad()
    images = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
    network(images).square().mean().backward()
    optimizer.step()


class TestSharded:
    @pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad])
    def test_it_steps_as_the_optimizer_that_it_is_made_of_and_has_its_state(self, kind):
        networks = _network(), _network()
        plain, own = (kind(_groups(network), lr=0.02) for network in networks)
        own = sharded(own)
        assert is_sharded(own)
        assert type(unsharded(own)) is kind
        for seed in range(3):
            _step(networks[0], plain, seed)
            _step(networks[1], own, seed)
        assert all(map(torch.equal, networks[0].parameters(), networks[1].parameters()))
        torch.testing.assert_close(whole_state(own, Processes()), plain.state_dict(), rtol=0, atol=0)

    def test_a_schedule_changes_its_rate(self):
        network = _network()
        optimizer = sharded(torch.optim.SGD(network.parameters(), lr=1.0))
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        _step(network, optimizer, 0)
        schedule.step()
        _step(network, optimizer, 1)
        assert optimizer.optim.param_groups[0]["lr"] == 0.5

    def test_one_that_is_not_built_from_its_options_is_refused(self):
        class Fixed(torch.optim.SGD):
            def __init__(self, params, scale):
                super().__init__(params, lr=0.1 * scale)

        class Own(torch.optim.SGD):
            def __init__(self, params, lr=0.1):
                super().__init__(params, lr=lr * 2)

        with pytest.raises(SettingsError, match=r"shard_optimizer: Fixed cannot be built for a share .*scale"):
            sharded(Fixed(_network().parameters(), 2))
        with pytest.raises(SettingsError, match="shard_optimizer: Own has other options when it is built from those"):
            sharded(Own(_network().parameters()))

    def test_one_that_keeps_something_outside_of_its_options_is_refused(self):
        class Centred(torch.optim.SGD):
            def __init__(self, params, lr=0.1, centred=False):
                super().__init__(params, lr=lr)
                self.centred = centred

        assert is_sharded(sharded(Centred(_network().parameters())))  # its attribute is the same when it is rebuilt
        with pytest.raises(SettingsError, match="shard_optimizer: Centred keeps centred outside of its options"):
            sharded(Centred(_network().parameters(), centred=True))
        later = torch.optim.SGD(_network().parameters(), lr=0.1)
        later.mask = torch.ones(3)
        with pytest.raises(SettingsError, match="shard_optimizer: SGD keeps mask outside of its options"):
            sharded(later)

    def test_one_whose_step_needs_all_parameters_is_refused(self):
        with pytest.raises(SettingsError, match="shard_optimizer: the step of LBFGS needs all parameters at once"):
            sharded(torch.optim.LBFGS(_network().parameters()))

    def test_one_with_a_state_of_its_own_is_refused(self):
        class Counting(torch.optim.SGD):
            def state_dict(self):
                return {**super().state_dict(), "calls": 3}

        with pytest.raises(SettingsError, match="shard_optimizer: Counting has a state_dict of its own"):
            sharded(Counting(_network().parameters(), lr=0.1))

    @pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"capturable": False, "amsgrad": True}])
    def test_kinds_of_steps_are_kept(self, options):
        groups = sharded(torch.optim.AdamW(_network().parameters(), **options)).optim.param_groups
        assert all(groups[0][name] is value for name, value in options.items())

    def test_one_with_hooks_is_refused(self):
        optimizer = torch.optim.SGD(_network().parameters(), lr=0.1)
        optimizer.register_step_post_hook(lambda *_: None)
        with pytest.raises(SettingsError, match="shard_optimizer: the SGD has hooks, which would be lost"):
            sharded(optimizer)

    def test_parameters_of_several_types_are_refused(self):
        network = _network()
        network[1].half()
        with pytest.raises(SettingsError, match="shard_optimizer: AdamW cannot be built"):
            sharded(torch.optim.AdamW(network.parameters()))


class TestState:
    @pytest.mark.parametrize("makes", [lambda optimizer: optimizer, sharded], ids=["plain", "sharded"])
    @pytest.mark.parametrize("saves", [lambda optimizer: optimizer, sharded], ids=["from plain", "from sharded"])
    def test_it_is_loaded_into_another_one_that_is_sharded_or_not(self, saves, makes):
        network = _network()
        optimizer = saves(torch.optim.AdamW(_groups(network)))
        _step(network, optimizer, 0)
        optimizer.param_groups[0]["lr"] = 0.3
        state, copied = copy.deepcopy(whole_state(optimizer, Processes())), copy.deepcopy(network)
        other = makes(torch.optim.AdamW(_groups(copied)))
        load_whole_state(other, state)
        assert options_of(other)["param_groups"] == state["param_groups"]
        for seed in (1, 2):
            _step(network, optimizer, seed)
            _step(copied, other, seed)
        assert all(map(torch.equal, network.parameters(), copied.parameters()))
        torch.testing.assert_close(whole_state(other, Processes()), whole_state(optimizer, Processes()), rtol=0, atol=0)

    def test_that_of_other_groups_is_refused(self):
        state = torch.optim.SGD(_network().parameters(), lr=0.1).state_dict()
        with pytest.raises(ValueError, match="other groups of parameters"):
            load_whole_state(sharded(torch.optim.SGD(_groups(_network()), lr=0.1)), state)
