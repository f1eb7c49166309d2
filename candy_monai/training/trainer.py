"""The training loop: when things happen in a run.

What is learned is said by `candy_monai.training.overridables`. How a run begins and ends is in
`candy_monai.training.lifecycle`. What survives a crash is kept by `candy_monai.experiment`, what is looked at is drawn
by `candy_monai.observers`, what happens around the network is done by `candy_monai.attachment`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from candy_monai.aliases import Metrics, PathLike, Scalar
from candy_monai.allocation import freed_memory_kept
from candy_monai.columns import LOSS
from candy_monai.config import load_settings
from candy_monai.data.samples.batches import unpack
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.experiment.events import StepFinished
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.settings import TrainSettings
from candy_monai.nn.padding import pad_labels
from candy_monai.training.accumulation import Group
from candy_monai.training.buffers import KeptBuffers
from candy_monai.training.gradients import clear_gradients, optimized_parameters, scale_gradients, trained_parameters
from candy_monai.training.lifecycle import Lifecycle
from candy_monai.training.losswatch import LossWatch
from candy_monai.training.returns import GradientWatch, loss_returned, score_returned
from candy_monai.training.saved_run import Continuation, SavedRun
from candy_monai.training.setup import batches, length, num_cases
from candy_monai.training.stepping import step_after_batches
from candy_monai.training.toolbox import TrainerToolbox
from candy_monai.training.validation import ValidationCases, certainty, mean_score
from candy_monai.training.validation_calls import CalledNetworks, PaddedParts


class Trainer(Lifecycle):
    """Trains a network and keeps everything about it in an experiment folder.

    Subclass it and say how to build the network, the optimizer, the schedule and the loss, what one step is and how one
    case is scored. `SegmentationTrainer` answers all of these but the network.

    Args:
        trainer_folder: Experiments go to ``<trainer_folder>/<class name>/<experiment id>/``.
        dataloader: Yields ``(images, labels)`` or dictionaries with ``image`` and ``label``: ``(B, C, *spatial)`` float
            images, ``(B, 1, *spatial)`` integer labels.
        validation_dataloader: The same for validation, whole cases; None to train without validation.
        device: Where to train.
        console: Whether to report on the screen.
        observers: More observers of the run.
    """

    def train(
        self,
        num_epochs: int,
        *,
        note: str = "",
        num_checkpoints: int = 5,
        ema: bool = True,
        seed: int | None = None,
        early_stop_tolerance: int | Literal["forecast"] | None = 5,
        early_stop_confidence: float = 0.9,
        early_stop_margin: float = 0.01,
        val_score_prediction: bool = True,
        val_score_prediction_degree: int = 5,
        save_preview: bool = True,
        preview_quality: float = 0.75,
        deterministic: bool = False,
        amp: Literal["bf16", "fp16", "auto"] | None = None,
        accumulate: int = 1,
        compile_model: bool = False,
        channels_last: bool | None = None,
        validate_every: int = 1,
        num_validation_cases: int | None = None,
        non_finite: Literal["stop", "skip"] = "stop",
        time_limit_s: float | None = None,
        save_every: int | str | None = None,
    ) -> None:
        """Train, validate and save for ``num_epochs`` epochs, in a new experiment folder.

        Args:
            num_epochs: Epochs to train.
            note: Your words about this run, kept in its log and description.
            num_checkpoints: Evenly spaced checkpoints to keep, the last epoch's among them.
            ema: Keep a moving average of the weights; it is then what is saved as the best, unless `validate_case`
                calls the model instead.
            seed: Seeds every generator; None draws one and records it.
            early_stop_tolerance: Stop after so many validated epochs without a better score; ``"forecast"`` to stop
                when no better score is to be expected; None to go on to the end.
            early_stop_confidence: With ``"forecast"``: how sure it must be, in three validated epochs in a row.
            early_stop_margin: With ``"forecast"``: what is not worth going on for, as a share of the range of the
                scores so far.
            val_score_prediction: Forecast the best validation score.
            val_score_prediction_degree: Upper bound of the forecast's polynomial degree, and the epochs it waits for.
            save_preview: Draw previews of the worst validated case.
            preview_quality: Million voxels that a preview of a volume may be made from.
            deterministic: Use deterministic algorithms only, which are slower.
            amp: ``"bf16"`` or ``"fp16"`` runs the network in mixed precision, ``"auto"`` in what is fast on a CUDA
                device; its outputs are float32 all the same, and small gradients are kept in half precision.
            accumulate: Batches whose gradients add up to one optimizer step, as one batch of so many times the size
                would give. The schedule moves on by as many batches.
            compile_model: Compile the network; where that fails it runs as it is, and the log says why.
            channels_last: Store the channels last; None does so where it pays.
            validate_every: Validate each so many epochs, and after the last.
            num_validation_cases: Validate on the first so many cases; None for all.
            non_finite: What to do when a loss is NaN or infinite: ``"stop"``, or ``"skip"`` the step: then
                the buffers, such as BatchNorm's statistics, are again what they were before the batch.
            time_limit_s: End after so many seconds of training, the last validation included: the last epoch is cut
                short. The schedule follows the time, so that the learning rate has come down when the run ends.
            save_every: Save within epochs too: after so many batches, or as often as ``"10m"`` or ``"90s"`` says. None
                saves at the end of each.

        Raises:
            BadInputError: If a setting or the data cannot work; nothing was written.
            NonFiniteLossError: If the loss is not finite and the policy is to stop.
        """
        settings = TrainSettings(
            num_epochs=num_epochs,
            note=note,
            num_checkpoints=num_checkpoints,
            ema=ema,
            seed=seed,
            early_stop_tolerance=early_stop_tolerance,
            early_stop_confidence=early_stop_confidence,
            early_stop_margin=early_stop_margin,
            val_score_prediction=val_score_prediction,
            val_score_prediction_degree=val_score_prediction_degree,
            save_preview=save_preview,
            preview_quality=preview_quality,
            deterministic=deterministic,
            amp=amp,
            accumulate=accumulate,
            compile_model=compile_model,
            channels_last=channels_last,
            validate_every=validate_every,
            num_validation_cases=num_validation_cases,
            non_finite=non_finite,
            time_limit_s=time_limit_s,
            save_every=save_every,
        )
        self._train(settings)

    @freed_memory_kept()
    def _train(self, settings: TrainSettings, saved: SavedRun | None = None) -> None:
        with self._running(settings, saved) as (run, toolbox):
            while not run.is_complete:
                run.begin_epoch(toolbox.optimizer.param_groups[0]["lr"])
                self.train_epoch(toolbox)
                score = self.validate(toolbox) if self._validation_is_due(run) else None
                self._finish_epoch(run, toolbox, score)

    def train_with_settings(self, num_epochs: int, *, settings: PathLike | None = None, **keywords: Any) -> None:
        """Train with keywords from ``settings.yml``; those passed here win.

        Args:
            num_epochs: Epochs to train.
            settings: One more settings file, read after the user's own and ``./settings.yml``.
            **keywords: Keywords of `train`.

        Raises:
            SettingsError: If a file cannot be read or a name is no keyword of `train`.
        """
        from_files = load_settings(settings)
        TrainSettings.check_names(from_files, source="settings")
        TrainSettings.check_names(keywords, source="train_with_settings")
        from_files.pop("num_epochs", None)  # the argument always wins
        self.train(num_epochs, **{**from_files, **keywords})

    def recover_from(self, experiment_id: PathLike) -> Self:
        """Choose the run that `continue_training` goes on with.

        Args:
            experiment_id: The id of an experiment of this trainer's class in its folder, or an experiment folder.

        Returns:
            This trainer.

        Raises:
            ExperimentError: If there is no such experiment, or it cannot be continued.
        """
        own = self._trainer_folder / type(self).__name__ / experiment_id
        self._saved = SavedRun.load(own if own.is_dir() else Path(experiment_id))
        return self

    def continue_training(
        self, num_epochs: int | None = None, *, schedule: Continuation | None = None, force: bool = False
    ) -> None:
        """Go on with the run that `recover_from` chose, from where it was last saved.

        With the number of epochs that it was begun with the result is that of a run that was never interrupted. With
        more, say what the learning rate does:

        * ``"keep"``: the schedule stays as it is; past its end it stays at its end value.
        * ``"stretch"``: for a run that was not finished: the schedule of a run that was ``num_epochs`` long from the
          start.
        * ``"restart"``: for a finished run: a new schedule over the added epochs.

        Args:
            num_epochs: Epochs in all, those done included; None for as many as planned.
            schedule: What the schedule does when the number of epochs changes.
            force: Go on even if data, network or trainer are not those that the run was saved with.

        Raises:
            SettingsError: If the number of epochs changes and ``schedule`` does not say how, or does not fit.
            ExperimentError: If no run was chosen, it is being trained elsewhere, or it differs; what differs is listed.
        """
        if self._saved is None:
            raise ExperimentError("choose the run to go on with first: recover_from(experiment_id)")
        saved = self._saved.continued(num_epochs, schedule=schedule, force=force)
        self._train(saved.settings, saved)

    def train_epoch(self, toolbox: TrainerToolbox) -> None:
        """Train on every batch of the training loader once; on those that are left, where an epoch was interrupted."""
        run = self._current()
        progress, total = run.progress, length(self._dataloader)
        watch = LossWatch(run.settings.non_finite, epoch=progress.epoch + 1)
        gradients = GradientWatch(self, toolbox)
        toolbox.model.train()
        self._average_in_evaluation_mode(toolbox)
        for batch in self._batches_left(run):
            group = Group.of(progress.batch, size=run.settings.accumulate, num_batches=total)
            if progress.batch == group.first:
                clear_gradients(toolbox)
                usable = True
            skips = run.settings.non_finite == "skip"
            before = KeptBuffers((toolbox.model, toolbox.criterion)) if skips else None
            with gradients.watching():
                loss, metrics, case_ids = self.train_batch(batch, toolbox)
            progress.batch += 1
            if watch.admits(loss, step=progress.batch, case_ids=case_ids):
                run.history.record(LOSS, loss)
                self.record_all(metrics)
            else:
                usable = False
                if before is not None:
                    before.restore()
            self._notify(StepFinished(progress.epoch + 1, "training", progress.batch, total))
            if progress.batch > group.last:
                agreed = self._agree(run, toolbox, group, usable=usable)
                if agreed.usable:
                    scale_gradients(trained_parameters(toolbox), 1 / group.count)
                    self.step(toolbox, num_batches=group.count)
                    progress.step += 1
                self._keep_to_the_time(run, toolbox)
                self._after_group(run, toolbox, agreed)
                if agreed.cut:
                    break
        if not progress.batch:
            raise BadInputError(
                f"the training loader yielded no batch in epoch {progress.epoch + 1}: its dataset or sampler can be "
                "read only once; let __iter__ begin anew each time it is called"
            )
        gradients.settle()
        watch.settle()
        self._share_buffers(toolbox)
        self._say_if_not_compiled(toolbox)
        if watch.num_skipped:
            self.log(f"{watch.num_skipped} steps left out: first, {watch.first_skipped}")

    def train_batch(self, batch: object, toolbox: TrainerToolbox) -> tuple[Scalar, Metrics, tuple[str, ...]]:
        """Bring one batch to the device, pad it, and compute its gradients.

        Args:
            batch: What the training loader yielded.
            toolbox: Model, optimizer and the rest.

        Returns:
            What `backward` returned, and the ids of the cases as far as they are known.
        """
        images, labels, case_ids = unpack(batch)
        self.check_labels(labels, case_ids)
        images, labels = self.prepare_batch(images, labels)
        with self._scaled_backward.active(), self._surroundings.padded_already():
            result = self.backward(images, labels, toolbox)
        loss, metrics = loss_returned(self, "backward", result)
        return loss, metrics, case_ids

    def prepare_batch(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Bring what a network is about to be trained on to the device and pad it."""
        images, labels = self._to_network(images, labels)
        if self._padding is None:
            return images, labels
        return self._padding(images), pad_labels(self._padding, labels, self.label_fill)

    def step(self, toolbox: TrainerToolbox, *, num_batches: int = 1) -> None:
        """Change the weights by their gradients: clip, step, move the schedule on, update the moving average.

        Args:
            toolbox: Optimizer, schedule and the rest.
            num_batches: Batches that the gradients come from.
        """
        self._scaler.unscale_(toolbox.optimizer)
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(optimized_parameters(toolbox.optimizer), self.max_grad_norm)
        self._scaler.step(toolbox.optimizer)
        self._scaler.update()
        step_after_batches(toolbox.scheduler, num_batches)
        if toolbox.ema is not None:
            toolbox.ema.update_parameters(toolbox.model)

    def validate(self, toolbox: TrainerToolbox) -> float:
        """Score the validation cases, each exactly once, record the averages, and return the mean score."""
        run = self._current()
        epoch, limit = run.progress.epoch + 1, run.settings.num_validation_cases
        loader = self._validation_dataloader
        assert loader is not None
        cases, before = ValidationCases(), self._moment(run)
        called = CalledNetworks(toolbox)
        self._padded_parts = parts = PaddedParts(toolbox, self._padding)
        total = min(filter(None, (num_cases(loader), limit)), default=None)
        toolbox.model.eval()
        self._average_in_evaluation_mode(toolbox)
        with torch.no_grad(), called.watched():
            for image, label in itertools.islice(self._cases(loader), self._share_of(limit)):
                with parts.of(image if self._padding is None else self.network_input(image)):
                    result = self.validate_case(image, label, toolbox)
                score, metrics, output = score_returned(self, "validate_case", result)
                output = parts.cropped(output)
                cases.add(float(score), image, label, output)
                self.record_all({f"val {name}": value for name, value in metrics.items()})
                self._notify(StepFinished(epoch, "validation", len(cases), total))
                self._stop_validating_if_asked(run, toolbox, before)
        self._preview, self._padded_parts = cases.preview(), None
        self._remember_scored(toolbox, self._processes.any_of(called.flags))
        scores = self._processes.gathered(cases.scores)
        run.score_rests_on(*certainty(scores))
        return mean_score(scores)

    def _validation_is_due(self, run: Experiment) -> bool:
        epoch, every = run.progress.epoch + 1, run.settings.validate_every
        is_last = self._processes.broadcast(run.ends_with_this_epoch())
        return self._validation_dataloader is not None and (epoch % every == 0 or is_last)

    def _share_of(self, limit: int | None) -> int | None:
        """Return how many of the first cases this process scores."""
        processes = self._processes
        return None if limit is None else len(range(processes.rank, limit, processes.count))

    def _cases(self, loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in batches(loader):
            images, labels, case_ids = unpack(batch)
            self.check_labels(labels, case_ids)
            yield from zip(*self._to_network(images, labels), strict=True)
