"""What makes a run one run across steps, interruptions and processes: its batches, its saves, what processes agree on.

Trains nothing and sets nothing up.
"""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.utils.data import DataLoader

from candy_monai.attachment import Surroundings, attachment_of
from candy_monai.device import HasDevice
from candy_monai.errors import BadInputError
from candy_monai.experiment.checkpoints import WeightsKind
from candy_monai.experiment.events import EpochFinished
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.history import last_epoch_as_text
from candy_monai.experiment.serialization import plain
from candy_monai.experiment.settings import SaveInterval
from candy_monai.experiment.state import RunWeights, TrainerState
from candy_monai.network import plain_network, plain_weights
from candy_monai.own_generators import OwnGenerators
from candy_monai.processes import Processes
from candy_monai.seeding import GeneratorStates
from candy_monai.training.accumulation import Group
from candy_monai.training.example import OpenedStream
from candy_monai.training.gradients import ScaledBackward, trained_parameters
from candy_monai.training.interruption import StopRequest
from candy_monai.training.overridables import Overridables
from candy_monai.training.replay import batches_from
from candy_monai.training.reporting import Reporting
from candy_monai.training.toolbox import TrainerToolbox
from candy_monai.training.unsaved import unsaved_parts


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A moment that an interrupted run can go back to.

    Attributes:
        recorded: What was recorded until then.
        generators: The random generators.
    """

    recorded: Mapping[str, int]
    generators: GeneratorStates


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What all processes do after a group of batches.

    Attributes:
        usable: Whether the optimizer steps.
        save: Whether the run is saved.
        stop: Whether it ends.
        cut: Whether the epoch ends here, since the time is up.
    """

    usable: bool
    save: bool
    stop: bool
    cut: bool = False


