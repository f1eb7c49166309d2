"""Whether losses take logits or probabilities: one of MONAI's takes probabilities if it was given no activation.

PyTorch's ``NLLLoss`` takes logarithms of probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from monai.losses import FocalLoss
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from candy_monai.errors import BadInputError
from candy_monai.nn.deep_supervision import main_output
from candy_monai.nn.losses import DiceBCELossWithLogits, DiceCELossWithLogits

_NUM_CALLS = 10
"""Calls that are checked: a network whose last layer starts at zero returns no negative logit in the first one."""
_TOLERANCE = 1e-3
# Losses are known by their own class: a subclass elsewhere may apply the activation itself.
_MONAI = "monai.losses."
_ACTIVATIONS = ("sigmoid", "sigmoid_", "softmax", "expit", "special_expit")
_OPTIONS = ("sigmoid", "softmax", "other_act")
_OURS = (DiceBCELossWithLogits, DiceCELossWithLogits)
_OF_LOGITS = (*_OURS, FocalLoss, nn.BCEWithLogitsLoss, nn.CrossEntropyLoss)


def refuse_logits(criterion: nn.Module) -> Callable[[], None]:
    """Check the first inputs of all losses of MONAI and ``NLLLoss`` in a criterion; return a function that ends this.

    A check waits for a GPU. What a wrapper passes on is checked, not what it gets, so it may apply the activation.
    NaN is accepted. A compiled loss is not checked, since this would break its graph.

    Raises:
        BadInputError: In the call of such a loss, if it has no activation and its input exceeds 0 to 1, or that of
            ``NLLLoss`` exceeds 0.
    """
    return _watched(criterion, None)


def tell_of_logits(module: nn.Module, tell: Callable[[str], None]) -> Callable[[], None]:
    """Check the same losses in a module as `refuse_logits`, which may be used otherwise, and do not raise.

    Args:
        module: The loss, or a module that holds it.
        tell: Called with the message, at most once for each loss.
    """
    return _watched(module, tell)


def _watched(module: nn.Module, tell: Callable[[str], None] | None) -> Callable[[], None]:
    handles = [
        loss.register_forward_pre_hook(_FirstInputs(tell), with_kwargs=True)
        for loss in _within(module)
        if _has_options(loss) or type(loss) is nn.NLLLoss
    ]

    def close() -> None:
        for handle in handles:
            handle.remove()

    return close


def takes_logits(criterion: nn.Module) -> bool:
    """Return whether a criterion or one in it is a known loss that applies a sigmoid or softmax to its input."""
    return any(type(loss) in _OF_LOGITS or (_has_options(loss) and any(_given(loss))) for loss in _within(criterion))


def ends_in_activation(network: nn.Module, images: Tensor) -> bool:
    """Return whether the logits of a network are the result of a sigmoid or softmax, wherever it applies that.

    Args:
        network: Run once, without gradients; it returns the logits, or several outputs with these first.
        images: ``(B, C, *spatial)``.
    """
    # A compiled network runs uncompiled, since it would be compiled again to be watched.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), _Activations() as activations:
        logits = main_output(network(images), num_dims=images.ndim - 2)
    result = activations.last
    if result is None or result.numel() != logits.numel():
        return False
    # In any order of the axes: a 2-D network for volumes is run with slices as the batch.
    return torch.equal(*(each.as_subclass(Tensor).float().flatten().sort().values for each in (result, logits)))


class _Activations(TorchFunctionMode):
    """Keeps the result of the last sigmoid or softmax that is called, as a module, function or method."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _ACTIVATIONS:
            self.last = result
        return result


def _has_options(loss: nn.Module) -> bool:
    return type(loss).__module__.startswith(_MONAI) and all(hasattr(loss, name) for name in _OPTIONS)


def _given(loss: nn.Module) -> list[Any]:
    """Return the values of sigmoid, softmax and other_act; MaskedDiceLoss stores them under names of its own."""
    return [getattr(loss, f"pre_{name}", None) or getattr(loss, name) for name in _OPTIONS]


def _within(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and those in it, but none within our own losses, which apply the activation."""
    yield module
    if isinstance(module, _OURS):
        return
    for child in module.children():
        yield from _within(child)


class _FirstInputs:
    """A hook that checks the first inputs of one loss; not a closure, so that a criterion can still be pickled.

    Copies, such as those of a host that saves or sends the loss, check nothing if they would only tell.
    """

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self._left, self._tell = _NUM_CALLS, tell

    def __getstate__(self) -> dict[str, Any]:
        return {"_left": self._left if self._tell is None else 0, "_tell": None}

    def __call__(self, loss: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        given = arguments[0] if arguments else keywords.get("input")
        if torch.compiler.is_compiling() or not self._left:  # first, so that a compiled loss does not depend on _left
            return
        if not isinstance(given, Tensor) or not given.numel() or not _is_readable(given):
            return
        self._left -= 1
        if (fault := _fault_of(loss, given)) is None:
            return
        if self._tell is None:
            raise BadInputError(fault)
        self._left = 0
        self._tell(fault)


def _fault_of(loss: Any, given: Tensor) -> str | None:
    """Return why the input of a loss is not what it takes; None if it may be."""
    name = type(loss).__name__
    if isinstance(loss, nn.NLLLoss):
        high = _range(given)[1]
        if not high > _TOLERANCE:
            return None
        return (
            f"the loss {name} takes logarithms of probabilities, but got values up to {high:.4g}, the logits of the "
            "network: use nn.CrossEntropyLoss"
        )
    is_single = given.ndim > 1 and given.shape[1] == 1
    sigmoid, softmax, other = _given(loss)
    if sigmoid or other is not None or (softmax and not is_single):
        return None
    low, high = _range(given)
    if not (low < -_TOLERANCE or high > 1 + _TOLERANCE):  # also of NaN, which is the matter of non_finite
        return None
    why = "ignores softmax=True for a single channel" if softmax else "was given no activation"
    what = "sigmoid=True" if is_single else "softmax=True, or sigmoid=True for channels that may overlap"
    return (
        f"the loss {name} {why}, and so takes probabilities, but got values from {low:.4g} to {high:.4g}, the logits "
        f"of the network: give it {what}"
    )


def _is_readable(tensor: Tensor) -> bool:
    """Return whether the values of a tensor can be read: not within torch.func or while a CUDA graph is recorded."""
    is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    return not is_wrapped and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def _range(tensor: Tensor) -> tuple[float, float]:
    low, high = torch.stack(torch.aminmax(tensor.detach().as_subclass(Tensor).float())).tolist()
    return low, high
