"""The cases of one validation, which networks ``validate_case`` scores, and the padding of their parts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle

from candy_monai.aliases import Shape
from candy_monai.attachment import attachment_of, map_tensors, tensors_in
from candy_monai.data.samples.batches import Batch, unpack
from candy_monai.experiment.events import Preview
from candy_monai.metrics.interval import half_width, mean_of_known
from candy_monai.network import plain_network
from candy_monai.nn.padding import restore_like
from candy_monai.training.loaders import batches
from candy_monai.training.toolbox import Equipment, TrainerToolbox


class ValidationCases:
    """Averages scores over cases, and keeps the tensors of the worst case only, so memory does not grow with the cases.

    The worst case is the most informative one: it shows the errors of the model.

    Attributes:
        with_nan: Ids of cases whose output contains NaN, or their numbers if they have no id.
    """

    def __init__(self) -> None:
        self._scores: list[float] = []
        self._worst: tuple[float, Tensor, Tensor, Tensor] | None = None
        self._worst_id = ""
        self.with_nan: list[str] = []

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, score: float, image: Tensor, label: Tensor, output: Tensor, *, case_id: str = "") -> None:
        """Add one case, with the output of ``validate_case``; its score is NaN and its id empty if it has none."""
        self._scores.append(score)
        if output.is_floating_point() and output.numel() and output.aminmax().min.isnan():
            self.with_nan.append(case_id or f"number {len(self._scores)}")
        if self._worst is None or score < self._worst[0] or math.isnan(self._worst[0]):
            self._worst, self._worst_id = (score, image, label, output.detach()), case_id

    @property
    def scores(self) -> list[float]:
        """The score of each case."""
        return list(self._scores)

    def preview(self, draw: Callable[[Tensor, Tensor, Tensor], None]) -> Preview | None:
        """Return the worst case on the CPU, drawn from image, label and output; None before the first case."""
        if self._worst is None:
            return None
        image, label, output = (tensor.cpu() for tensor in self._worst[1:])
        draw_case = partial(draw, image, label, output)
        return Preview(image=image, label=label, output=output, draw=draw_case, case_id=self._worst_id)

    def title(self, epoch: int) -> str:
        """Return a description of the case in the preview; empty before the first case."""
        if self._worst is None:
            return ""
        score = "" if math.isnan(self._worst[0]) else f"score {self._worst[0]:.4f}"
        rank = f"worst of {len(self)} cases" if len(self) > 1 else "the only case"
        return " · ".join(filter(None, (self._worst_id, score, rank, f"epoch {epoch}")))


def cases_of(
    loader: DataLoader[Any], equipment: Equipment, check_batch: Callable[[Batch], None]
) -> Iterator[tuple[Tensor, Tensor, str]]:
    """Yield image ``(C, *spatial)`` and label ``(1, *spatial)`` of each case, on the device, and its id.

    The id is empty if the loader yields none. ``check_batch`` checks each batch.
    """
    for batch in batches(loader):
        images, labels, case_ids = unpacked = unpack(batch)
        check_batch(unpacked)
        ids = case_ids if len(case_ids) == len(images) else ("",) * len(images)
        yield from zip(*equipment.on_device(images, labels), ids, strict=True)


def mean_score(parts: Sequence[Sequence[float]]) -> float:
    """Return the mean over all cases of all parts that have a score; NaN if none has."""
    return mean_of_known(chain.from_iterable(parts))


def certainty(parts: Sequence[Sequence[float]]) -> tuple[int, float]:
    """Return the number of cases in `mean_score`, and its standard error; NaN for fewer than two cases."""
    known = [score for part in parts for score in part if not math.isnan(score)]
    if len(known) < 2 or not all(map(math.isfinite, known)):
        return len(known), math.nan
    return len(known), statistics.stdev(known) / math.sqrt(len(known))


def mean_of_cases(num_cases: int, standard_error: float) -> str:
    """Return a description of the cases that a score is the mean of."""
    if num_cases == 1:
        return "of one case only"
    half = half_width(standard_error, num_cases)
    return f"the mean of {num_cases} cases{f' (95 % interval ± {half:.4f})' if math.isfinite(half) else ''}"


def what_is_scored(*, raw: bool, averaged: bool) -> str | None:
    """Return the log message for a validation that does not score only the average; None if it does."""
    if raw == averaged:
        what = "both toolbox.model and toolbox.ema" if raw else "neither toolbox.model nor toolbox.ema"
        return f"validate_case called {what}: checkpoint_best.pth holds the average (toolbox.ema)"
    return "validate_case scores toolbox.model: checkpoint_best.pth holds its weights, not the average" if raw else None


def untrained_average(toolbox: TrainerToolbox) -> str | None:
    """Return the log message for an average of which no update is known though the model was trained, or None."""
    ema = toolbox.ema
    if ema is None or int(ema.n_averaged):
        return None
    pairs = zip(plain_network(toolbox.model).parameters(), plain_network(ema).parameters(), strict=False)
    if all(torch.equal(weight.detach().to(average), average) for weight, average in pairs):
        return None
    return (
        "toolbox.ema.update_parameters was not called: unless you update the average in another way, the initial "
        "weights are scored and saved as the best. Call toolbox.ema.update_parameters(toolbox.model) after each step, "
        "in your own `step` or `train_epoch`, or train with ema=False"
    )


class ScoresThatAreLosses:
    """Detects scores that are the values of the criterion, of which a higher one is worse.

    Args:
        criterion: The trainer's loss; its results are kept until `are_scores` is called.
    """

    def __init__(self, criterion: nn.Module) -> None:
        self._losses: list[Tensor] = []
        self._hook = criterion.register_forward_hook(self._keep)

    def are_scores(self, scores: Sequence[float]) -> bool:
        """Return whether all scores are values of the criterion; stop keeping these."""
        self.close()
        losses, self._losses = self._losses, []
        known = set(torch.stack(losses).tolist()) if losses else set()
        return any(scores) and known.issuperset(scores)

    def close(self) -> None:
        """Stop keeping values."""
        self._hook.remove()

    def _keep(self, _module: nn.Module, _arguments: object, result: object) -> None:
        if torch.compiler.is_compiling():  # a compiled criterion would keep this hook, and fill the list, for ever
            return
        loss = result[0] if isinstance(result, tuple | list) and result else result
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._losses.append(loss.detach().as_subclass(Tensor).reshape(()).double())


class CalledNetworks:
    """Records whether model and average are called, as a whole or by their submodules."""

    def __init__(self, toolbox: TrainerToolbox) -> None:
        self._networks = toolbox.networks
        self._called = [False, False]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Record calls within a block."""
        with ExitStack() as stack:
            for index, network in enumerate(self._networks):
                stack.enter_context(self._watched(index, network))
            yield

    @property
    def flags(self) -> list[bool]:
        """Whether the model was called, and whether the average was."""
        return list(self._called)

    @contextmanager
    def _watched(self, index: int, network: nn.Module) -> Iterator[None]:
        handles: list[RemovableHandle] = []

        def notice(*_: object) -> None:
            self._called[index] = True
            _remove(handles)  # one call suffices, and later ones need no hook

        handles += [module.register_forward_pre_hook(notice) for module in _parts(network)]
        on_enter, _ = _listeners(network)
        on_enter.append(notice)
        try:
            yield
        finally:
            on_enter.remove(notice)
            _remove(handles)