class Continuity(Overridables, Reporting, HasDevice):
    """The part of a trainer that keeps a run in one piece."""

    _dataloader: DataLoader[Any]

    def __init__(self) -> None:
        Reporting.__init__(self)
        self._processes = Processes()
        self._stop = StopRequest()
        self._scaler = GradScaler("cpu", enabled=False)
        self._scaled_backward = ScaledBackward(self._scaler)
        self._surroundings = Surroundings()
        self._scored: WeightsKind = "raw"
        self._said: set[str] = set()
        self._schedule_epochs = 0
        self._epoch_generators: GeneratorStates | None = None
        self._own_generators = OwnGenerators()
        self._saved_at = (0, 0.0)
        self._untold: EpochFinished | None = None
        self._opened: OpenedStream | None = None

    def _batches_left(self, run: Experiment) -> Iterator[object]:
        if not run.progress.batch:
            self._epoch_generators = self._captured()
        opened, self._opened = self._opened, None
        if opened is not None:
            return iter(opened)
        return batches_from(
            self._dataloader,
            epoch=run.progress.epoch,
            first=run.progress.batch,
            epoch_start=self._epoch_generators,
            own=self._own_generators,
        )

    def _agree(self, run: Experiment, toolbox: TrainerToolbox, group: Group, *, usable: bool) -> Agreement:
        """Ask all processes what to do after a group of batches, and average the gradients of those that step."""
        interval, (batch, moment) = run.settings.save_every, self._saved_at
        is_over = interval is not None and SaveInterval.parse(interval).is_over(
            steps=run.progress.batch - batch, seconds=time.monotonic() - moment
        )
        run.step_done(num_batches=group.count)
        flags = [not usable, is_over, self._stop.is_pending, run.left_s <= 0]
        if self._processes.count > 1:
            parameters = trained_parameters(toolbox)
            flags += [parameter.grad is not None for parameter in parameters]
            flags = self._processes.any_of(flags)
            taking_part = [parameter for parameter, has in zip(parameters, flags[4:], strict=True) if has]
            for parameter in taking_part:
                if parameter.grad is None:  # without a part in this process's passes only
                    parameter.grad = torch.zeros_like(parameter)
            self._processes.average([parameter.grad for parameter in taking_part if parameter.grad is not None])
        return Agreement(usable=not flags[0], save=flags[1], stop=flags[2], cut=flags[3])

    def _after_group(self, run: Experiment, toolbox: TrainerToolbox, agreed: Agreement) -> None:
        """Save the run within its epoch, and end it, as it was agreed."""
        if agreed.save or agreed.stop:
            self._tell_of_saved_epoch(run, wait=True)
            run.save_point(weights_of(toolbox, self._scored), self._state(run, toolbox))
            self._saved_at = (run.progress.batch, time.monotonic())
        self._tell_of_saved_epoch(run, wait=agreed.stop)
        if agreed.stop:
            self._stop.obey()

    def _tell_of_saved_epoch(self, run: Experiment, *, wait: bool) -> None:
        """Tell those who watch of the last epoch once it is on disk: nothing is reported that a crash could take back.

        Args:
            run: The experiment.
            wait: Wait for what is being written; otherwise it is said now only if it is there already.

        Raises:
            RunFailedError: If it could not be written.
        """
        if not (wait or run.is_saved):
            return
        run.wait_until_saved()
        event, self._untold = self._untold, None
        if event is not None:
            self.log(f"Epoch {event.epoch}: {last_epoch_as_text(event.metrics)}", on_screen=False)
            self._notify(event)

    def _stop_validating_if_asked(self, run: Experiment, toolbox: TrainerToolbox, back_to: Moment) -> None:
        """End the run within a validation if a signal asked for it, saved as it was before the validation.

        With several processes, which are not at the same case, it goes on to the validation's end.
        """
        self._tell_of_saved_epoch(run, wait=False)
        if not self._stop.is_pending or self._processes.count > 1:
            return
        run.history.roll_back(back_to.recorded)
        back_to.generators.restore(self._own_generators)
        self._after_group(run, toolbox, Agreement(usable=True, save=True, stop=True))

    def _stop_after_epoch_if_asked(self, run: Experiment) -> None:
        (stop,) = self._processes.any_of([self._stop.is_pending])
        if stop and not run.is_complete:
            self._tell_of_saved_epoch(run, wait=True)
            self._stop.obey()

    def _captured(self) -> GeneratorStates:
        return GeneratorStates.capture(self._own_generators)

    def _moment(self, run: Experiment) -> Moment:
        return Moment(recorded=run.history.mark(), generators=self._captured())

    def _share_buffers(self, toolbox: TrainerToolbox) -> None:
        """Let every process score the same network: batch statistics are those of the first."""
        models = [toolbox.model] if toolbox.ema is None else [toolbox.model, toolbox.ema]
        for model in models:
            self._processes.share(plain_network(model).buffers())

    def _share_clock(self, run: Experiment) -> None:
        """Let every process go by the first one's clock, which decides how many epochs are left."""
        if self._processes.count > 1:
            run.load_clock_state(self._processes.broadcast(run.clock_state()))

    def _say_if_not_compiled(self, toolbox: TrainerToolbox) -> None:
        attachment = attachment_of(toolbox.model)
        if attachment is not None and attachment.compile_failure is not None:
            self.log(f"The network could not be compiled and runs as it is: {attachment.compile_failure}")
            attachment.compile_failure = None

    def _average_in_evaluation_mode(self, toolbox: TrainerToolbox) -> None:
        """Keep the average in one mode, so that what it computes does not depend on what came before."""
        if toolbox.ema is not None:
            toolbox.ema.eval()

    def _remember_scored(self, toolbox: TrainerToolbox, called: list[bool]) -> None:
        """Remember which weights the validation scored: those are saved as the best.

        Args:
            toolbox: Holds model and average.
            called: Whether the model was called in any process, and whether the average was.
        """
        if toolbox.ema is None:
            return
        raw, averaged = called
        self._scored = "raw" if raw and not averaged else "ema"
        if raw == averaged:
            what = "both toolbox.model and toolbox.ema" if raw else "neither toolbox.model nor toolbox.ema"
            self._say_once(f"validate_case called {what}: checkpoint_best.pth holds the average (toolbox.ema)")
        elif raw:
            self._say_once("validate_case scores toolbox.model: checkpoint_best.pth holds its weights, not the average")

    def _say_once(self, message: str) -> None:
        """Log a message once in a run."""
        if message not in self._said:
            self._said.add(message)
            self.log(message)

    def _say_what_is_not_saved(self, toolbox: TrainerToolbox, state: TrainerState) -> None:
        own: list[object] = [*vars(toolbox).values(), plain_network(toolbox.model), self._scaler, self._dataloader]
        own.append(getattr(self, "_validation_dataloader", None))
        attributes = {f"self.{name}": value for name, value in vars(self).items()}
        names = unsaved_parts(
            {name: value for name, value in attributes.items() if not any(value is part for part in own)},
            saved=[
                vars(state),
                plain_network(toolbox.model).state_dict(),
                {} if toolbox.ema is None else toolbox.ema.state_dict(),
            ],
            extra=state.extra,
        )
        if names:
            self._say_once(
                f"Not saved with the run, so that a resumed one begins with new ones: {', '.join(names)}; "
                "get_extra_state can return their states, and set_extra_state take them up"
            )

    def _state(self, run: Experiment | None, toolbox: TrainerToolbox) -> TrainerState:
        """Return what a resumed run needs besides the weights.

        Every process takes part: each has its own random numbers and, within an epoch, its own part of the metrics.

        Raises:
            BadInputError: If a part of the user's own has something in its state that cannot be saved.
        """
        epoch_start = self._epoch_generators
        own = {
            "generators": self._captured().state_dict(),
            "epoch_generators": None if epoch_start is None else epoch_start.state_dict(),
            "pending": {} if run is None else run.history.pending(),
        }
        state = TrainerState(
            optimizer=plain(toolbox.optimizer.state_dict(), "the optimizer's state", rebuilt=True),
            scheduler=plain(toolbox.scheduler.state_dict(), "the schedule's state", rebuilt=True),
            schedule_epochs=self._schedule_epochs,
            scaler=self._scaler.state_dict(),
            criterion=plain(toolbox.criterion.state_dict(), "the criterion's state", rebuilt=True),
            extra=plain(self.get_extra_state(), f"what {type(self).__name__}.get_extra_state returned"),
            ema=None if toolbox.ema is None else self._state_of_average(toolbox.ema),
            processes=self._processes.gathered(own),
        )
        if run is not None:
            self._say_what_is_not_saved(toolbox, state)
        return state

    def _state_of_average(self, ema: nn.Module) -> dict[str, Any]:
        """Return the state of a moving average, without its weights where they are in files of their own."""
        state = ema.state_dict()
        if self._scored == "raw":
            return state
        return {name: value for name, value in state.items() if not name.startswith("module.")}


