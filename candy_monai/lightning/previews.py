"""Draw the worst, the median and the best validated case while Lightning trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from typing_extensions import override

from candy_monai.aliases import PathLike
from candy_monai.errors import SettingsError
from candy_monai.experiment.saving import Writer
from candy_monai.lightning.experiment_folder import ExperimentFolder
from candy_monai.lightning.host import (
    Callback,
    LightningModule,
    Trainer,
    is_fitting,
    isolate_rng,
    planned_epochs,
    rank_zero_warn,
)
from candy_monai.metrics.overlap import dice_per_class, labels_from_logits
from candy_monai.observers.pictures import MAX_SHARE
from candy_monai.plotting.case.choice import CaseChoice, HeldCase, Role

_OUTPUTS = ("logits", "pred", "prediction", "output", "y_pred")


class _Case(NamedTuple):
    """A validated case, on the CPU."""

    image: Tensor
    label: Tensor
    ids: Tensor

    @classmethod
    def of(cls, *parts: Tensor) -> Self:
        """Copy a case from a batch."""
        return cls(*(part.detach().as_subclass(Tensor).to("cpu", copy=True) for part in parts))


class SegmentationPreviews(Callback):
    """Draw the worst, the median and the best of the first validated cases, by their mean Dice; of two cases both.

    Five pictures of each are written to ``previews/worst``, ``previews/median`` and ``previews/best`` in the folder of
    an `ExperimentFolder`, if the Trainer has one, or else in that of the Trainer's logger. They are drawn in a thread,
    for the first and the last validated epoch, and in between so rarely that drawing takes a fiftieth of the time.

    The pictures show the output of ``validation_step``: logits ``(B, C, *spatial)``, or a mapping with them. If it
    returns none, the module is called on the images of these cases once more, and the random generators are restored
    afterwards.

    Args:
        image: The key or position of images ``(B, C, *spatial)`` in a batch.
        label: The key or position of label ids ``(B, 1, *spatial)`` in a batch; the axis of length 1 may be missing.
        output: The key of the logits in the output of ``validation_step``; None to look for a tensor, or for one of the
            keys ``logits``, ``pred``, ``prediction``, ``output`` and ``y_pred``.
        num_cases: Number of cases of a validation to choose from; at most eight of them are held in CPU memory.
        folder: The folder for ``previews``; None for that of the experiment or the logger.
        interval_s: Minimum number of seconds between two drawings.
        class_names: The names of the ids in the legend.
        clock: Returns the time in seconds.

    Raises:
        SettingsError: If the image or the label is not found in a batch, or no logits match it; before training, if the
            Trainer makes its sanity check.
    """

    def __init__(
        self,
        *,
        image: str | int = "image",
        label: str | int = "label",
        output: str | None = None,
        num_cases: int = 8,
        folder: PathLike | None = None,
        interval_s: float = 30.0,
        class_names: Mapping[int, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if num_cases < 1:
            raise SettingsError(f"num_cases must be at least 1, got {num_cases!r}")
        self._image, self._label, self._output = image, label, output
        self._num_cases = num_cases
        self._given_folder = folder
        self._interval_s = interval_s
        self._class_names = class_names
        self._clock = clock
        self._not_before = clock()
        self._is_due = False
        self._choice = CaseChoice[_Case]()
        self._num_offered = 0
        self._writer = Writer()
        self._has_failed = False

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._choice, self._num_offered = CaseChoice(), 0
        planned = planned_epochs(trainer)
        is_last = planned is not None and trainer.current_epoch + 1 >= planned
        is_time = self._clock() >= self._not_before and not self._writer.is_busy
        self._is_due = is_fitting(trainer) and trainer.is_global_zero and (is_time or is_last)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # What would fail after the first epoch fails in Lightning's sanity check, before training.
        is_tried = trainer.sanity_checking and trainer.is_global_zero and batch_idx == 0
        if not is_tried and (not self._is_due or self._num_offered >= self._num_cases):
            return
        image, label = (_member(batch, key, what) for key, what in ((self._image, "image"), (self._label, "label")))
        if label.ndim == image.ndim - 1:
            label = label[:, None]
        logits = self._logits(outputs)
        if logits is None:
            with isolate_rng(), torch.no_grad(), _precision(trainer):
                logits = self._logits(pl_module(image[: self._num_cases - self._num_offered]))
        if logits is None:
            raise SettingsError(
                "SegmentationPreviews: neither validation_step nor the module returns logits (B, C, *spatial): "
                "return them, or name their key by output="
            )
        ids = labels_from_logits(logits, num_classes=logits.shape[1])
        count = min(len(ids), self._num_cases - self._num_offered)
        if ids[:count].shape != label[:count].shape:
            raise SettingsError(
                f"SegmentationPreviews: labels of shape {tuple(label.shape)} do not match logits of shape "
                f"{tuple(logits.shape)}, expected ids (B, 1, *spatial)"
            )
        if is_tried:
            return
        self._num_offered += count
        dice = dice_per_class(ids[:count], label[:count], max(2, logits.shape[1]), batched=True, check_ids=False)
        scores = dice.nanmean(1).nan_to_num(1.0).tolist()  # a case without any class has no errors
        for score, *parts in zip(scores, image[:count], label[:count], ids[:count], strict=True):
            self._choice.offer(score, partial(_Case.of, *parts))

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_due or not self._num_offered:
            return
        chosen, folder = self._choice.chosen(), self._folder(trainer) / "previews"
        self._choice = CaseChoice()
        epoch = trainer.current_epoch + 1
        self._is_due = False

        def draw() -> None:
            started = self._clock()
            try:
                _draw(chosen, folder, epoch, self._class_names)
            except Exception as error:  # a failure to draw must not end a training
                if not self._has_failed:
                    rank_zero_warn(f"SegmentationPreviews failed: {type(error).__name__}: {error}")
                self._has_failed = True
            self._not_before = started + max(self._interval_s, (self._clock() - started) / MAX_SHARE)

        self._writer.start(draw)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._writer.join()

    def _logits(self, outputs: Any) -> Tensor | None:
        if isinstance(outputs, Sequence) and outputs and isinstance(outputs[0], Tensor):
            outputs = outputs[0]  # the first output of a network with deep supervision
        if isinstance(outputs, Mapping):
            keys = _OUTPUTS if self._output is None else (self._output,)
            outputs = next((outputs[key] for key in keys if key in outputs), None)
        return outputs if isinstance(outputs, Tensor) and outputs.ndim >= 4 else None

    def _folder(self, trainer: Trainer) -> Path:
        if self._given_folder is not None:
            return Path(self._given_folder)
        own = next((callback.folder for callback in trainer.callbacks if isinstance(callback, ExperimentFolder)), None)
        return own if own is not None else Path(trainer.log_dir or trainer.default_root_dir)


def _member(batch: Any, key: str | int, what: str) -> Tensor:
    if isinstance(batch, Sequence) and not isinstance(batch, str) and isinstance(key, str):
        key = 0 if what == "image" else 1  # a batch without keys
    try:
        found = batch[key]
    except (KeyError, IndexError, TypeError):
        found = None
    if not isinstance(found, Tensor):
        known = f"keys {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise SettingsError(
            f"SegmentationPreviews: a validation batch has no {what} at {key!r} ({known}): give its key with {what}="
        )
    return found


def _precision(trainer: Trainer) -> AbstractContextManager[None]:
    context: AbstractContextManager[None] = trainer.precision_plugin.val_step_context()
    return context


def _draw(
    cases: Mapping[Role, HeldCase[_Case]], folder: Path, epoch: int, class_names: Mapping[int, str] | None
) -> None:
    from candy_monai.plotting.case.previews import save_preview_files

    for role, held in cases.items():
        own = folder / role
        own.mkdir(parents=True, exist_ok=True)
        title = f"epoch {epoch}, {role} case, {held.score:.3f}"
        save_preview_files(own, *held.case, class_names=class_names, title=title)
