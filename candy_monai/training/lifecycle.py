"""What surrounds the training loop: how a run begins, how an epoch is saved and told, how it ends. Trains nothing."""

from __future__ import annotations

import dataclasses
import sys
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.amp.grad_scaler import GradScaler
from torch.utils.data import DataLoader

from candy_monai.aliases import Device, PathLike, Shape
from candy_monai.attachment import Surroundings, attach, attachment_of, detach, tensors_in
from candy_monai.data.samples.sharing import shared_loader, unshare
from candy_monai.device import HasDevice
from candy_monai.experiment.description import ExperimentDescription, describe_trainer
from candy_monai.experiment.events import Preview, RunInterrupted
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.settings import TrainSettings
from candy_monai.frontends.delivery import deliveries
from candy_monai.network import (
    channels_last_pays,
    check_takes_complex,
    choose_precision,
    copyable,
    initialize_lazy,
    plain_network,
)
from candy_monai.nn.padding import padding_to_dict
from candy_monai.observers.base import Observer, ObserverGroup
from candy_monai.own_generators import OwnGenerators
from candy_monai.processes import Processes
from candy_monai.seeding import GeneratorStates, draw_seed, set_seed
from candy_monai.training.continuity import Continuity, weights_of
from candy_monai.training.example import first_sample
from candy_monai.training.gradients import ScaledBackward, trained_parameters
from candy_monai.training.interruption import Interrupted, how_to_resume
from candy_monai.training.replay import stop_replacing, why_not_exact
from candy_monai.training.returns import optimizer_returned, returned, scheduler_returned
from candy_monai.training.saved_run import SavedRun
from candy_monai.training.setup import (
    bundle_of,
    check_loaders,
    check_score_range,
    describe_loader,
    describe_parts,
    floating_type,
    length,
    run_started,
    watchers,
)
from candy_monai.training.stepping import step_after_epoch
from candy_monai.training.toolbox import TrainerToolbox
from candy_monai.training.validation import mean_of_cases
from candy_monai.training.validation_calls import PaddedParts


