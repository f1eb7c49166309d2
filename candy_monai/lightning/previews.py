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
from candy_monai.errors import SettingsError, reason_in_short
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
        SettingsError: Before training, in Lightning's sanity check, if the image or the label is not found in a batch,
            or no logits match it. Without this check there is a warning after the first epoch, and no previews.
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
        self._has_failed = self._is_off = False

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._choice, self._num_offered = CaseChoice(), 0
        planned = planned_epochs(trainer)
        is_last = planned is not None and trainer.current_epoch + 1 >= planned
        is_time = self._clock() >= self._not_before and not self._writer.is_busy
        self._is_due = is_fitting(trainer) and trainer.is_global_zero and (is_time or is_last) and not self._is_off

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
        if trainer.sanity_checking:  # what would fail after the first epoch is an error before training
            if trainer.is_global_zero and batch_idx == 0:
                self._cases(trainer, pl_module, outputs, batch)
            return
        if not self._is_due or self._num_offered >= self._num_cases:
            return
        try:
            image, label, ids, num_classes = self._cases(trainer, pl_module, outputs, batch)
            self._num_offered += len(ids)
            dice = dice_per_class(ids, label, max(2, num_classes), batched=True, check_ids=False)
            scores = dice.nanmean(1).nan_to_num(1.0).tolist()  # a case without any class has no errors
            for score, *parts in zip(scores, image, label, ids, strict=True):
                self._choice.offer(score, partial(_Case.of, *parts))
        except Exception as error:  # a failure to draw must not end a training
            self._is_off, self._is_due = True, False
            said = str(error) if isinstance(error, SettingsError) else f"SegmentationPreviews: {reason_in_short(error)}"
            rank_zero_warn(f"{said}. No previews are drawn, and the training continues.")

    def _cases(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """Return the images, labels and predicted ids of a batch's cases, and the number of classes."""
        image, label = (_member(batch, key, what) for key, what in ((self._image, "image"), (self._label, "label")))
        if label.ndim == image.ndim - 1:
            label = label[:, None]
        logits = self._logits(outputs)
        if logits is None:
            logits = self._logits(self._output_of(trainer, pl_module, image[: self._num_cases - self._num_offered]))
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
        return image[:count], label[:count], ids[:count], logits.shape[1]

    def _output_of(self, trainer: Trainer, pl_module: LightningModule, images: Tensor) -> Any:
        try:
            with isolate_rng(), torch.no_grad(), _precision(trainer):
                return pl_module(images)
        except Exception as error:
            raise SettingsError(
                "SegmentationPreviews: validation_step returns no logits, and the module cannot be called on whole "
                f"images of shape {tuple(images.shape)} ({reason_in_short(error)}): return the logits from "
                "validation_step, for example those of a sliding window"
            ) from error

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
