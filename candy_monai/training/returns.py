"""Check the values returned by a trainer's methods; each check raises a `BadInputError` that names the method.

Exceptions raised by the methods themselves are passed on with a note about the cases that they were given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, distributed, nn, optim

from candy_monai.aliases import Metrics, Scalar
from candy_monai.attachment import attachment_of
from candy_monai.errors import WARNING, BadInputError
from candy_monai.experiment.history import as_float, why_no_number

if TYPE_CHECKING:
    from candy_monai.training.toolbox import TrainerToolbox

T = TypeVar("T")

_MOST_WITHOUT_GRADIENTS = 50
_WANTED: Mapping[type, str] = {
    nn.Module: "a torch.nn.Module",
    optim.Optimizer: "a torch.optim.Optimizer",
    optim.swa_utils.AveragedModel: "a torch.optim.swa_utils.AveragedModel, such as our ExponentialMovingAverage",
}


def returned(trainer: object, method: str, value: object, kind: type[T]) -> T:
    """Return a method's value if it is of the required kind: a module, an optimizer or a moving average."""
    if isinstance(value, kind):
        return value
    wanted, hint = _WANTED[kind], _forgotten(value)
    if isinstance(value, FunctionType):
        wanted += ", whose forward can call it"
    if kind is optim.swa_utils.AveragedModel:
        hint = "train(ema=False) trains without an average"
    raise _refused(trainer, method, _shown(value), wanted, hint)


def optimizer_returned(trainer: object, value: object) -> optim.Optimizer:
    """Return the value of ``build_optimizer`` if the trainer's ``step`` can use it: if it needs no closure."""
    optimizer = returned(trainer, "build_optimizer", value, optim.Optimizer)
    if needs_closure(optimizer) and not steps_itself(trainer):
        hint = "its step needs a closure that recomputes the loss; override `step` to pass one"
        wanted = "an optimizer whose step needs only the gradients, such as torch.optim.AdamW"
        raise _refused(trainer, "build_optimizer", f"a {type(optimizer).__name__}", wanted, hint)
    return optimizer


def steps_itself(trainer: object) -> bool:
    """Return whether a trainer has a ``step`` of its own."""
    return not type(trainer).step.__module__.startswith("candy_monai.")  # type: ignore[attr-defined]