class Lifecycle(Continuity):
    """A trainer without its loop: builds the parts of a run, publishes its experiment, tells those who watch.

    Args:
        trainer_folder: Experiments go to ``<trainer_folder>/<class name>/<experiment id>/``.
        dataloader: The training loader.
        validation_dataloader: The validation loader; None without validation.
        device: Where to train.
        console: Whether to report on the screen.
        observers: More observers of the run.
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
        Continuity.__init__(self)
        self._trainer_folder = Path(trainer_folder)
        self._dataloader = dataloader
        self._validation_dataloader = validation_dataloader
        self._console = console
        self._extra_observers = tuple(observers)
        self._more_facts: dict[str, object] = {}
        self._more_files: dict[str, str] = {}
        self._padding: nn.Module | None = None
        self._network_type = torch.float32
        self._padded_parts: PaddedParts | None = None
        self._surrounded: list[weakref.ref[nn.Module]] = []
        self._preview: Preview | None = None
        self._saved: SavedRun | None = None
        self._data: dict[str, object] = {}

    def add_to_folder(
        self, *, facts: Mapping[str, object] | None = None, files: Mapping[str, str] | None = None
    ) -> None:
        """Add to what the folders of the coming runs hold.

        Args:
            facts: More plain values for ``experiment.json``, by name.
            files: More texts that a new folder is born with, by their files' names.
        """
        self._more_facts.update(facts or {})
        self._more_files.update(files or {})

    def dataloader(self) -> DataLoader[Any]:
        """Return the training loader."""
        return self._dataloader

    def validation_dataloader(self) -> DataLoader[Any] | None:
        """Return the validation loader; None without validation."""
        return self._validation_dataloader

    def build_toolbox(self, settings: TrainSettings, image: Tensor) -> tuple[TrainerToolbox, Shape]:
        """Build everything that a step works with.

        Args:
            settings: What `train` was told.
            image: One training image ``(C, *spatial)``, for its shape.

        Returns:
            The toolbox, and the shape that the network was built for: the image's, padded.
        """
        padding = self.build_padding_module()
        if padding is not None:
            padding = returned(self, "build_padding_module", padding, nn.Module).to(self.device())
        self._padding = padding
        example = self.network_input(image)[None]
        if self._padding is not None:
            example = self._padding(self._to_device(example))
        example_shape = tuple(example.shape[1:])
        network = returned(self, "build_network", self.build_network(example_shape), nn.Module).to(self.device())
        initialize_lazy(network, self._to_device(example))
        check_takes_complex(network, self._to_device(example))
        self._network_type = floating_type(network)
        amp = choose_precision(settings.amp, self.device())
        channels_last = settings.channels_last
        if channels_last is None:
            channels_last = channels_last_pays(len(example_shape) - 1, amp, self.device())
        if settings.compile_model:
            network.compile()  # in place: the weights keep their names, and the moving average's copy is not compiled
        self._surround(
            network,
            Surroundings(padding=self._padding, amp=amp, channels_last=channels_last, num_dims=len(example_shape) - 1),
        )
        self._scaler = GradScaler(self.device().type, enabled=amp == "fp16")
        optimizer = optimizer_returned(self, self.build_optimizer(network.parameters()))
        toolbox = TrainerToolbox(
            model=network,
            optimizer=optimizer,
            scheduler=scheduler_returned(self, self.build_scheduler(optimizer, settings.num_epochs)),
            criterion=returned(self, "build_criterion", self.build_criterion(), nn.Module).to(self.device()),
            ema=self._built_average(network) if settings.ema else None,
        )
        self._scored = "raw" if toolbox.ema is None else "ema"
        self._scaled_backward = ScaledBackward(self._scaler)
        self._scaled_backward.watch(trained_parameters(toolbox))
        return toolbox, example_shape

    def _built_average(self, network: nn.Module) -> optim.swa_utils.AveragedModel:
        """Build the average of the user's own network, in evaluation mode and surrounded as the network is."""
        plain = plain_network(network)
        with copyable(plain):
            ema = self.build_ema(plain)
        if attachment_of(ema.module) is None:  # of a network in a wrapper, or one whose copies have no hooks
            self._surround(ema.module, self._surroundings)
        else:
            self._surrounded.append(weakref.ref(ema.module))
        return ema.eval()

    def _surround(self, network: nn.Module, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        attach(network, surroundings)
        self._surrounded.append(weakref.ref(network))

    @contextmanager
    def _giving_networks_back(self) -> Iterator[None]:
        """Restore the networks of a run as the user's own when it is over."""
        try:
            yield
        finally:
            self._scaled_backward.close()
            while self._surrounded:
                network = self._surrounded.pop()()
                if network is not None:
                    detach(network)

    @contextmanager
    def _running(self, settings: TrainSettings, saved: SavedRun | None) -> Iterator[tuple[Experiment, TrainerToolbox]]:
        """Set a run up or take a saved one up again, and tell those who watch how it ended."""
        self._processes = Processes.from_environment()
        self.device(device=self._processes.device_of(self.device()))
        with self._processes.connected(self.device()), self._shared_loaders(), self._giving_networks_back():
            run, toolbox = self._set_up(settings, saved)
            try:
                with self._stop.listening():
                    yield run, toolbox
                self._conclude(run)
            except BaseException as error:
                with suppress(Exception):  # a report that fails must not hide the error
                    self._tell_of_saved_epoch(run, wait=True)
                with suppress(Exception):
                    kind = "" if isinstance(error, Interrupted) else type(error).__name__
                    what = ": ".join(filter(None, (kind, str(error))))
                    self.log(f"Interrupted in epoch {run.progress.epoch + 1}: {what}")
                    if isinstance(error, Interrupted) and self._processes.is_first:
                        self._say_how_to_resume(run)
                self._notify(RunInterrupted(error))
                raise
            finally:
                self._observers.close()
                run.close()

    def _say_how_to_resume(self, run: Experiment) -> None:
        how = how_to_resume(type(self), run.folder, is_planned="dataset" in self._more_facts, bundle=bundle_of(self))
        self.log(how)
        if not self._console:  # the program may end with nothing on the screen but this
            print(how, file=sys.stderr)

    @contextmanager
    def _shared_loaders(self) -> Iterator[None]:
        """Let each of several processes load its share."""
        whole = self._dataloader, self._validation_dataloader
        check_loaders(*whole)
        self._data = {"training": describe_loader(whole[0]), "validation": describe_loader(whole[1])}
        self._dataloader = shared_loader(whole[0], self._processes, evenly=True)
        if whole[1] is not None:
            self._validation_dataloader = shared_loader(whole[1], self._processes, evenly=False)
        try:
            yield
        finally:
            unshare(whole[0])
            stop_replacing(whole[0])
            self._dataloader, self._validation_dataloader = whole

    def _set_up(self, settings: TrainSettings, saved: SavedRun | None) -> tuple[Experiment, TrainerToolbox]:
        self._experiment, self._saved, self._epoch_generators, self._untold = None, None, None, None
        self._said = set()
        settings = self._decided(settings)
        image, label, opened = first_sample(self._dataloader)
        self._opened = opened if saved is None else None
        self.check_sample(image, label)
        check_score_range(self.score_range)
        toolbox, example_shape = self.build_toolbox(settings, image)
        self._own_generators = OwnGenerators()  # those of the run before would be found in it
        self._own_generators = OwnGenerators.of(
            loader=self._dataloader,
            validation_loader=self._validation_dataloader,
            network=plain_network(toolbox.model),
            criterion=toolbox.criterion,
            trainer=vars(self),
        )
        description = self._description(toolbox, example_shape)
        if saved is None:
            run, generators = self._created(settings, toolbox, description)
        else:
            saved.refuse_differences(description)
            run, generators = self._reopened(saved, toolbox)
        with run.closed_on_failure():
            self._experiment, self._preview = run, None
            run.score_range = self.score_range
            if self._processes.is_first:
                self._observers = self._watchers(run.settings, run)
            self._announce(run, saved)
            self._notify(run_started(run, type(self).__name__, plain_network(toolbox.model), example_shape))
            # The last before the first step: what a process imports for the first time may draw, too.
            generators.restore(self._own_generators)
            if saved is not None and saved.schedule is not None:
                run.save_point(weights_of(toolbox, self._scored), self._state(run, toolbox))
                run.describe(description)
            self._saved_at = (run.progress.batch, time.monotonic())
        return run, toolbox

    def _decided(self, settings: TrainSettings) -> TrainSettings:
        """Decide what was left open, in all processes alike, and seed everything."""
        seed = self._processes.broadcast(draw_seed() if settings.seed is None else settings.seed)
        set_seed(seed, deterministic=settings.deterministic)
        return dataclasses.replace(settings, seed=seed, amp=choose_precision(settings.amp, self.device()))

    def _created(
        self, settings: TrainSettings, toolbox: TrainerToolbox, description: ExperimentDescription
    ) -> tuple[Experiment, GeneratorStates]:
        """Publish a new experiment and return it with the random generators that it begins with."""
        self._schedule_epochs = settings.num_epochs
        for model in [toolbox.model] if toolbox.ema is None else [toolbox.model, toolbox.ema]:
            self._processes.share(tensors_in(plain_network(model).state_dict()))
        if not self._processes.is_first:  # the same dropout in all processes would be no help
            assert settings.seed is not None
            set_seed((settings.seed + self._processes.rank) % 2**32, deterministic=settings.deterministic)
        generators, state = self._captured(), self._state(None, toolbox)
        parent = self._trainer_folder / type(self).__name__
        folder = None
        if self._processes.is_first:
            folder = Experiment.publish(
                parent, settings, description, weights_of(toolbox, self._scored), state, files=self._more_files
            )
        folder = self._processes.broadcast(folder)
        assert folder is not None
        return Experiment(folder, settings, writes=self._processes.is_first), generators

    def _reopened(self, saved: SavedRun, toolbox: TrainerToolbox) -> tuple[Experiment, GeneratorStates]:
        """Take a saved run up and return it with the random generators that it goes on with."""
        reopened = saved.reopened(
            toolbox, lambda epochs: self.build_scheduler(toolbox.optimizer, epochs), self._processes
        )
        self._scored = reopened.scored
        with reopened.run.closed_on_failure():
            self._scaler.load_state_dict(dict(reopened.scaler))
            if reopened.extra:
                self.set_extra_state(reopened.extra)
        self._schedule_epochs, self._epoch_generators = reopened.schedule_epochs, reopened.epoch_generators
        return reopened.run, reopened.generators

    def _description(self, toolbox: TrainerToolbox, example_shape: Shape) -> ExperimentDescription:
        entries = {
            "bundle": bundle_of(self),
            "padding": padding_to_dict(self._padding),
            "score_range": None if self.score_range is None else list(self.score_range),
            "processes": self._processes.count,
            "data": self._data,
            "parts": describe_parts(toolbox, self._dataloader, self._validation_dataloader),
            **self.describe(example_shape),
            **self._more_facts,
        }
        return describe_trainer(type(self).__name__, entries)

    def _preview_style(self) -> object:
        """Return what `save_preview` needs to know of the run that begins, beyond its folder."""
        return None

    def _watchers(self, settings: TrainSettings, run: Experiment) -> ObserverGroup:
        def report(msg: str, *, on_screen: bool = True) -> None:
            # Also after the run, when the trainer may be in another, and its folder may be gone.
            with suppress(Exception):
                if self._experiment is run:
                    self.log(msg, on_screen=on_screen)
                else:
                    run.log(msg)

        style = self._preview_style()

        def save_preview(preview: Preview) -> None:
            with self._drawing(run, style):
                self.save_preview(preview.image, preview.label, preview.output, quality=settings.preview_quality)

        self._deliveries = deliveries(self._frontend, report, after=self._deliveries)
        return watchers(
            settings=settings,
            save_preview=save_preview,
            console=self._console,
            others=(*self._extra_observers, *self._deliveries),
            report=report,
        )

    def _announce(self, run: Experiment, saved: SavedRun | None) -> None:
        count = self._processes.count
        where = f"{self.device()}" if count == 1 else f"{count} processes, the first on {self.device()}"
        self.log(f"Experiment {run.experiment_id} in {run.folder}")
        limit = run.settings.time_limit_s
        extent = f"{run.settings.num_epochs} epochs"
        if limit is not None:
            extent = f"as many epochs as {limit:.0f} s hold ({run.settings.num_epochs} at most)"
        self.log(f"{type(self).__name__} on {where}, {extent}, seed {run.settings.seed}")
        if saved is not None:
            within = f", batch {run.progress.batch}" if run.progress.batch else ""
            self.log(f"Continued after epoch {run.progress.epoch}{within}")
        elif run.settings.note:
            self.log(f"Note: {run.settings.note}")
        self._log_early_messages()
        if self._validation_dataloader is None:
            self.log("No validation: the best weights are the last, and there is no score, forecast or early stop")
        timed = run.settings.time_limit_s is not None
        if reason := "its schedule follows the clock" if timed else why_not_exact(self._dataloader):
            self.log(f"If this run is interrupted, going on may not give the same numbers: {reason}")

    def _finish_epoch(self, run: Experiment, toolbox: TrainerToolbox, score: float | None) -> None:
        """Begin to save the epoch; it is told when it is saved, while the next one is trained."""
        self._tell_of_saved_epoch(run, wait=True)
        run.history.absorb(self._processes.gathered(run.history.pending()))
        improved = run.finish_epoch(score)
        self._share_clock(run)
        self._epoch_generators = None
        self._keep_to_the_time(run, toolbox)
        validates = self._validation_dataloader is not None
        step_after_epoch(
            toolbox.scheduler, run.history.metrics(), epoch=run.progress.epoch, score=score, validates=validates
        )
        is_best = improved or run.progress.best_epoch == 0  # until there is a score: the newest
        run.save_epoch(weights_of(toolbox, self._scored), self._state(run, toolbox), score=score, is_best=is_best)
        self._saved_at = (0, time.monotonic())
        self._untold = run.epoch_finished(score, self._preview)
        self._stop_after_epoch_if_asked(run)

    def _keep_to_the_time(self, run: Experiment, toolbox: TrainerToolbox) -> None:
        """Let the schedule end when the time does; of several processes by the first one's clock, after an epoch."""
        if run.settings.time_limit_s is None or (self._processes.count > 1 and run.progress.batch):
            return
        steps_an_epoch, epochs_left = length(self._dataloader), run.expected_epochs() - run.progress.epoch
        # Where much of the time is not in the steps, the whole epochs that are expected say more.
        by_epochs = None if steps_an_epoch is None else epochs_left * steps_an_epoch - run.progress.batch
        known = [number for number in (run.batches_left, by_epochs) if number is not None]
        num_steps = self._processes.broadcast(min(known, default=0))
        if num_steps > 0:
            self.end_schedule_in(num_steps, toolbox.scheduler)

    def _conclude(self, run: Experiment) -> None:
        self._tell_of_saved_epoch(run, wait=True)
        if run.early_stopping.triggered:
            self.log(f"Early stopping triggered because {run.early_stopping.reason}")
        elif run.is_out_of_time:
            self.log(f"The time is up after epoch {run.progress.epoch}: another would exceed the time limit")
        if run.progress.best_epoch:
            best = f"Best validation score {run.progress.best_score:.4f} at epoch {run.progress.best_epoch}"
            if run.best_num_validated is not None:
                best += f", {mean_of_cases(run.best_num_validated, run.best_standard_error)}"
            self.log(best)
        self._notify(run.finished())

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device(), non_blocking=True)

    def _to_network(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Bring images and labels to the device, floating ones in the network's type, labels in float32 at least."""
        images, labels = self._to_device(images), self._to_device(labels)
        if images.is_floating_point():
            images = images.to(self._network_type)
        if labels.is_floating_point():
            labels = labels.to(torch.promote_types(self._network_type, torch.float32))
        return images, labels
