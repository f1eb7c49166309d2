"""The gradients of one optimizer step: weighting the passes that it sums, and the loss scale of fp16."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn, optim
from torch.amp.grad_scaler import GradScaler
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from candy_monai.errors import SettingsError

if TYPE_CHECKING:
    from candy_monai.training.toolbox import TrainerToolbox


def optimized_parameters(optimizer: optim.Optimizer) -> list[nn.Parameter]:
    """Return the parameters that an optimizer updates."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def trained_parameters(toolbox: TrainerToolbox) -> list[nn.Parameter]:
    """Return the parameters that gradients are computed for: those of the optimizer and the model, each once."""
    found = {id(parameter): parameter for parameter in toolbox.model.parameters()}
    found.update((id(parameter), parameter) for parameter in optimized_parameters(toolbox.optimizer))
    return [parameter for parameter in found.values() if parameter.requires_grad]


def clear_gradients(toolbox: TrainerToolbox) -> None:
    """Clear the gradients of the previous step, also those of parameters that are not in the optimizer."""
    toolbox.optimizer.zero_grad()
    known = {id(parameter) for parameter in optimized_parameters(toolbox.optimizer)}
    for parameter in toolbox.model.parameters():
        if id(parameter) not in known:
            parameter.grad = None


def scale_gradients(parameters: Sequence[nn.Parameter], factor: float) -> None:
    """Multiply the existing gradients by a factor, in place."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if factor == 1.0 or not gradients:
        return
    dense = [gradient for gradient in gradients if gradient.layout == torch.strided]
    if dense:
        torch._foreach_mul_(dense, factor)
    for gradient in gradients:
        if gradient.layout != torch.strided:
            gradient.mul_(factor)


class WeighedPasses:
    """Sums the gradients of several passes, each with a weight, for any losses and any parameters that they reach.

    Autograd adds the gradients of a pass to the existing ones. Before each pass these are therefore divided by its
    weight, and at the end all are multiplied by the last weight.

    Args:
        parameters: The parameters whose gradients are weighted.

    Example:
        >>> weight = nn.Parameter(torch.ones(()))
        >>> passes = WeighedPasses([weight])
        >>> for share, slope in ((0.75, 1.0), (0.25, 5.0)):
        ...     passes.begin(share)
        ...     (slope * weight).backward()
        >>> passes.end()
        >>> float(weight.grad)
        2.0
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._weight = 1.0

    def begin(self, weight: float) -> None:
        """Start a pass.

        Args:
            weight: The weight of its gradients, more than 0.
        """
        scale_gradients(self._parameters, self._weight / weight)
        self._weight = weight

    def end(self) -> None:
        """Compute the weighted sum, added to the gradients that existed before the first pass."""
        scale_gradients(self._parameters, self._weight)
        self._weight = 1.0


class ScaledBackward:
    """Multiplies every loss by the loss scale of fp16 where it is backpropagated, however it is computed.

    Within `active`, ``loss.backward()`` backpropagates the scaled loss. What ``torch.autograd.grad`` returns, for a
    term of the loss such as a gradient penalty, is not scaled. A gradient that autograd accumulates without the scale,
    or that is assigned, would still be divided by the scale, and is refused; so is a step with gradients that are still
    multiplied by it.

    Args:
        scaler: Holds the scale. If it is not enabled, nothing is done.
    """

    def __init__(self, scaler: GradScaler) -> None:
        self.scaler = scaler
        self._is_active = False
        self._is_scaled = False
        self._is_unscaled = False
        self._parameters: Sequence[nn.Parameter] = ()
        self._reached: set[int] = set()
        self._handles: list[RemovableHandle] = []

    def watch(self, parameters: Sequence[nn.Parameter], optimizer: optim.Optimizer) -> None:
        """Refuse gradients of these parameters without the scale, and steps with it, until `close`."""
        if self.scaler.is_enabled():
            self._parameters = parameters
            self._handles = [
                parameter.register_post_accumulate_grad_hook(self._check)  # type: ignore[no-untyped-call]
                for parameter in parameters
            ]
            self._handles.append(optimizer.register_step_pre_hook(self._check_step))

    @contextmanager
    def unscaled(self, optimizer: optim.Optimizer) -> Iterator[None]:
        """Divide the gradients by the scale, for a step of the optimizer within a block."""
        self.scaler.unscale_(optimizer)
        self._is_unscaled = True
        try:
            yield
        finally:
            self._is_unscaled = False

    def close(self) -> None:
        """Stop checking gradients."""
        self._parameters = ()
        while self._handles:
            self._handles.pop().remove()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Scale the losses that are backpropagated in a block.

        Raises:
            SettingsError: If a gradient is set in any other way.
        """
        if not self.scaler.is_enabled():
            yield
            return
        before = [parameter.grad for parameter in self._parameters]
        self._is_active = True
        self._reached.clear()
        try:
            with _InsteadOfBackward(self._backward):
                yield
        finally:
            self._is_active = False
        for parameter, gradient in zip(self._parameters, before, strict=True):
            is_new = parameter.grad is not None and parameter.grad is not gradient
            if is_new and id(parameter) not in self._reached:
                raise SettingsError(_UNSCALED)

    def _backward(self, loss: Tensor, gradient: Tensor | None = None, *rest: Any, **keywords: Any) -> None:
        self._is_scaled = True
        try:
            if gradient is None:
                self.scaler.scale(loss).backward(None, *rest, **keywords)  # type: ignore[no-untyped-call]
            else:
                loss.backward(self.scaler.scale(gradient.to(loss.dtype)), *rest, **keywords)  # type: ignore[no-untyped-call]
        finally:
            self._is_scaled = False

    def _check(self, parameter: Tensor) -> None:
        if self._is_active and not self._is_scaled:
            raise SettingsError(_UNSCALED)
        self._reached.add(id(parameter))

    def _check_step(self, *_: object) -> None:
        if not self._is_unscaled:
            raise SettingsError(
                'amp="fp16" multiplies the gradients by the loss scale, and toolbox.optimizer.step() was called with '
                "them: let super().step(toolbox, num_batches=num_batches) step, which divides them by it, or train "
                'with amp="bf16", which needs no loss scaling'
            )


_UNSCALED = (
    'amp="fp16" scales the loss in loss.backward(): call that instead of torch.autograd.backward and do not assign '
    'gradients yourself, or train with amp="bf16", which needs no loss scaling'
)


class _InsteadOfBackward(TorchFunctionMode):
    """Calls another function in place of ``Tensor.backward``."""

    def __init__(self, backward: Callable[..., None]) -> None:
        super().__init__()
        self._backward = backward

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (self._backward if func is Tensor.backward else func)(*args, **(kwargs or {}))
