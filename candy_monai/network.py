"""Properties of a user's network: its precision, its own names and weights, its size."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from candy_monai.attachment import HALF_TYPES, Precision
from candy_monai.errors import BadInputError, SettingsError, reason_in_short


def choose_precision(amp: str | None, device: torch.device) -> Precision:
    """Return the precision to run a network in on a device.

    It is the one given (None is that of the weights), or for ``"auto"`` on a CUDA device bfloat16 if it is fast, else
    float16, and elsewhere None.
    """
    if amp == "auto":
        if device.type != "cuda":
            return None
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return amp  # type: ignore[return-value]  # the settings have checked it


def check_precision(amp: str | None, device: torch.device) -> None:
    """Check that PyTorch supports a half precision on a device; other values, such as ``"auto"``, are always supported.

    Raises:
        SettingsError: If it does not.
    """
    if amp not in HALF_TYPES:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # PyTorch would continue in float32
            torch.autocast(device.type, HALF_TYPES[amp])
    except (RuntimeError, UserWarning) as error:
        raise SettingsError(
            f"amp: PyTorch cannot compute in {amp} on {device} ({reason_in_short(error)}): choose another precision, "
            "or auto"
        ) from error


def channels_last_pays(network_dims: int, amp: Precision, device: torch.device) -> bool:
    """Return whether the channels-last layout is faster, as for pictures on tensor cores."""
    return network_dims == 2 and amp is not None and device.type == "cuda"


def plain_network(model: nn.Module) -> nn.Module:
    """Return the user's network inside a moving average or PyTorch's wrappers: compiled, data parallel."""
    while True:
        if isinstance(
            model, torch.optim.swa_utils.AveragedModel | nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            model = model.module
        elif "_orig_mod" in model._modules:  # the result of torch.compile for a module
            model = model.get_submodule("_orig_mod")
        else:
            return model


def plain_weights(model: nn.Module) -> dict[str, Any]:
    """Return the state_dict of the user's network under its own names, with detached tensors that are not copied."""
    state = plain_network(model).state_dict()
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in state.items()}


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Yield with a network in evaluation mode; afterwards each of its modules has its earlier mode."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():  # a user may have set some of them to evaluation mode
            module.training = mode


def initialize_lazy(network: nn.Module, example: Tensor) -> None:
    """Run a network on one example ``(1, C, *spatial)`` if it has lazy layers, to initialise their sizes.

    Raises:
        BadInputError: If the network cannot be called with it, or some layer is not called.
    """
    if not _uninitialized(network):
        return
    try:
        with torch.no_grad(), evaluating(network):
            network(example)
        if names := _uninitialized(network):
            raise BadInputError(f"{', '.join(names[:3])} not used in the forward pass")
    except Exception as error:
        raise BadInputError(
            f"build_network returned a {type(network).__name__} with lazy layers, which a forward pass of one example "
            f"of shape {tuple(example.shape)} did not initialize ({type(error).__name__}: {error}): run it on an "
            "example in build_network"
        ) from error


def check_takes_complex(network: nn.Module, example: Tensor) -> None:
    """Refuse complex images ``(1, C, *spatial)`` for a network that computes with real numbers.

    Raises:
        BadInputError: If the network cannot be called with it.
    """
    if not example.is_complex():
        return
    try:
        with torch.no_grad(), evaluating(network):
            network(example)
    except (NotImplementedError, RuntimeError) as error:
        raise BadInputError(
            f"the images are complex ({example.dtype}), which this {type(network).__name__} does not support "
            f"({error}): use their magnitude, image.abs(), or their real and imaginary parts as channels"
        ) from error


def _uninitialized(network: nn.Module) -> list[str]:
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return [name for name, tensor in tensors.items() if is_lazy(tensor)]


@contextmanager
def copyable(network: nn.Module) -> Iterator[None]:
    """Detach computed tensors stored in a network, as by `torch.nn.utils.weight_norm`, within a block, to copy it.

    They are recomputed in each forward pass; autograd refuses to copy them.
    """
    computed = [
        (module, name, value)
        for module in network.modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    for module, name, value in computed:
        vars(module)[name] = value.detach()
    try:
        yield
    finally:
        for module, name, value in computed:
            vars(module)[name] = value


def num_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def count_macs(network: nn.Module, example_shape: tuple[int, ...]) -> float:
    """Count the multiply-accumulate operations for one example ``(C, *spatial)``, without computing a forward pass.

    The pass runs on PyTorch's meta device, so it needs no memory and changes neither weights nor random generators.

    Returns:
        The count; NaN for a network that cannot run on the meta device.
    """
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            meta_copy(network)(torch.empty(1, *example_shape, device="meta"))
    except Exception:  # some networks do what meta tensors cannot; the count is only displayed
        return math.nan
    return float(counter.get_total_flops()) / 2


def meta_copy(network: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode on PyTorch's meta device, where tensors have shapes but no data."""
    computed = [value for module in network.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    tensors = [*network.parameters(), *network.buffers(), *computed]
    stand_ins = {id(tensor): _on_meta(tensor) for tensor in tensors}
    return copy.deepcopy(network, stand_ins).eval()


def _on_meta(tensor: Tensor) -> Tensor:
    meta = torch.empty_like(tensor, device="meta")
    return nn.Parameter(meta, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
