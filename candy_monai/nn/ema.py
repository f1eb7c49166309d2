"""An exponential moving average of a network's weights, updated without device synchronisation."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from typing_extensions import override

from candy_monai.errors import SettingsError


class ExponentialMovingAverage(AveragedModel):
    """Average a model's weights: ``average = d * average + (1 - d) * weights`` after every optimizer step.

    ``d = min(decay, (1 + t) / (10 + t))``, where ``t`` is the number of updates so far: 0.1 at the first, so that the
    random initialisation is soon forgotten. Buffers (BatchNorm's statistics), integer parameters and extra states of
    modules are copied. Parameters, buffers and modules added to the model later are averaged from then on. ``t`` is
    counted in Python, so that an update never synchronises with the device.

    The copy is a `torch.optim.swa_utils.AveragedModel`: its weights are in ``ema.module``, and its state is compatible
    with the base class. Its parameters never require gradients; ``train()`` and ``eval()`` are left to the caller.

    In half precision the updates of a slow average are lost in rounding: average a float32 model.

    Args:
        model: The model to average; it is copied once and not modified.
        decay: The share of the average that an update keeps in the long run, from 0 to less than 1.

    Raises:
        SettingsError: If ``decay`` is out of range.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> ema = ExponentialMovingAverage(model, decay=0.99)
        >>> ema.update_parameters(model)
        >>> ema.num_updates
        1
    """

    def __init__(self, model: nn.Module, *, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise SettingsError(f"decay must be at least 0 and less than 1, got {decay}")
        super().__init__(model)
        self.decay = decay
        self._num_updates = 0
        self.requires_grad_(False)
        self.register_load_state_dict_post_hook(_count_from_state)  # type: ignore[no-untyped-call]

    @property
    def num_updates(self) -> int:
        """The number of updates, including those before a restart."""
        return self._num_updates

    @override
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards the model's current weights.

        Args:
            model: The model that was copied, or the same weights in a wrapper, with parameters in the same order.

        Raises:
            ValueError: If the parameters or buffers are not those of the averaged model.
        """
        if _num_tensors(self.module) != _num_tensors(model):
            _take_up(self.module, model)
        weight = 1 - min(self.decay, (1 + self._num_updates) / (10 + self._num_updates))
        averaged, copied = self._pairs(model)
        with torch.no_grad():
            for ours, theirs in averaged:
                torch._foreach_lerp_(ours, theirs, weight)
            for ours, theirs in copied:
                torch._foreach_copy_(ours, theirs)
        for mine, new in zip(_with_extra_state(self.module), _with_extra_state(model), strict=True):
            mine.set_extra_state(copy.deepcopy(new.get_extra_state()))
        self._num_updates += 1
        self.n_averaged.fill_(self._num_updates)

    def _pairs(self, model: nn.Module) -> tuple[list[_Pair], list[_Pair]]:
        """Group the tensors to average and those to copy by type, as pairs of lists for PyTorch's foreach functions."""
        averaged: defaultdict[object, _Pair] = defaultdict(lambda: ([], []))
        copied: defaultdict[object, _Pair] = defaultdict(lambda: ([], []))
        for what in ("parameters", "buffers"):
            ours, theirs = (list(getattr(network, what)()) for network in (self.module, model))
            if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
                raise ValueError(
                    f"the model given is not the one that is averaged: it has {len(theirs)} {what} where {len(ours)} "
                    "were expected, or their shapes differ"
                )
            for mine, new in zip(ours, theirs, strict=True):
                averages = what == "parameters" and (mine.is_floating_point() or mine.is_complex())
                first, second = (averaged if averages else copied)[mine.device, mine.dtype]
                first.append(mine.detach())
                second.append(new.detach().to(mine.device, mine.dtype, non_blocking=True))
        return list(averaged.values()), list(copied.values())


def _num_tensors(network: nn.Module) -> tuple[int, int]:
    return len(list(network.parameters())), len(list(network.buffers()))


def _take_up(averaged: nn.Module, model: nn.Module) -> None:
    """Copy modules and tensors that were added to the model later to its copy, except those in a wrapper."""
    ours = dict(averaged.named_modules())
    for name, theirs in model.named_modules():
        mine = ours.get(name)
        if mine is None or type(mine) is not type(theirs):  # new ones are copied with their module
            continue
        for key, module in theirs.named_children():
            if mine._modules.get(key) is None:
                mine.add_module(key, copy.deepcopy(module).requires_grad_(False).train(mine.training))
        for key, parameter in theirs._parameters.items():
            if parameter is not None and mine._parameters.get(key) is None:
                mine.register_parameter(key, nn.Parameter(parameter.detach().clone(), requires_grad=False))
        for key, buffer in theirs._buffers.items():
            if buffer is not None and mine._buffers.get(key) is None:
                persistent = key not in theirs._non_persistent_buffers_set
                mine.register_buffer(key, buffer.detach().clone(), persistent=persistent)


def _with_extra_state(network: nn.Module) -> list[nn.Module]:
    """Return the modules that define an extra state."""
    of_none = nn.Module.get_extra_state
    return [module for module in network.modules() if type(module).get_extra_state is not of_none]


_Pair = tuple[list[Tensor], list[Tensor]]


def _count_from_state(ema: nn.Module, _: Any) -> None:
    """Read the count once, after a state was loaded; then it is counted in Python."""
    assert isinstance(ema, ExponentialMovingAverage)
    ema._num_updates = int(ema.n_averaged)