def weights_of(toolbox: TrainerToolbox, scored: WeightsKind) -> RunWeights:
    """Return the weights of a run as they are now.

    Args:
        toolbox: Model and average.
        scored: Which of the two are scored; those of the model where there is no average.

    Raises:
        BadInputError: If an extra state of the network cannot be saved.
    """
    averaged = scored == "ema" and toolbox.ema is not None
    return RunWeights(
        raw=_readable(plain_weights(toolbox.model)),
        scored=_readable(plain_weights(toolbox.ema if averaged and toolbox.ema is not None else toolbox.model)),
        kind="ema" if averaged else "raw",
    )


def _readable(weights: dict[str, Any]) -> dict[str, Any]:
    """Return weights if what is no tensor in them can be read back without executing anything."""
    for name, value in weights.items():
        if isinstance(value, Tensor):
            continue
        file = io.BytesIO()
        try:
            torch.save(value, file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception as error:  # pickle fails with whatever an object of the user's own raises
            kind = re.search(r"GLOBAL (\S+) was not", str(error))
            found = f" ({kind[1]})" if kind else ""
            raise BadInputError(
                f"{name} in the network's state_dict, which get_extra_state returned, holds what cannot be saved so "
                f"that it is read back safely{found}: return tensors, Python's numbers and text, and lists and "
                "dictionaries of them; of NumPy's, numbers by .item() and arrays by torch.from_numpy"
            ) from error
    return weights
