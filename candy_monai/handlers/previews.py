"""Pictures of the worst, the median and the best validated case of MONAI's engines."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from ignite.engine import Events
from monai.engines import Evaluator
from torch import Tensor
from typing_extensions import override

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError
from candy_monai.experiment.events import Preview
from candy_monai.handlers.engine_run import TrainerHandler
from candy_monai.handlers.engines import check_is_evaluator, contexts_around, handling_last
from candy_monai.handlers.options import RunOptions
from candy_monai.metrics.overlap import mean_dice
from candy_monai.plotting.case.choice import CaseChoice, HeldCase, Role

MAX_SHARE = 0.005
"""Maximum fraction of the time for collecting the cases."""

_LOGGER = logging.getLogger("candy_monai.handlers")


class PreviewHandler(TrainerHandler):
    """Draw the worst, the median and the best case of a validation: image, label, prediction, and both over the image.

    The worst case's five pictures go into the experiment folder, as with trainers of this package, and those of the
    others into its subfolders ``median`` and ``best``. They are drawn in a thread, at most every half minute, and
    always after the last of ``max_epochs``; if a run is stopped earlier, they may be half a minute old. The score of a
    case is the mean Dice of its classes. With several processes the first one draws its own cases.

    Args:
        save_dir: The folder for the pictures; by default the experiment folder of an `ExperimentFolderHandler`.
        validator: The evaluator; by default the one whose metric is the score.
        output_transform: Returns images, labels and predictions from ``engine.state.output``, each ``(C, *spatial)`` in
            a list or stacked; by default the entries ``"image"``, ``"label"`` and ``"pred"``. Labels and predictions
            may be ids, one-hot codes, overlapping regions, probabilities or logits.
        score_function: Returns the score of one case, higher is better, given the prediction and the label as
            ``output_transform`` returns them.
        interval_s: Minimum number of seconds between two pictures of a case.
        quality: Maximum number of voxels of a surface, in millions.
        class_names: The names of the ids in the legend.

    Example:
        >>> handlers = [ValidationHandler(1, evaluator), PreviewHandler("pictures")]  # doctest: +SKIP
    """

    def __init__(
        self,
        save_dir: PathLike | None = None,
        validator: Evaluator | None = None,
        output_transform: Callable[[Any], Sequence[Any]] | None = None,
        score_function: Callable[[Any, Any], float] | None = None,
        interval_s: float = 30.0,
        quality: float = 0.75,
        class_names: Mapping[int, str] | None = None,
    ) -> None:
        if not quality > 0:
            raise BadInputError(f"quality is {quality}: expected millions of voxels, more than 0")
        if validator is not None:
            check_is_evaluator(validator)
        self._save_dir = None if save_dir is None else Path(save_dir)
        self._validator = validator
        self._output_transform = output_transform or _image_label_and_prediction
        self._score = score_function or dice_of_case
        self._interval_s = interval_s
        self._quality = quality
        self._class_names = class_names
        self._options = RunOptions()
        self._not_before = -math.inf
        self._choice = CaseChoice[_Case]()
        self._chosen: dict[Role, HeldCase[_Case]] = {}
        self._took_s = 0.0
        self._has_failed = False

    @override
    def contribute(self, options: RunOptions) -> None:
        options.records = True
        options.preview = self._preview
        self._options = options

    @override
    @contextmanager
    def during(self, engine: Any, validators: list[Evaluator]) -> Iterator[None]:
        if self._save_dir is None and self._options.save_dir is None:
            raise BadInputError("PreviewHandler has no folder: give it a save_dir, or add an ExperimentFolderHandler")
        validator = self._validator or self._options.score.validator
        if validator is None:
            if len(validators) != 1:
                raise BadInputError(
                    f"PreviewHandler found {len(validators) or 'no'} evaluators: give the one whose cases to draw, "
                    "PreviewHandler(validator=...)"
                )
            (validator,) = validators

        @contextmanager
        def collecting() -> Iterator[None]:
            is_last = engine.state.epoch >= engine.state.max_epochs
            if engine.state.rank != 0 or not (is_last or time.monotonic() >= self._not_before):
                yield
                return
            self._choice, self._took_s = CaseChoice(), 0.0
            with handling_last(validator, {Events.ITERATION_COMPLETED: self._collect}):
                yield
            self._chosen = self._choice.chosen()
            pause_s = max(self._interval_s, self._took_s / MAX_SHARE)
            self._not_before = time.monotonic() + pause_s

        contexts = contexts_around(validator)
        contexts.append(collecting)
        try:
            yield
        finally:
            contexts.remove(collecting)

    def _collect(self, validator: Evaluator) -> None:
        if self._has_failed:
            return
        started = time.monotonic()
        try:
            with torch.no_grad():
                for image, label, prediction in zip(*self._output_transform(validator.state.output), strict=True):
                    if label is None:
                        raise BadInputError("there is no label in it")
                    self._choice.offer(
                        float(self._score(prediction, label)), partial(_Case.of, image, label, prediction)
                    )
        except Exception as error:  # a failure to draw must not end a run
            self._has_failed = True
            _LOGGER.warning(
                "PreviewHandler cannot take cases from the evaluator's output and draws no further previews: %s: %s",
                type(error).__name__,
                error,
            )
        self._took_s += time.monotonic() - started

    def _preview(self, folder: Path) -> Preview | None:
        """Return the cases of the last collected validation; None if there are no new ones."""
        chosen, self._chosen = self._chosen, {}
        if not chosen:
            return None
        case, target = chosen["worst"].case, self._save_dir or folder

        def draw() -> None:
            for which, one in chosen.items():
                self._draw(target if which == "worst" else target / which, which, one)

        return Preview(image=case.image, label=case.label, output=case.prediction, draw=draw)

    def _draw(self, folder: Path, which: Role, held: HeldCase[_Case]) -> None:
        from candy_monai.plotting.case.previews import save_preview_files

        case = held.case
        folder.mkdir(parents=True, exist_ok=True)
        save_preview_files(
            folder,
            case.image,
            case.label,
            case.prediction,
            quality=self._quality,
            class_names=self._class_names,
            title=f"{which} case{f' {case.name}' * bool(case.name)}, {held.score:.3f}",
        )


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A validated case, on the CPU."""

    image: Tensor  # ``(C, *spatial)``
    label: Tensor  # ``(1, *spatial)``, ids
    prediction: Tensor  # ``(1, *spatial)``, ids
    name: str  # of its file; empty if unknown

    @classmethod
    def of(cls, image: Tensor, label: Tensor, prediction: Tensor) -> Self:
        """Copy a case from an evaluator's output; label and prediction may be of any kind that `ids_of` accepts."""
        name = getattr(image, "meta", {}).get("filename_or_obj", "")
        return cls(
            image=image.detach().cpu(),
            label=ids_of(label).cpu(),
            prediction=ids_of(prediction).cpu(),
            name=Path(name).name.removesuffix(".gz").removesuffix(".nii") if isinstance(name, str) else "",
        )