class PaddedParts:
    """Pads a case for parts of a network that are called separately, in the same way as the whole network pads it.

    The input image of a submodule is padded; features are left as they are, and are cropped only when the criterion
    compares them with the label, or when ``validate_case`` returns them. The result is therefore bit-identical to that
    of the padded network.

    Args:
        toolbox: Model, average and criterion.
        padding: The trainer's padding module; None to do nothing.
    """

    def __init__(self, toolbox: TrainerToolbox, padding: nn.Module | None) -> None:
        self._toolbox = toolbox
        self._padding = padding
        self._depth = 0
        self._shape: Shape = ()
        self._padded_size: Shape = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> PaddedParts:
        return self  # if validate_case copies a network, model, average and optimizer must not be copied with it

    @contextmanager
    def of(self, image: Tensor) -> Iterator[None]:
        """Pad and crop within a block, for the part ``(C, *spatial)`` of a case that the network sees at once."""
        self._shape = self._padded_size = tuple(image.shape)
        if self._padding is not None:
            self._padded_size = tuple(self._padding(image[None]).shape[2:])
        if self._padded_size == self._shape[1:] or self._padding is None:
            self._padded_size = ()
            yield
            return
        with ExitStack() as stack:
            for network in self._toolbox.networks:
                stack.enter_context(self._parts_padded(network))
            hook = self._toolbox.criterion.register_forward_pre_hook(self._crop_for_loss, with_kwargs=True)
            stack.callback(hook.remove)
            yield

    def cropped(self, output: Tensor) -> Tensor:
        """Return an output of the padded size cropped to that of the case, and any other unchanged."""
        if self._padding is None or not self._padded_size or self._size(output) != self._padded_size:
            return output
        return restore_like(self._padding, output, self._shape[1:])

    @contextmanager
    def _parts_padded(self, network: nn.Module) -> Iterator[None]:
        handles: list[RemovableHandle] = []

        def hook() -> None:
            self._depth = 0
            for module in _parts(network):
                handles.append(module.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True))
                handles.append(module.register_forward_hook(self._after, always_call=True))

        def unhook() -> None:
            _remove(handles)

        on_enter, on_leave = _listeners(network)  # the whole network pads itself, and may be compiled without hooks
        on_enter.append(unhook)
        on_leave.append(hook)
        hook()
        try:
            yield
        finally:
            on_enter.remove(unhook)
            on_leave.remove(hook)
            unhook()

    def _before(self, _: nn.Module, arguments: Any, keywords: Any) -> tuple[Any, Any] | None:
        self._depth += 1
        if self._depth > 1:  # within a submodule that was called
            return None
        result: tuple[Any, Any] = map_tensors(self._padded, (arguments, keywords))
        return result

    def _after(self, *_: object) -> None:
        self._depth -= 1

    def _padded(self, tensor: Tensor) -> Tensor:
        channels, *size = self._shape
        is_image = self._size(tensor) == tuple(size) and tensor.shape[-len(self._shape)] <= channels
        return self._padding(tensor) if is_image and self._padding is not None else tensor

    def _crop_for_loss(self, _: nn.Module, arguments: Any, keywords: Any) -> tuple[Any, Any] | None:
        sizes = {self._size(tensor) for tensor in tensors_in((arguments, keywords))}
        if not {self._shape[1:], self._padded_size} <= sizes:
            return None
        result: tuple[Any, Any] = map_tensors(self.cropped, (arguments, keywords))
        return result

    def _size(self, tensor: Tensor) -> Shape:
        """Return the spatial size of ``(B, C, *spatial)`` and ``(C, *spatial)``; an empty one for any other tensor."""
        num_axes = len(self._shape)
        return tuple(tensor.shape[1 - num_axes :]) if tensor.ndim in (num_axes, num_axes + 1) else ()


def _remove(handles: list[RemovableHandle]) -> None:
    while handles:
        handles.pop().remove()


def _surrounded(network: nn.Module) -> nn.Module:
    """Return the module with the hooks: the model itself, or the one in an average."""
    return network.module if isinstance(network, AveragedModel) else network


def _listeners(network: nn.Module) -> tuple[list[Callable[[], None]], list[Callable[[], None]]]:
    attachment = attachment_of(_surrounded(network))
    return ([], []) if attachment is None else (attachment.on_enter, attachment.on_leave)


def _parts(network: nn.Module) -> list[nn.Module]:
    """Return the modules that a user can call instead of the network, and that support hooks."""
    modules, root = plain_network(network).modules(), _surrounded(network)
    return [module for module in modules if module is not root and not isinstance(module, torch.jit.ScriptModule)]
