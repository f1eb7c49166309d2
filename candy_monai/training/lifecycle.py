"""What surrounds the training loop: how a run begins, how an epoch is saved and told, how it ends. Trains nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.utils.data import DataLoader

from candy_monai.aliases import Device, PathLike, Shape
from candy_monai.device import HasDevice
from candy_monai.experiment.events import Preview, RunInterrupted
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.history import last_epoch_as_text
from candy_monai.experiment.settings import SaveInterval, TrainSettings
from candy_monai.experiment.state import RunWeights
from candy_monai.frontends.delivery import deliveries
from candy_monai.network import (
    NetworkAdapter,
    adapter_of,
    channels_last_pays,
    choose_precision,
    plain_network,
    plain_weights,
)
from candy_monai.nn.padding import padding_to_dict
from candy_monai.observers.base import Observer, ObserverGroup
from candy_monai.seeding import GeneratorStates, draw_seed, set_seed
from candy_monai.training.accumulation import Group
from candy_monai.training.interruption import StopRequest
from candy_monai.training.overridables import Overridables
from candy_monai.training.replay import batches_from, why_not_exact
from candy_monai.training.reporting import Reporting
from candy_monai.training.saved_run import SavedRun
from candy_monai.training.setup import bundle_of, check_loaders, describe_loader, first_sample, run_started, watchers
from candy_monai.training.toolbox import TrainerToolbox


class Lifecycle(Overridables, Reporting, HasDevice):
    """A trainer without its loop: builds the parts of a run, publishes its experiment, tells those who watch.

    Args:
        trainer_folder: Experiments go to ``<trainer_folder>/<class name>/<experiment id>/``.
        dataloader: The training loader.
        validation_dataloader: The validation loader; None without validation.
        device: Where to train.
        console: Whether to report on the screen.
        observers: More observers of the run.

    Attributes:
        facts: More plain values for ``experiment.json``, by name.
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
        Reporting.__init__(self)
        self._trainer_folder = Path(trainer_folder)
        self._dataloader = dataloader
        self._validation_dataloader = validation_dataloader
        self._console = console
        self._extra_observers = tuple(observers)
        self.facts: dict[str, object] = {}
        self._padding: nn.Module | None = None
        self._preview: Preview | None = None
        self._saved: SavedRun | None = None
        self._stop = StopRequest()
        self._schedule_epochs = 0
        self._epoch_generators: GeneratorStates | None = None
        self._saved_at = (0, 0.0)
        self._scaler = GradScaler("cpu", enabled=False)

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
        self._padding = None if padding is None else padding.to(self.device())
        example = self.network_input(image)[None]
        if self._padding is not None:
            example = self._padding(self._to_device(example))
        example_shape = tuple(example.shape[1:])
        network = self.build_network(example_shape).to(self.device())
        amp = choose_precision(settings.amp, self.device())
        channels_last = settings.channels_last
        if channels_last is None:
            channels_last = channels_last_pays(len(example_shape) - 1, amp, self.device())
        model = NetworkAdapter(network, padding=self._padding, amp=amp, channels_last=channels_last)
        if settings.compile_model:
            network.compile()  # in place: the weights keep their names, and the moving average's copy is not compiled
        self._scaler = GradScaler(self.device().type, enabled=amp == "fp16")
        optimizer = self.build_optimizer(model.parameters())
        return TrainerToolbox(
            model=model,
            optimizer=optimizer,
            scheduler=self.build_scheduler(optimizer, settings.num_epochs),
            criterion=self.build_criterion().to(self.device()),
            ema=self.build_ema(model) if settings.ema else None,
        ), example_shape

    @contextmanager
    def _running(self, settings: TrainSettings, saved: SavedRun | None) -> Iterator[tuple[Experiment, TrainerToolbox]]:
        """Set a run up or take a saved one up again, and tell those who watch how it ended."""
        run, toolbox = self._set_up(settings, saved)
        try:
            with self._stop.listening():
                yield run, toolbox
            self._conclude(run)
        except BaseException as error:
            with suppress(Exception):  # a report that fails must not hide the error
                what = ": ".join(filter(None, (type(error).__name__, str(error))))
                self.log(f"Interrupted in epoch {run.progress.epoch + 1}: {what}")
            self._notify(RunInterrupted(error))
            raise
        finally:
            self._observers.close()
            run.close()

    def _set_up(self, settings: TrainSettings, saved: SavedRun | None) -> tuple[Experiment, TrainerToolbox]:
        self._experiment, self._saved, self._epoch_generators = None, None, None
        check_loaders(self._dataloader, self._validation_dataloader)
        seed = draw_seed() if settings.seed is None else settings.seed
        set_seed(seed, deterministic=settings.deterministic)
        image, label = first_sample(self._dataloader)
        self.check_sample(image, label)
        toolbox, example_shape = self.build_toolbox(settings, image)
        facts = self._facts_of_run(example_shape)
        if saved is None:
            self._schedule_epochs, generators = settings.num_epochs, GeneratorStates.capture()
            run = Experiment.create(
                self._trainer_folder / type(self).__name__,
                dataclasses.replace(settings, seed=seed, amp=choose_precision(settings.amp, self.device())),
                facts,
                lambda: (_weights(toolbox), self._state(toolbox)),
            )
        else:
            saved.refuse_differences(facts)
            reopened = saved.reopened(toolbox, lambda epochs: self.build_scheduler(toolbox.optimizer, epochs))
            run, generators = reopened.run, reopened.generators
            self._scaler.load_state_dict(reopened.scaler)
            self._schedule_epochs, self._epoch_generators = reopened.schedule_epochs, reopened.epoch_generators
        self._experiment, self._preview = run, None
        self._observers = self._watchers(settings, run)
        self._announce(run, seed, saved)
        self._notify(run_started(run, type(self).__name__, plain_network(toolbox.model), example_shape))
        generators.restore()  # the last before the first step: what a process imports for the first time may draw, too
        if saved is not None and saved.schedule is not None:
            run.save_point(_weights(toolbox), self._state(toolbox))
            run.describe(facts)
        self._saved_at = (run.progress.batch, time.monotonic())
        return run, toolbox

    def _facts_of_run(self, example_shape: Shape) -> dict[str, object]:
        return {
            "trainer": type(self).__name__,
            "bundle": bundle_of(self),
            "padding": padding_to_dict(self._padding),
            "data": {
                "training": describe_loader(self._dataloader),
                "validation": describe_loader(self._validation_dataloader),
            },
            **self.describe(example_shape),
            **self.facts,
        }

    def _watchers(self, settings: TrainSettings, run: Experiment) -> ObserverGroup:
        def report(message: str) -> None:  # also after the run, when the trainer may be in another
            with suppress(Exception):  # its folder may be gone by then
                if self._experiment is run:
                    self.log(message)
                else:
                    run.log(message)

        self._deliveries = deliveries(self._frontend, report, after=self._deliveries)
        return watchers(
            settings=settings,
            save_preview=lambda preview: self.save_preview(
                preview.image, preview.label, preview.output, quality=settings.preview_quality
            ),
            console=self._console,
            others=(*self._extra_observers, *self._deliveries),
            report=report,
        )

    def _announce(self, run: Experiment, seed: int, saved: SavedRun | None) -> None:
        self.log(f"Experiment {run.experiment_id} in {run.folder}")
        self.log(f"{type(self).__name__} on {self.device()}, {run.settings.num_epochs} epochs, seed {seed}")
        if saved is not None:
            within = f", batch {run.progress.batch}" if run.progress.batch else ""
            self.log(f"Continued after epoch {run.progress.epoch}{within}")
        elif run.settings.note:
            self.log(f"Note: {run.settings.note}")
        self._log_early_messages()
        if self._validation_dataloader is None:
            self.log("No validation: the best weights are the last, and there is no score, forecast or early stop")
        if reason := why_not_exact(self._dataloader):
            self.log(f"If this run is interrupted, going on may not give the same numbers: {reason}")

    def _batches_left(self, run: Experiment) -> Iterator[object]:
        if not run.progress.batch:
            self._epoch_generators = GeneratorStates.capture()
        return batches_from(
            self._dataloader,
            epoch=run.progress.epoch,
            first=run.progress.batch,
            epoch_start=self._epoch_generators,
        )

    @contextmanager
    def _gradients_for(self, toolbox: TrainerToolbox, group: Group) -> Iterator[None]:
        """Let a batch's gradients count for its share of a step, and in half precision keep the small ones."""
        if group.count == 1 and not self._scaler.is_enabled():
            yield
            return
        share = torch.full((), 1 / group.count, device=self.device())
        with adapter_of(toolbox.model).gradient_factor(self._scaler.scale(share)):
            yield

    def _say_if_not_compiled(self, toolbox: TrainerToolbox) -> None:
        if isinstance(toolbox.model, NetworkAdapter) and toolbox.model.compile_failure is not None:
            self.log(f"The network could not be compiled and runs as it is: {toolbox.model.compile_failure}")
            toolbox.model.compile_failure = None

    def _save_within_epoch(self, run: Experiment, toolbox: TrainerToolbox) -> None:
        """Save after a step if it is time to, and end the run if it was asked to."""
        interval, (batch, moment) = run.settings.save_every, self._saved_at
        if interval is not None and SaveInterval.parse(interval).is_over(
            steps=run.progress.batch - batch, seconds=time.monotonic() - moment
        ):
            run.save_point(_weights(toolbox), self._state(toolbox))
            self._saved_at = (run.progress.batch, time.monotonic())
        self._stop_if_asked(run, toolbox)

    def _stop_if_asked(self, run: Experiment, toolbox: TrainerToolbox, *, back_to: Moment | None = None) -> None:
        """Save and end the run if a signal asked for it.

        Args:
            run: The run.
            toolbox: Its parts.
            back_to: Where the run goes on from, if not from here.
        """
        if not self._stop.is_pending:
            return
        if back_to is not None:
            run.history.roll_back(back_to.recorded)
            back_to.generators.restore()
        run.save_point(_weights(toolbox), self._state(toolbox))
        self._stop.obey()

    def _moment(self, run: Experiment) -> Moment:
        return Moment(recorded=run.history.mark(), generators=GeneratorStates.capture())

    def _finish_epoch(self, run: Experiment, toolbox: TrainerToolbox, score: float | None) -> None:
        """Save the epoch, then say it: nothing is reported that a crash could take back."""
        improved = run.finish_epoch(score)
        self._epoch_generators = None
        is_best = improved or run.progress.best_epoch == 0  # until there is a score: the newest
        run.save_epoch(_weights(toolbox), self._state(toolbox), score=score, is_best=is_best)
        self._saved_at = (0, time.monotonic())
        self.log(f"Epoch {run.progress.epoch}: {last_epoch_as_text(run.history.metrics())}", on_screen=False)
        self._notify(run.epoch_finished(score, self._preview))
        if self._stop.is_pending and not run.is_complete:
            self._stop.obey()

    def _conclude(self, run: Experiment) -> None:
        if run.early_stopping.triggered:
            tolerance = run.settings.early_stop_tolerance
            self.log(f"Early stopping triggered because the validation score has not improved for {tolerance} epochs")
        elif run.is_out_of_time:
            self.log(f"Stopped after epoch {run.progress.epoch}: another would exceed the time limit")
        if run.progress.best_epoch:
            self.log(f"Best validation score {run.progress.best_score:.4f} at epoch {run.progress.best_epoch}")
        self._notify(run.finished())

    def _to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device(), non_blocking=True)

    def _state(self, toolbox: TrainerToolbox) -> dict[str, object]:
        """Return what a resumed run needs besides the weights."""
        epoch_start = self._epoch_generators
        return {
            "optimizer": toolbox.optimizer.state_dict(),
            "scheduler": toolbox.scheduler.state_dict(),
            "schedule_epochs": self._schedule_epochs,
            "scaler": self._scaler.state_dict(),
            "criterion": toolbox.criterion.state_dict(),
            "ema": None if toolbox.ema is None else _without_weights(toolbox.ema),
            "generators": GeneratorStates.capture().state_dict(),
            "epoch_generators": None if epoch_start is None else epoch_start.state_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A moment that an interrupted run can go back to.

    Attributes:
        recorded: What was recorded until then.
        generators: The random generators.
    """

    recorded: Mapping[str, int]
    generators: GeneratorStates


def _weights(toolbox: TrainerToolbox) -> RunWeights:
    return RunWeights(
        raw=plain_weights(toolbox.model),
        scored=plain_weights(toolbox.ema if toolbox.ema else toolbox.model),
        kind="ema" if toolbox.ema else "raw",
    )


def _without_weights(ema: nn.Module) -> dict[str, Tensor]:
    """Return the state of a moving average besides the weights, which are in files of their own."""
    return {name: value for name, value in ema.state_dict().items() if not name.startswith("module.")}
