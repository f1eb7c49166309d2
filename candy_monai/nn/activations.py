"""Whether losses take logits or probabilities: one of MONAI's takes probabilities if it was given no activation.

PyTorch's ``NLLLoss`` takes logarithms of probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from monai.losses import FocalLoss
from torch import Tensor, nn

from candy_monai.errors import BadInputError
from candy_monai.nn.losses import DiceBCELossWithLogits, DiceCELossWithLogits

_NUM_CALLS = 10
"""Calls that are checked: a network whose last layer starts at zero returns no negative logit in the first one."""
_TOLERANCE = 1e-3
_MONAI = "monai.losses."  # not a subclass elsewhere, which may apply the activation itself
_OPTIONS = ("sigmoid", "softmax", "other_act")
_OURS = (DiceBCELossWithLogits, DiceCELossWithLogits)
_OF_LOGITS = (*_OURS, FocalLoss, nn.BCEWithLogitsLoss, nn.CrossEntropyLoss)


def refuse_logits(criterion: nn.Module) -> Callable[[], None]:
    """Check the first inputs of all losses of MONAI and ``NLLLoss`` in a criterion; return a function that ends this.

    A check waits for a GPU. What a wrapper passes on is checked, not what it gets, so it may apply the activation.

    Raises:
        BadInputError: In the call of such a loss, if it has no activation and its input exceeds 0 to 1, or that of
            ``NLLLoss`` exceeds 0.
    """
    handles = [
        loss.register_forward_pre_hook(_FirstInputs(), with_kwargs=True)
        for loss in _within(criterion)
        if _has_options(loss) or isinstance(loss, nn.NLLLoss)
    ]

    def close() -> None:
        for handle in handles:
            handle.remove()

    return close


def takes_logits(criterion: nn.Module) -> bool:
    """Return whether a criterion or one in it is a known loss that applies a sigmoid or softmax to its input."""
    return any(type(loss) in _OF_LOGITS or (_has_options(loss) and any(_given(loss))) for loss in _within(criterion))


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
    """A hook that checks the first inputs of one loss; not a closure, so that a criterion can still be pickled."""

    def __init__(self) -> None:
        self._left = _NUM_CALLS

    def __call__(self, loss: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        given = arguments[0] if arguments else keywords.get("input")
        if not self._left or not isinstance(given, Tensor) or not given.numel():
            return
        self._left -= 1
        if isinstance(loss, nn.NLLLoss):
            if (high := _range(given)[1]) > _TOLERANCE:
                raise BadInputError(
                    f"the loss {type(loss).__name__} takes logarithms of probabilities, but got values up to "
                    f"{high:.4g}, the logits of the network: use nn.CrossEntropyLoss"
                )
            return
        is_single = given.ndim > 1 and given.shape[1] == 1
        sigmoid, softmax, other = _given(loss)
        if sigmoid or other is not None or (softmax and not is_single):
            return
        low, high = _range(given)
        if low >= -_TOLERANCE and high <= 1 + _TOLERANCE:
            return
        why = "ignores softmax=True for a single channel" if softmax else "was given no activation"
        what = "sigmoid=True" if is_single else "softmax=True, or sigmoid=True for channels that may overlap"
        raise BadInputError(
            f"the loss {type(loss).__name__} {why}, and so takes probabilities, but got values from {low:.4g} to "
            f"{high:.4g}, the logits of the network: give it {what}"
        )


def _range(tensor: Tensor) -> tuple[float, float]:
    low, high = torch.stack(torch.aminmax(tensor.detach().as_subclass(Tensor).float())).tolist()
    return low, high