def dice_of_case(prediction: Tensor, label: Tensor) -> float:
    """Return the mean Dice of the classes of one case, of any kind that `ids_of` accepts; NaN without any."""
    found, expected = ids_of(prediction), ids_of(label)
    num_classes = 1 + max(1, int(found.max()), int(expected.max()))
    return float(mean_dice(found[None], expected[None], num_classes=num_classes))


def ids_of(values: Tensor) -> Tensor:
    """Return label ids ``(1, *spatial)``, int16, from the output ``(C, *spatial)`` of an engine.

    A single channel holds ids, or probabilities or logits of one class. Several are one-hot codes, probabilities or
    logits; for overlapping regions, later channels overwrite earlier ones.
    """
    values = torch.as_tensor(values.as_tensor() if hasattr(values, "as_tensor") else values).detach()
    if values.shape[0] == 1:
        if values.dtype.is_floating_point and not bool((values == values.round()).all()):
            is_probability = bool((values >= 0).all() & (values <= 1).all())
            values = values > (0.5 if is_probability else 0)
        return values.to(torch.int16)
    is_code = not values.dtype.is_floating_point or bool(((values == 0) | (values == 1)).all())
    if is_code and not bool((values.sum(0) == 1).all()):
        numbers = torch.arange(1, values.shape[0] + 1, device=values.device).view(-1, *[1] * (values.ndim - 1))
        return ((values > 0) * numbers).amax(0, keepdim=True).to(torch.int16)
    return (values.to(torch.int16) if values.dtype == torch.bool else values).argmax(0, keepdim=True).to(torch.int16)


def _image_label_and_prediction(output: Any) -> tuple[Any, Any, Any]:
    """Return images, labels and predictions from an evaluator's output, decollated or not."""
    if isinstance(output, Mapping):
        images, predictions = output["image"], output["pred"]
        labels = output.get("label")
        return images, [None] * len(images) if labels is None else labels, predictions
    images, labels, predictions = ([case.get(name) for case in output] for name in ("image", "label", "pred"))
    return images, labels, predictions
