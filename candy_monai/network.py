"""The adapter around a user's network, shared by Trainer and Predictor.

Owns what happens between a user's ``backward`` and the user's network: autocast, float32 logits, memory format,
padding before and cropping after, a fall-back from compilation, and the factor on the gradients of one of several
passes. The user's own methods stay free of all of it. Owns no optimisation.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from candy_monai.nn.padding import restore_like

Precision = Literal["bf16", "fp16"] | None

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class NetworkAdapter(nn.Module):
    """Call a network in mixed precision and on padded images; return float32 on the caller's grid.

    In training mode images are expected to be padded already, together with their labels. In evaluation mode the
    adapter pads its input and crops every output that has the padded size; outputs of other resolutions, which serve
    deep supervision, are left out then.

    Attributes of the network can be read through the adapter.

    Args:
        network: The user's network: images ``(B, C, *spatial)`` to a tensor, or a list, tuple or dict of tensors.
        padding: Pads ``(B, C, *spatial)`` to a size that the network accepts; None if it accepts any.
        amp: ``"bf16"`` or ``"fp16"`` runs the network under autocast; None in the precision of its weights.
        channels_last: Whether weights and images are stored with the channels last, which some kernels want.

    Attributes:
        compile_failure: Why a compiled network runs as it is all the same; None if it does not.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        padding: nn.Module | None = None,
        amp: Precision = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.compile_failure: str | None = None
        self._padding = [padding]  # in a list, so that it is no submodule: the weights stay the network's own
        self._amp = amp
        self._channels_last = channels_last
        self._gradient_factor: float | Tensor = 1.0
        if channels_last:
            for parameter in network.parameters():
                parameter.data = _with_channels_last(parameter.data)

    @override
    def __getattr__(self, name: str) -> Tensor | nn.Module:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "network" or name.startswith("__"):  # a protocol's method belongs to the adapter or to none
                raise
            return getattr(self.network, name)  # type: ignore[no-any-return]

    @override
    def forward(self, images: Tensor) -> object:
        padding = self._padding[0]
        if self.training or padding is None:
            return self._call(images)
        padded = padding(images)
        size, padded_size = images.shape[2:], padded.shape[2:]
        outputs = self._call(padded)
        if padded_size == size:
            return outputs
        outputs = _without(lambda output: output.ndim == images.ndim and output.shape[2:] != padded_size, outputs)
        return _map_tensors(
            lambda output: restore_like(padding, output, size) if output.shape[2:] == padded_size else output, outputs
        )

    def _call(self, images: Tensor) -> object:
        if self._channels_last:
            images = _with_channels_last(images)
        if self._amp is None:
            outputs = self._run(images)  # not autocast(enabled=False): that would switch off the caller's own
        else:
            with torch.autocast(images.device.type, _TYPES[self._amp]):
                outputs = self._run(images)
        outputs = _map_tensors(lambda output: output.float() if output.is_floating_point() else output, outputs)
        if isinstance(self._gradient_factor, float) and self._gradient_factor == 1.0:
            return outputs
        return _map_tensors(self._with_factor, outputs)

    def _run(self, images: Tensor) -> object:
        if getattr(self.network, "_compiled_call_impl", None) is None:
            return self.network(images)
        try:
            return self.network(images)
        except Exception as error:  # of the compiler, or of the network: then it comes again
            self.network._compiled_call_impl = None
            outputs = self.network(images)
            self.compile_failure = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return outputs

    def _with_factor(self, output: Tensor) -> Tensor:
        if not output.requires_grad:
            return output
        scaled: Tensor = _ScaledGradient.apply(output, self._gradient_factor)  # type: ignore[no-untyped-call]
        return scaled

    @contextmanager
    def gradient_factor(self, factor: float | Tensor) -> Iterator[None]:
        """Multiply the gradients of whatever is backpropagated through the network's outputs.

        This is how several passes add up to one mean, although each user's loss is a mean of its own, and how half
        precision keeps small gradients. A term of the loss that does not depend on the outputs, such as a penalty on
        the weights, is not reached.

        Args:
            factor: On top of those that hold already; a tensor of zero dimensions where it lives on the device.
        """
        before, self._gradient_factor = self._gradient_factor, self._gradient_factor * factor
        try:
            yield
        finally:
            self._gradient_factor = before


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is scaled."""

    @staticmethod
    @override
    def forward(ctx: Any, output: Tensor, factor: float | Tensor) -> Tensor:
        ctx.factor = factor
        return output.view_as(output)

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.factor, None


def choose_precision(amp: str | None, device: torch.device) -> Precision:
    """Return the precision to run a network in on a device.

    Args:
        amp: ``"bf16"``, ``"fp16"``, None for that of the weights, or ``"auto"``: on a CUDA device bfloat16 where it is
            fast, else float16; elsewhere None.
        device: Where the network runs.
    """
    if amp == "auto":
        if device.type != "cuda":
            return None
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return amp  # type: ignore[return-value]  # the settings have seen to it


def channels_last_pays(network_dims: int, amp: Precision, device: torch.device) -> bool:
    """Say whether a layout with the channels last is the faster one: for pictures on tensor cores."""
    return network_dims == 2 and amp is not None and device.type == "cuda"


def _with_channels_last(tensor: Tensor) -> Tensor:
    """Return a tensor of 4 or 5 axes with its second one last in memory; any other as it is."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.ndim]) if tensor.ndim in formats else tensor


