"""What surrounds the training loop: how a run begins, how an epoch is saved and told, how it ends. Trains nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from candy_monai.aliases import Device, PathLike, Shape
from candy_monai.device import HasDevice
from candy_monai.experiment.events import Preview, RunInterrupted
from candy_monai.experiment.experiment import EpochWeights, Experiment
from candy_monai.experiment.history import last_epoch_as_text
from candy_monai.experiment.settings import TrainSettings
from candy_monai.network import NetworkAdapter, plain_network, plain_weights
from candy_monai.nn.padding import padding_to_dict
from candy_monai.observers.base import Observer
from candy_monai.seeding import GeneratorStates, draw_seed, set_seed
from candy_monai.training.overridables import Overridables
from candy_monai.training.reporting import Reporting
from candy_monai.training.setup import bundle_of, check_loaders, first_sample, run_started, watchers
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
        model = NetworkAdapter(network, padding=self._padding, amp=settings.amp)
        optimizer = self.build_optimizer(model.parameters())
        return TrainerToolbox(
            model=model,
            optimizer=optimizer,
            scheduler=self.build_scheduler(optimizer, settings.num_epochs),
            criterion=self.build_criterion().to(self.device()),
            ema=self.build_ema(model) if settings.ema else None,
        ), example_shape

    @contextmanager
    def _running(self, settings: TrainSettings) -> Iterator[tuple[Experiment, TrainerToolbox]]:
        """Set a run up, and tell those who watch how it ended."""
        run, toolbox = self._set_up(settings)
        try:
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

    def _set_up(self, settings: TrainSettings) -> tuple[Experiment, TrainerToolbox]:
        self._experiment = None
        check_loaders(self._dataloader, self._validation_dataloader)
        seed = draw_seed() if settings.seed is None else settings.seed
        set_seed(seed, deterministic=settings.deterministic)
        image, label = first_sample(self._dataloader)
        self.check_sample(image, label)
        toolbox, example_shape = self.build_toolbox(settings, image)
        run = Experiment.create(
            self._trainer_folder / type(self).__name__,
            dataclasses.replace(settings, seed=seed),
            {
                "trainer": type(self).__name__,
                "bundle": bundle_of(self),
                "padding": padding_to_dict(self._padding),
                **self.describe(example_shape),
                **self.facts,
            },
            lambda: _state(toolbox),
        )
        self._experiment, self._preview = run, None
        self._observers = watchers(
            settings=settings,
            save_preview=lambda preview: self.save_preview(
                preview.image, preview.label, preview.output, quality=settings.preview_quality
            ),
            console=self._console,
            frontend=self._frontend,
            others=self._extra_observers,
            report=self.log,
        )
        self.log(f"Experiment {run.experiment_id} in {run.folder}")
        self.log(f"{type(self).__name__} on {self.device()}, {settings.num_epochs} epochs, seed {seed}")
        if settings.note:
            self.log(f"Note: {settings.note}")
        self._log_early_messages()
        if self._validation_dataloader is None:
            self.log("No validation: the best weights are the last, and there is no score, forecast or early stop")
        self._notify(run_started(run, type(self).__name__, plain_network(toolbox.model), example_shape))
        return run, toolbox

    def _finish_epoch(self, run: Experiment, toolbox: TrainerToolbox, score: float | None) -> None:
        """Save the epoch, then say it: nothing is reported that a crash could take back."""
        improved = run.finish_epoch(score)
        weights = EpochWeights(
            raw=plain_weights(toolbox.model),
            scored=plain_weights(toolbox.ema if toolbox.ema else toolbox.model),
            kind="ema" if toolbox.ema else "raw",
        )
        is_best = improved or run.progress.best_epoch == 0  # until there is a score: the newest
        run.save_epoch(weights, _state(toolbox), score=score, is_best=is_best)
        self.log(f"Epoch {run.progress.epoch}: {last_epoch_as_text(run.history.metrics())}", on_screen=False)
        self._notify(run.epoch_finished(score, self._preview))

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


def _state(toolbox: TrainerToolbox) -> dict[str, object]:
    """Return what a resumed run needs besides the raw weights, which are in the latest checkpoint."""
    return {
        "optimizer": toolbox.optimizer.state_dict(),
        "scheduler": toolbox.scheduler.state_dict(),
        "criterion": toolbox.criterion.state_dict(),
        "ema": None if toolbox.ema is None else toolbox.ema.state_dict(),
        "generators": GeneratorStates.capture().state_dict(),
    }