def needs_closure(optimizer: optim.Optimizer) -> bool:
    """Return whether an optimizer cannot step without a closure, as ``torch.optim.LBFGS`` cannot."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def scheduler_returned(trainer: object, value: Any, optimizer: optim.Optimizer) -> optim.lr_scheduler.LRScheduler:
    """Return the value of ``build_scheduler`` if it can be stepped, saved and loaded, and schedules the optimizer."""
    wanted = "a schedule such as torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)"
    can_be_stepped = all(callable(getattr(value, name, None)) for name in ("step", "state_dict", "load_state_dict"))
    if can_be_stepped and not isinstance(value, type):
        groups = getattr(getattr(value, "optimizer", optimizer), "param_groups", ())
        # An optimizer may wrap another one and share its parameter groups.
        if not groups or any(group is own for group in groups for own in optimizer.param_groups):
            return value  # type: ignore[no-any-return]
        hint = "the learning rate would never change: pass the optimizer that build_scheduler receives"
        raise _refused(trainer, "build_scheduler", f"a {type(value).__name__} of another optimizer", wanted, hint)
    raise _refused(trainer, "build_scheduler", _shown(value), wanted, _forgotten(value))


def loss_returned(trainer: object, method: str, value: object) -> tuple[Scalar, Metrics]:
    """Return the loss and the metrics of a method that computes gradients: a number, and named numbers."""
    wanted = "(loss, metrics): one number, and a dictionary of numbers by name"
    loss, metrics = _parts(trainer, method, value, wanted, 2, "end with `return loss.detach(), {}`")
    if (found := why_no_number(loss)) is not None:
        raise _refused(trainer, method, f"{found} as the loss", wanted, "reduce it to one number, loss.mean()")
    loss = loss if isinstance(loss, Tensor) else as_float(loss)
    return loss, _checked_metrics(trainer, method, metrics, wanted)


def score_returned(trainer: object, method: str, value: object, *, one_output: bool = True) -> tuple[Any, Metrics, Any]:
    """Return the score, the metrics and the output of a validation method: one tensor, if ``one_output``."""
    wanted = "(score, metrics, output): one number, a dictionary of numbers by name, and a tensor"
    score, metrics, output = _parts(trainer, method, value, wanted, 3, "end with `return score, {}, output`")
    score = _checked_score(trainer, method, score, wanted)
    metrics = _checked_metrics(trainer, method, metrics, wanted)
    if one_output and not isinstance(output, Tensor):
        hint = "of several outputs, return the one to show in previews"
        raise _refused(trainer, method, f"{_shown(output)} as the output", wanted, hint)
    return score, metrics, output


def case_score_returned(trainer: object, value: object) -> tuple[Any, Metrics]:
    """Return the score and the metrics of ``score_case``: a number, and named numbers."""
    wanted = "(score, metrics): one number, and a dictionary of numbers by name"
    score, metrics = _parts(trainer, "score_case", value, wanted, 2, "end with `return score, metrics`")
    score = _checked_score(trainer, "score_case", score, wanted)
    return score, _checked_metrics(trainer, "score_case", metrics, wanted)


@contextmanager
def failure_located(
    trainer: object,
    method: str,
    images: Tensor,
    labels: Tensor,
    case_ids: Sequence[str],
    padding: nn.Module | None = None,
) -> Iterator[None]:
    """Add a note with the cases and their shapes to an exception that a method raises in a block.

    Without ``padding``, a further note names the hook to override if sizes within the network do not match.
    """
    try:
        yield
    except Exception as error:
        cases = f" of {', '.join(case_ids)}" if any(case_ids) else ""
        shapes = f"images {tuple(images.shape)} and labels {tuple(labels.shape)}"
        error.add_note(f"Raised in {_name(trainer, method)}, which was given {shapes}{cases}")
        # PyTorch's own words; only the message of a different number of channels ends so.
        is_of_sizes = "must match" in str(error) and not str(error).endswith("non-singleton dimension 1")
        if padding is None and isinstance(error, RuntimeError) and is_of_sizes:
            error.add_note(
                "If the network only accepts multiples of a number as sizes, override build_padding_module, for "
                "example with `return Pad2d(16)`, or Pad3d(16) for volumes"
            )
        if "more than 1 value per channel" in str(error) and len(images) == 1:  # of PyTorch's batch normalisation
            error.add_note(
                "A batch of one sample is too small for batch normalisation: train with a larger batch_size, and leave "
                "out a last batch of one sample by drop_last=True"
            )
        raise


class GradientWatch:
    """Detects a ``backward`` that leaves no gradient, or whose gradients are applied twice. Does not wait for a GPU.

    It stops checking once it has seen gradients, or weights that the method changed itself; and, with ``accumulate``,
    once it has seen gradients that were added to others.

    Args:
        trainer: Has the method.
        toolbox: What the method gets.
        warn: Called with a warning about a ``backward`` that drops the gradients of earlier batches of a step.
    """

    def __init__(self, trainer: object, toolbox: TrainerToolbox, warn: Callable[[str], None]) -> None:
        self._trainer, self._warn = trainer, warn
        self._model, self._optimizer = toolbox.model, toolbox.optimizer
        self._weights: list[Tensor] = [weight for group in toolbox.optimizer.param_groups for weight in group["params"]]
        self._versions = self._versions_now()
        self._num_without = 0
        self._has_run = False
        self._has_stepped = False
        self._applied: tuple[Tensor, int] | None = None
        self._is_done = False
        self._has_added = False

    @contextmanager
    def watching(self, *, adds: bool = False) -> Iterator[None]:
        """Watch one batch, before its step.

        Args:
            adds: Whether its gradients are added to those of earlier batches of the same step.

        Raises:
            BadInputError: If many batches left no gradient, or the optimizer stepped and would step with the same
                gradients again.
        """
        if adds and not self._has_added:
            with self._adding():
                yield
            return
        if self._is_done:
            yield
            return
        # The network gets no hook that refers to the trainer, since users copy it in the first batch for a teacher:
        # copy.deepcopy(toolbox.model).
        attachment = attachment_of(self._model)
        if attachment is not None:
            attachment.on_enter.append(self._note_run)
        # PyTorch's fused steps change weights without increasing their version.
        steps = self._optimizer.register_step_post_hook(self._note_step)
        try:
            yield
        finally:
            steps.remove()
            if attachment is not None:
                attachment.on_enter.remove(self._note_run)
        if self._is_applied_again() and not steps_itself(self._trainer):
            name = _name(self._trainer, self._method())
            raise BadInputError(
                f"{name} calls toolbox.optimizer.step(), and the trainer steps after it with the same gradients, so "
                f"that each would be applied twice: leave out zero_grad() and step() in {name}, or override `step`"
            )
        has_gradients = self._first_gradient() is not None
        self._is_done = has_gradients or self._has_stepped or self._versions_now() != self._versions
        self._num_without += not self._is_done
        if self._num_without >= _MOST_WITHOUT_GRADIENTS:
            self.settle()

    @contextmanager
    def _adding(self) -> Iterator[None]:
        """Warn if the gradients of earlier batches are gone when those of this one arrive."""
        weight = next((weight for weight in self._weights if weight.grad is not None), None)
        if weight is None:
            yield
            return
        before, found = weight.grad, []
        handle = weight.register_post_accumulate_grad_hook(lambda weight: found.append(weight.grad))  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            handle.remove()
        self._has_added = bool(found)
        # Autograd adds in place, except to gradients with a graph and to those that several processes send in parts.
        if not found or found[0] is before or found[0].requires_grad or steps_itself(self._trainer):
            return
        if not (distributed.is_available() and distributed.is_initialized()):
            name = _name(self._trainer, self._method())
            self._warn(
                f"{WARNING}{name} clears the gradients of the batches before: with accumulate, only the last batch of "
                f"each step is learned from; leave out zero_grad() in {name}"
            )

    def _note_step(self, *_arguments: object) -> None:
        self._has_stepped, gradient = True, self._first_gradient()
        self._applied = None if gradient is None else (gradient, gradient._version)

    def _is_applied_again(self) -> bool:
        """Return whether the gradients are still those of a step: a second backward() leaves others for the next."""
        applied, self._applied = self._applied, None
        return applied is not None and applied[0] is self._first_gradient() and applied[0]._version == applied[1]

    def _first_gradient(self) -> Tensor | None:
        return next((weight.grad for weight in self._weights if weight.grad is not None), None)

    def settle(self) -> None:
        """Check an epoch at its end.

        Raises:
            BadInputError: If no batch of it left a gradient, although the network was run.
        """
        if self._is_done or not self._has_run:
            return
        raise BadInputError(
            f"{_name(self._trainer, self._method())} left no gradient in any parameter of the optimizer in "
            f"{self._num_without} batches, so nothing was learned: it must call loss.backward(), on a loss that was "
            "computed from toolbox.model's outputs without detach() or no_grad()"
        )

    def _method(self) -> str:
        return "backward_windowed" if hasattr(self._trainer, "backward_windowed") else "backward"

    def _note_run(self) -> None:
        self._has_run = True

    def _versions_now(self) -> int:
        return sum(weight._version for weight in self._weights)


def _parts(trainer: object, method: str, value: object, wanted: str, count: int, hint: str) -> Sequence[Any]:
    if not isinstance(value, tuple | list) or len(value) != count:
        raise _refused(trainer, method, _shown(value), wanted, hint)
    return value


def _checked_score(trainer: object, method: str, score: object, wanted: str) -> Scalar:
    if (found := why_no_number(score)) is not None:
        raise _refused(trainer, method, f"{found} as the score", wanted, "a higher score is a better one")
    return score if isinstance(score, Tensor) else as_float(score)


def _checked_metrics(trainer: object, method: str, metrics: object, wanted: str) -> Metrics:
    if not isinstance(metrics, Mapping):
        raise _refused(trainer, method, f"{_shown(metrics)} as the metrics", wanted, "without metrics return {}")
    for name, value in metrics.items():
        if (found := why_no_number(value)) is not None:
            raise _refused(
                trainer, method, f"{found} as the metric {name!r}", wanted, "return its mean, or leave it out"
            )
    return metrics


def _refused(trainer: object, method: str, found: str, wanted: str, hint: str) -> BadInputError:
    return BadInputError(f"{_name(trainer, method)} returned {found}, expected {wanted}{f': {hint}' if hint else ''}")


def _name(trainer: object, method: str) -> str:
    """Return a method's name with the class that defines it."""
    if method in vars(trainer):
        return f"{type(trainer).__name__}.{method}"
    owner = next((cls for cls in type(trainer).__mro__ if method in vars(cls)), type(trainer))
    return f"{owner.__name__}.{method}"


def _forgotten(value: object) -> str:
    return "is there a return statement?" if value is None else ""


def _shown(value: object) -> str:
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} ({', '.join(type(part).__name__ for part in value)})"
    return f"{value!r}" if isinstance(value, bool | int | float | str) else f"a {type(value).__name__}"