def adapter_of(model: nn.Module) -> NetworkAdapter:
    """Return the adapter that a trainer's model is, or is a moving average of.

    Raises:
        TypeError: If there is none.
    """
    inner = model.module if isinstance(model, torch.optim.swa_utils.AveragedModel) else model
    if not isinstance(inner, NetworkAdapter):
        raise TypeError(f"expected a network in its NetworkAdapter, got {type(inner).__name__}")
    return inner


def plain_network(model: nn.Module) -> nn.Module:
    """Return the user's network inside an adapter or a moving average."""
    while True:
        if isinstance(model, NetworkAdapter):
            model = model.network
        elif isinstance(model, torch.optim.swa_utils.AveragedModel):
            model = model.module
        else:
            return model


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the state_dict of the user's network under its own names, detached but not copied."""
    return {name: value.detach() for name, value in plain_network(model).state_dict().items()}


def num_parameters(network: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def count_macs(network: nn.Module, example_shape: tuple[int, ...]) -> float:
    """Count the multiply-accumulate operations of one forward pass, without making one.

    The pass runs on PyTorch's meta device, so it costs no memory and touches neither weights nor random generators.

    Args:
        network: Any network.
        example_shape: One example's shape without batch, ``(C, *spatial)``.

    Returns:
        The count; NaN for a network that cannot run on the meta device.
    """
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            meta_copy(network)(torch.empty(1, *example_shape, device="meta"))
    except Exception:  # any network may do what meta tensors cannot; the count is only shown
        return math.nan
    return float(counter.get_total_flops()) / 2


def meta_copy(network: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode on PyTorch's meta device, where tensors have shapes and no content."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    stand_ins = {id(tensor): _on_meta(tensor) for tensor in tensors.values()}
    return copy.deepcopy(network, stand_ins).eval()


def _on_meta(tensor: Tensor) -> Tensor:
    meta = torch.empty_like(tensor, device="meta")
    return nn.Parameter(meta, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta


def _without(unwanted: Callable[[Tensor], bool], tree: object) -> object:
    """Return a list, tuple or dictionary without its unwanted tensors; anything else as it is."""
    if isinstance(tree, dict):
        return {name: value for name, value in tree.items() if not (isinstance(value, Tensor) and unwanted(value))}
    if isinstance(tree, list | tuple):
        return [value for value in tree if not (isinstance(value, Tensor) and unwanted(value))]
    return tree


def _map_tensors(function: Callable[[Tensor], Tensor], tree: object) -> object:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {name: _map_tensors(function, value) for name, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[_map_tensors(function, value) for value in tree])  # type: ignore[arg-type]
    if isinstance(tree, list):
        return [_map_tensors(function, value) for value in tree]
    if isinstance(tree, tuple):
        return tuple(_map_tensors(function, value) for value in tree)
    return tree
