"""An optimizer whose state is divided among the processes of a run, by PyTorch's `ZeroRedundancyOptimizer`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn, optim
from typing_extensions import TypeIs

from candy_monai.data.values import join_names
from candy_monai.errors import SettingsError, reason_in_short
from candy_monai.training.returns import needs_closure

if TYPE_CHECKING:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    from candy_monai.processes import Processes

_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")


def sharded(optimizer: optim.Optimizer) -> ZeroRedundancyOptimizer:
    """Return an optimizer of the same kind, groups and options, which has the state of this process's share only.

    Raises:
        SettingsError: If it cannot be built from its own options, or not for its parameters.
    """
    from torch.distributed.optim import ZeroRedundancyOptimizer

    kind = type(optimizer)
    if needs_closure(optimizer):  # it searches along a direction of all parameters, which no process would have
        raise SettingsError(f"shard_optimizer: the step of {kind.__name__} needs all parameters at once: leave it out")
    if kind.state_dict is not optim.Optimizer.state_dict:  # of which only the groups and the parameters' are known
        raise SettingsError(f"shard_optimizer: {kind.__name__} has a state_dict of its own: leave it out")
    if any(getattr(optimizer, name, None) for name in _HOOKS):
        raise SettingsError(f"shard_optimizer: the {kind.__name__} has hooks, which would be lost: leave it out")
    known = inspect.signature(kind).parameters
    options = {name: value for name, value in optimizer.defaults.items() if name in known}
    try:
        found = ZeroRedundancyOptimizer(
            [dict(group) for group in optimizer.param_groups], optimizer_class=kind, **options
        )
    except Exception as error:  # from any user's optimizer
        raise SettingsError(
            f"shard_optimizer: {kind.__name__} cannot be built for a share of the parameters "
            f"({reason_in_short(error)}): leave it out, or use an optimizer of torch.optim"
        ) from error
    if found.optim.defaults != optimizer.defaults:
        raise SettingsError(
            f"shard_optimizer: {kind.__name__} has other options when it is built from those that it has, "
            f"{found.optim.defaults} instead of {optimizer.defaults}: leave it out, or use an optimizer of torch.optim"
        )
    if lost := _lost(optimizer, found.optim):
        raise SettingsError(
            f"shard_optimizer: {kind.__name__} keeps {join_names(lost, limit=4)} outside of its options, which would "
            "be lost: leave it out, or put them into the optimizer's defaults"
        )
    return found


def _lost(optimizer: optim.Optimizer, rebuilt: optim.Optimizer) -> list[str]:
    """Return the attributes of an optimizer's own that the rebuilt one does not have, or not certainly."""
    of_all = vars(optim.Optimizer([nn.Parameter(torch.empty(0))], {}))
    own, other = vars(optimizer), vars(rebuilt)
    plain = (bool, int, float, str, type(None))
    return [
        name
        for name, value in own.items()
        if name not in of_all and not (isinstance(value, plain) and name in other and other[name] == value)
    ]


def is_sharded(optimizer: optim.Optimizer) -> TypeIs[ZeroRedundancyOptimizer]:
    """Return whether an optimizer has the state of a share only."""
    if not distributed.is_available():  # in a build of PyTorch without it
        return False
    from torch.distributed.optim import ZeroRedundancyOptimizer

    return isinstance(optimizer, ZeroRedundancyOptimizer)


def unsharded(optimizer: optim.Optimizer) -> optim.Optimizer:
    """Return the optimizer of a process's share, or an optimizer that is not sharded itself."""
    return optimizer.optim if is_sharded(optimizer) else optimizer


def whole_state(optimizer: optim.Optimizer, processes: Processes) -> dict[str, Any]:
    """Return the state of an optimizer as that of one that is not sharded; all processes take part.

    That of a sharded one is complete in the first process, which writes it, and has no tensors in the others.
    """
    if not is_sharded(optimizer):
        return optimizer.state_dict()
    # Not by `consolidate_state_dict`, which takes 7 s for 120 MB.
    share = optimizer.optim.state_dict()["state"]
    own = {place: _on_cpu(share[number]) for number, place in enumerate(_own_places(optimizer)) if number in share}
    state = options_of(optimizer)
    for found in processes.gather(own):
        state["state"].update(found)
    state["state"] = dict(sorted(state["state"].items()))
    return state


def options_of(optimizer: optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer, without the tensors of a sharded one."""
    if not is_sharded(optimizer):
        return optimizer.state_dict()
    return optim.Optimizer.state_dict(optimizer)


def load_whole_state(optimizer: optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the result of `whole_state` of the first process, into an optimizer that is sharded or not.

    Raises:
        ValueError: If its groups are not those of the optimizer.
    """
    if not is_sharded(optimizer):
        optimizer.load_state_dict(state)
        return
    # Not by its own method, which keeps a second copy of the share, and the step count of fused steps on the CPU.
    saved, present = state["param_groups"], optimizer.param_groups
    if [len(group["params"]) for group in saved] != [len(group["params"]) for group in present]:
        raise ValueError("its optimizer has other groups of parameters")
    groups = [
        {**group, "params": share["params"]}
        for group, share in zip(saved, optimizer.optim.state_dict()["param_groups"], strict=True)
    ]
    places = enumerate(_own_places(optimizer))
    of_share = {number: state["state"][place] for number, place in places if place in state["state"]}
    optimizer.optim.load_state_dict({"state": of_share, "param_groups": groups})
    for group, loaded in zip(present, saved, strict=True):
        group.update({name: value for name, value in loaded.items() if name != "params"})


def _own_places(optimizer: ZeroRedundancyOptimizer) -> list[int]:
    """Return the place of each parameter of the share among all parameters, in the order of the share's own state."""
    places = {id(parameter): place for place, parameter in enumerate(_parameters(optimizer))}
    return [places[id(parameter)] for parameter in _parameters(optimizer.optim)]


def _parameters(optimizer: optim.Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]


def _on_cpu(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in values.items()}
