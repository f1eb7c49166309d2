"""The training loop, from `Trainer.train` through the epoch to the step.

The methods that a subclass overrides are in ``hooks.py``, a run's state, start and end in ``run.py``, its folder in
``candy_monai.experiment``, and console and pictures in ``candy_monai.observers``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from candy_monai.aliases import Device, Metrics, PathLike, Scalar
from candy_monai.allocation import freed_memory_kept
from candy_monai.columns import LOSS
from candy_monai.config import load_secrets, load_settings
from candy_monai.data.samples.batches import unpack
from candy_monai.device import HasDevice
from candy_monai.errors import ExperimentError
from candy_monai.experiment.events import StepFinished
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.score_prediction import predict_maximum
from candy_monai.experiment.settings import TrainSettings
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.choice import find_frontend
from candy_monai.frontends.delivery import Dashboards
from candy_monai.observers.base import Observer
from candy_monai.processes import Processes
from candy_monai.training.description import describe_run
from candy_monai.training.earlier import EarlierMembers
from candy_monai.training.gradients import clear_gradients, optimized_parameters, scale_gradients, trained_parameters
from candy_monai.training.hooks import Callbacks, Hooks, copy_that_draws
from candy_monai.training.loaders import Loaders, length
from candy_monai.training.names import similar_names
from candy_monai.training.non_finite import KeptBuffers, LossWatch
from candy_monai.training.reporting import Message
from candy_monai.training.resume import Continuation, SavedRun
from candy_monai.training.returns import GradientWatch, failure_located, loss_returned, score_returned
from candy_monai.training.run import TrainingRun
from candy_monai.training.schedule import step_after_batches
from candy_monai.training.toolbox import TrainerToolbox, build_toolbox
from candy_monai.training.validation import CalledNetworks, ValidationCases, cases_of


class Trainer(EarlierMembers, Hooks, HasDevice):
    """Trains a network and stores all results in an experiment folder.

    A subclass defines how to build the network, the optimizer, the schedule and the loss, what one step computes, and
    how one case is scored. `SegmentationTrainer` implements all of these except the network.

    Args:
        trainer_folder: Experiments are stored in ``<trainer_folder>/<class name>/<experiment id>/``.
        dataloader: Yields ``(images, labels)`` or dictionaries with ``image`` and ``label``: ``(B, C, *spatial)`` float
            images, ``(B, 1, *spatial)`` integer labels.
        validation_dataloader: The same for validation, whole cases; None to train without validation.
        device: The device for training.
        console: Whether to print the progress.
        observers: Additional observers of the run.
    """

    def __init__(
        self,
        trainer_folder: PathLike,
        dataloader: DataLoader[Any],
        validation_dataloader: DataLoader[Any] | None,
        *,
        device: Device = "cpu",
        console: bool = True,
        observers: Sequence[Observer] = (),
    ) -> None:
        HasDevice.__init__(self, device)
        self._trainer_folder = Path(trainer_folder)
        self._loaders = Loaders(dataloader, validation_dataloader)
        self._console = console
        self._observers = tuple(observers)
        self._dashboards = Dashboards()
        self._facts: dict[str, object] = {}
        self._files: dict[str, str | Path] = {}
        self._messages: list[Message] = []
        self._knows_earlier_runs = True
        self._run: TrainingRun | None = None

    # From a run through its epochs to its steps

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
        save_report: bool = True,
        preview_quality: float = 0.75,
        deterministic: bool = False,
        amp: Literal["bf16", "fp16", "auto"] | None = None,
        accumulate: int = 1,
        compile_model: bool = False,
        sync_batchnorm: bool = False,
        shard_optimizer: bool = False,
        channels_last: bool | None = None,
        validate_every: int = 1,
        num_validation_cases: int | None = None,
        non_finite: Literal["stop", "skip"] = "stop",
        time_limit_s: float | None = None,
        save_every: int | str | None = None,
        init_from: PathLike | None = None,
        freeze: str | Sequence[str] = (),
        warm_up: int | None = None,
    ) -> None:
        """Train, validate and save for ``num_epochs`` epochs, in a new experiment folder. Called, not overridden.

        Args:
            num_epochs: Epochs to train.
            note: A note about this run, stored in its log and description.
            num_checkpoints: Number of evenly spaced checkpoints to keep, including that of the last epoch.
            ema: Keep a moving average of the weights, which is saved as the best weights, unless `validate_case` calls
                the model instead.
            seed: The seed of all random generators; None draws one and records it.
            early_stop_tolerance: Stop after this number of validated epochs without a better score; ``"forecast"`` to
                stop when no better score is expected; None for no early stopping.
            early_stop_confidence: With ``"forecast"``: the required confidence, in three validated epochs in a row.
            early_stop_margin: With ``"forecast"``: a gain that is considered negligible, as a fraction of the range of
                the scores so far.
            val_score_prediction: Forecast the best validation score.
            val_score_prediction_degree: Maximum degree of the forecast's polynomials, and epochs before the first one.
            save_preview: Draw previews of the validation case with the worst score.
            save_report: Write ``report.html``, the report page of the run, after each epoch and at the end.
            preview_quality: Maximum number of voxels, in millions, from which the preview of a volume is made.
            deterministic: Use only deterministic algorithms, which are slower.
            amp: Mixed precision: ``"bf16"``, ``"fp16"`` with gradient scaling, or ``"auto"`` for the faster of them on
                a CUDA device and none elsewhere. The network's outputs are float32 in any case.
            accumulate: Number of batches per optimizer step, whose gradients are averaged as in one larger batch. The
                schedule advances by the same number of batches.
            compile_model: Compile the network; if that fails, it runs uncompiled, and the log gives the reason.
            sync_batchnorm: Compute the statistics of batch normalisation over the batches of all processes, by
                replacing the layers with ``torch.nn.SyncBatchNorm``. Several processes need GPUs.
            shard_optimizer: Divide the optimizer's state among the processes, by
                ``torch.distributed.optim.ZeroRedundancyOptimizer``; no effect in a run of one process.
            channels_last: Use the memory format ``torch.channels_last``; None uses it where it is faster.
            validate_every: Number of epochs between two validations; the last epoch is always validated.
            num_validation_cases: Validate only this number of cases, the first ones; None for all.
            non_finite: What to do if a loss is NaN or infinite: ``"stop"`` the run, or ``"skip"`` the step and restore
                the buffers, such as the statistics of batch normalisation, from before the batch.
            time_limit_s: End after this number of seconds of training, including the last validation; the last epoch is
                cut short. A schedule with a method ``end_in``, such as candy_monai's own, is adapted so that the
                learning rate has decayed when the run ends.
            save_every: Also save within epochs: after this number of batches, or at an interval such as ``"10m"`` or
                ``"90s"``. None saves only at the end of each epoch.
            init_from: Start from these weights instead of random ones: the folder of an experiment, a weight file
                (``.pth``, ``.pt``, ``.safetensors``), or the folder of a MONAI Bundle. Tensors are matched by name and
                shape; those that do not fit are initialised at random, and the log says what was loaded. The weights of
                the first layer are repeated or averaged for other numbers of channels. The file is read once, and no
                code in it is executed.
            freeze: Name patterns, such as ``"encoder.*"``, of parameters that are not trained; the name of a module
                selects everything in it. The statistics of matching normalisation layers are not updated.
            warm_up: Number of batches over which the learning rate rises to that of the schedule; None for a twentieth
                of the run, at most 250, if it starts from weights, and otherwise 0.

        Raises:
            BadInputError: If a setting, the data or the weights of ``init_from`` cannot be used; nothing was written.
            NonFiniteLossError: If the loss is not finite and the policy is to stop.
        """
        self._train(TrainSettings(**{name: value for name, value in locals().items() if name != "self"}))

    @freed_memory_kept()
    def _train(self, settings: TrainSettings, saved: SavedRun | None = None) -> None:
        with self._set_up(settings, saved) as run:
            while not run.is_complete:
                run.begin_epoch()
                self.train_epoch(run.toolbox)
                score = self._validate(run.toolbox) if run.validation_is_due() else None
                run.finish_epoch(score)

    @contextmanager
    def _set_up(self, settings: TrainSettings, saved: SavedRun | None) -> Iterator[TrainingRun]:
        """Start a new run or continue a saved one, and report its end when the ``with`` block ends."""
        processes = Processes.from_environment()
        device = self.device(device=processes.device_of(self.device()))
        with processes.connected(device):
            run = self._new_run(settings, device, processes=processes, messages=self._messages)
            self._messages = []
            with run.lasting():
                image, label = run.data.first_sample()
                self._check_one(image, label)
                run.reporter.log_all(similar_names(self))
                if (case := run.data.first_case()) is not None:
                    self._check_first_case(case, image)
                example, log = self._network_input(image), run.reporter.log
                equipment = build_toolbox(self, run.settings, example, device, starts=saved is None, log=log)
                run.equip(equipment)
                if case is not None and saved is None:
                    self._try_case(case, equipment)
                with run.stop.listening():  # before there is a folder, which would be left without a word
                    run.begin(
                        describe_run(self, equipment, self._loaders, processes, self._facts),
                        parent=self._trainer_folder / type(self).__name__,
                        files=self._files,
                        saved=saved,
                        score_range=self.score_range,
                        forecast_references=self._knows_earlier_runs,
                        observers=lambda: (*self._observers, *self._dashboards.deliveries(run.reporter.report)),
                        console=self._console,
                    )
                    yield run
                run.conclude()

    def _new_run(self, settings: TrainSettings, device: torch.device, **arguments: Any) -> TrainingRun:
        callbacks = Callbacks.of(self, is_planned="dataset" in self._facts)
        self._run = TrainingRun(settings, self._loaders, callbacks, device=device, **arguments)
        return self._run

    def train_epoch(self, toolbox: TrainerToolbox) -> None:
        """Train on every batch of the training loader once; in a resumed epoch, on its remaining batches.

        Override it to change the loop, or to do something before and after each epoch.
        """
        run = self._current_run()
        progress, settings, total = self._current().progress, run.settings, length(run.loaders.training)
        watch = LossWatch(settings.non_finite, epoch=progress.epoch + 1)
        gradients = GradientWatch(self, toolbox, run.reporter.log_once)
        toolbox.model.train()
        if toolbox.ema is not None:
            toolbox.ema.eval()  # always in one mode, so that its results do not depend on earlier calls
        for batch in run.batches():
            number = progress.batch % settings.accumulate
            if number == 0:
                clear_gradients(toolbox)
                group = settings.accumulate if total is None else min(settings.accumulate, total - progress.batch)
                usable = True
            before = KeptBuffers((toolbox.model, toolbox.criterion)) if settings.non_finite == "skip" else None
            with gradients.watching(adds=number > 0), run.passing(is_last=number + 1 == group):
                loss, metrics, case_ids, num_samples = self._train_batch(batch, toolbox)
            progress.batch += 1
            if watch.admits(loss, step=progress.batch, case_ids=case_ids):
                self._current().history.record(LOSS, loss)
                self.record_all(metrics)
            else:
                usable = False
                if before is not None:
                    before.restore()
            num_samples *= run.processes.world_size
            run.reporter.notify(StepFinished(progress.epoch + 1, "training", progress.batch, total, num_samples))
            if number + 1 < group:
                continue
            agreed = run.agree(group, usable=usable)
            if agreed.usable:
                scale_gradients(trained_parameters(toolbox), 1 / group)
                self.step(toolbox, num_batches=group)
                progress.step += 1
            run.finish_step(agreed)
            if agreed.cut:
                break
        gradients.settle()
        watch.settle()
        run.finish_training()
        if watch.num_skipped:
            self.log(f"Skipped steps: {watch.num_skipped}; the first one: {watch.first_skipped}")

    def _train_batch(self, batch: object, toolbox: TrainerToolbox) -> tuple[Scalar, Metrics, tuple[str, ...], int]:
        """Compute the gradients of one batch and return its loss, its metrics, its case ids, if known, and its size."""
        unpacked = unpack(batch)
        self._check_batch(unpacked)
        equipment, case_ids = self._current_run().equipment, unpacked.case_ids
        images, labels = self._prepared(unpacked.images, unpacked.labels)
        with (
            equipment.scaled_backward.active(),
            equipment.surroundings.padded_already(),
            failure_located(self, "backward", images, labels, case_ids, equipment.padding),
        ):
            result = self.backward(images, labels, toolbox)
        loss, metrics = loss_returned(self, "backward", result)
        return loss, metrics, case_ids, len(images)

    def _prepared(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels on the device and padded, as the network takes them."""
        return self._current_run().equipment.prepared(images, labels, fill=self._label_fill)

    def step(self, toolbox: TrainerToolbox, *, num_batches: int = 1) -> None:
        """Update the weights: clip the gradients, step, advance the schedule, update the moving average.

        Override it to change the step, for example for an optimizer that needs a closure.

        Args:
            toolbox: Optimizer, schedule and the rest.
            num_batches: Number of batches from which the gradients were computed.
        """
        equipment = self._current_run().equipment
        with equipment.scaled_backward.unscaled(toolbox.optimizer):
            if self.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(optimized_parameters(toolbox.optimizer), self.max_grad_norm)
            equipment.scaler.step(toolbox.optimizer)
        equipment.scaler.update()
        step_after_batches(toolbox.scheduler, num_batches)
        if toolbox.ema is not None:
            toolbox.ema.update_parameters(toolbox.model)

    def _validate(self, toolbox: TrainerToolbox) -> float:
        """Score every validation case once, record the averages, and return the mean score."""
        run, loader = self._current_run(), self._validation_dataloader
        assert loader is not None
        validation, experiment, padding = run.validations, run.current(), run.equipment.padding
        total, share = validation.share_of(loader, run.settings.num_validation_cases)
        epoch, stop_if_asked = experiment.progress.epoch + 1, run.stopping_validation()
        cases, called = ValidationCases(), CalledNetworks(toolbox)
        parts = validation.begin(toolbox, padding, keeps_cases=run.settings.save_report)
        for network in toolbox.networks:
            network.eval()
        with torch.no_grad(), called.watched():
            for image, label, case_id in itertools.islice(cases_of(loader, run.equipment, self._check_batch), share):
                seen, validation.case_id = (image if padding is None else self._network_input(image)), case_id
                with parts.of(seen), failure_located(self, "validate_case", image, label, (case_id,), padding):
                    result = self.validate_case(image, label, toolbox)
                score, metrics, output = score_returned(self, "validate_case", result)
                output = parts.cropped(output)
                cases.add(float(score), image, label, output, case_id=case_id)
                if validation.kept is not None:
                    look = functools.partial(self._case_view, image, label, output)
                    validation.kept.add(case_id, float(score), metrics, look)
                self.record_all({f"val {name}": value for name, value in metrics.items()})
                run.reporter.notify(StepFinished(epoch, "validation", len(cases), total, run.processes.world_size))
                stop_if_asked()
        drawing = copy_that_draws(self, title=cases.title(epoch))
        draw = functools.partial(drawing.save_preview, quality=run.settings.preview_quality)
        return validation.finish(cases, called, draw, experiment=experiment, averages=toolbox.ema is not None)

    # Other ways to train

    def train_with_settings(self, num_epochs: int, *, settings: PathLike | None = None, **keywords: Any) -> None:
        """Train with keywords from ``settings.yml``; keywords passed here take precedence. Called, not overridden.

        Args:
            num_epochs: Epochs to train.
            settings: A further settings file, which takes precedence over the user's own and ``./settings.yml``.
            **keywords: Keywords of `train`.

        Raises:
            SettingsError: If a file cannot be read or a name is not a keyword of `train`.
        """
        from_files = load_settings(settings)
        TrainSettings.check_names(from_files, source="settings")
        TrainSettings.check_names(keywords, source="train_with_settings")
        self.train(**{**from_files, **keywords, "num_epochs": num_epochs})

    def resume(
        self,
        experiment: PathLike,
        num_epochs: int | None = None,
        *,
        schedule: Continuation | None = None,
        force: bool = False,
    ) -> None:
        """Resume a run from its last saved state. Called, not overridden.

        With the original number of epochs the result is that of an uninterrupted run. With more epochs, choose the
        behaviour of the learning rate:

        * ``"keep"``: the schedule stays as it is; past its end it stays at its end value.
        * ``"stretch"``: for a run that was not finished: the schedule of a run that was ``num_epochs`` long from the
          start.
        * ``"restart"``: for a finished run: a new schedule over the added epochs.

        Args:
            experiment: An experiment folder, or the id of an experiment of this trainer class in the trainer's folder.
            num_epochs: Total number of epochs, including those already done; None for the planned number.
            schedule: The behaviour of the schedule if the number of epochs changes.
            force: Continue even if data, network or trainer differ from those of the saved run.

        Raises:
            SettingsError: If the number of epochs changes and ``schedule`` is missing or does not fit.
            ExperimentError: If there is no such run, another process is training it, or it differs; the differences are
                listed.
        """
        saved = self._saved_run(experiment).continued(num_epochs, schedule=schedule, force=force)
        self._train(saved.settings, saved)

    def _saved_run(self, experiment: PathLike) -> SavedRun:
        own = self._trainer_folder / type(self).__name__ / experiment
        return SavedRun.load(own if own.is_dir() else Path(experiment))

    # Logging, metrics and the experiment

    def log(self, msg: str, *, on_screen: bool = True) -> None:
        """Write a message to ``logs.txt``, verbatim. Called, not overridden.

        Args:
            msg: Any text.
            on_screen: Also print it on the console.
        """
        if self._run is None:
            self._messages.append((msg, on_screen))
        else:
            self._run.reporter.log(msg, on_screen=on_screen)

    def record(self, metric: str, value: Scalar) -> None:
        """Record one value of a metric; its average over the epoch goes to ``metrics.csv``. Called, not overridden.

        A metric with the name of a column that every run has, such as ``learning rate``, is recorded as ``learning rate
        (metric)``.

        Args:
            metric: The metric's name.
            value: A number or a tensor with one element; NaN for "not measured".

        Raises:
            BadInputError: If it is not one number.
        """
        self._current_run().record(metric, value)

    def record_all(self, metrics: Metrics) -> None:
        """Record one value of each metric. Called, not overridden."""
        for metric, value in metrics.items():
            self.record(metric, value)

    def metrics(self) -> dict[str, list[float]]:
        """Return every metric over the epochs so far; NaN for epochs without it. Called, not overridden."""
        return self._current().history.metrics()

    def experiment_folder(self) -> Path:
        """Return the folder of the current or last run. Called, not overridden.

        Raises:
            ExperimentError: If there has been no run yet.
        """
        return self._current().folder

    def set_frontend(self, frontend: type[Frontend] | str, *, path_to_secrets: PathLike | None = None) -> None:
        """Report the following runs to a dashboard. Called, not overridden.

        Args:
            frontend: The class of the dashboard, or its name on the command line, such as ``"notion"``. It is created
                at once with the user's secrets, so that a missing secret is reported before training.
            path_to_secrets: The file with the secrets, instead of the one in the user's configuration folder.

        Raises:
            BadInputError: If it is not a subclass of `Frontend`, or the name is unknown.
        """
        self._dashboards = Dashboards(find_frontend(frontend, option="set_frontend")(load_secrets(path_to_secrets)))

    def predict_maximum_validation_score(self, num_epochs: int, degree: int = 5) -> tuple[int, float]:
        """Forecast the best validation score of the run by quotient regression. Called, not overridden.

        Args:
            num_epochs: The number of epochs of the run.
            degree: Upper bound of the degree of the polynomials.

        Returns:
            The epoch of the best score, and the score; those so far if there are too few scores for a forecast.
        """
        run = self._current()
        prediction = predict_maximum(run.history.metrics(), num_epochs, degree=degree, **run.knowledge)
        return prediction.epoch, prediction.score

    # The current run

    @property
    def _dataloader(self) -> DataLoader[Any]:
        """The training loader; with several processes, that of this process's share of the samples."""
        return self._current_loaders().training

    @_dataloader.setter
    def _dataloader(self, loader: DataLoader[Any]) -> None:
        self._loaders = self._loaders._replace(training=loader)

    @property
    def _validation_dataloader(self) -> DataLoader[Any] | None:
        """The validation loader, in the same way."""
        return self._current_loaders().validation

    @_validation_dataloader.setter
    def _validation_dataloader(self, loader: DataLoader[Any] | None) -> None:
        self._loaders = self._loaders._replace(validation=loader)

    def _current_loaders(self) -> Loaders:
        return self._loaders if self._run is None or self._run.is_over else self._run.loaders

    def _current_run(self) -> TrainingRun:
        if self._run is None:
            raise ExperimentError(f"this {type(self).__name__} has no experiment yet: call train() first")
        return self._run

    def _current(self) -> Experiment:
        return self._current_run().current()
