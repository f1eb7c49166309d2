"""Load a saved run, compare it with the run that is to continue it, and restore the states of its parts."""

from __future__ import annotations

import dataclasses
import io
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn, optim

from candy_monai.attachment import tensors_in
from candy_monai.errors import BadInputError, ExperimentError, RunFailedError, SettingsError, reason_in_short
from candy_monai.experiment.checkpoints import WeightsKind
from candy_monai.experiment.description import ExperimentDescription, read_description
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.serialization import plain, restored
from candy_monai.experiment.settings import TrainSettings
from candy_monai.experiment.state import RunState, RunWeights, TrainerState, load_state, stored_weights
from candy_monai.network import plain_network, plain_weights
from candy_monai.processes import Processes
from candy_monai.seeding import GeneratorStates
from candy_monai.training.loaders import Loaders
from candy_monai.training.schedule import needs_a_metric, step_after_batches
from candy_monai.training.sharding import load_whole_state, options_of
from candy_monai.training.toolbox import TrainerToolbox

Rebuild = Callable[[int], optim.lr_scheduler.LRScheduler]
Continuation = Literal["keep", "stretch", "restart"]

_WAYS_TO_STEP = ("foreach", "fused")
_DEPTH = 3  # of nested lists and dictionaries, in which parts with a state are searched for


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A run on disk, and how it is to be continued.

    Attributes:
        folder: The experiment folder.
        description: The content of ``experiment.json``.
        settings: The keywords of ``train``; after `continued`, those of the continued run.
        is_finished: Whether the run has trained all its epochs.
        schedule: How the learning-rate schedule continues in a longer run; None if the length is unchanged.
        force: Whether differences are accepted.
    """

    folder: Path
    description: ExperimentDescription
    settings: TrainSettings
    is_finished: bool
    schedule: Continuation | None = None
    force: bool = False

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a run's description and state.

        Raises:
            ExperimentError: If the folder is no experiment, or its state is damaged or of another format.
        """
        description, state = read_description(folder), load_state(folder)
        return cls(folder=folder, description=description, settings=state.settings, is_finished=state.is_complete)

    def continued(self, num_epochs: int | None, *, schedule: Continuation | None, force: bool) -> Self:
        """Return this run with the number of epochs up to which it is continued.

        Raises:
            SettingsError: If the number of epochs changes and ``schedule`` is missing or not possible.
        """
        planned = self.settings.num_epochs
        if num_epochs is None or num_epochs == planned:
            if schedule is not None:
                raise SettingsError(
                    f"schedule={schedule!r} (--schedule) needs a num_epochs (--epochs) other than the {planned} "
                    "planned epochs"
                )
            return dataclasses.replace(self, force=force)
        if num_epochs < planned:
            raise SettingsError(
                f"the run was started with {planned} epochs: num_epochs (--epochs) must not be smaller, got "
                f"{num_epochs}"
            )
        choices = ("keep", "restart") if self.is_finished else ("keep", "stretch")
        if schedule not in choices:
            state = "finished" if self.is_finished else "unfinished"
            raise SettingsError(
                f"{num_epochs} epochs instead of {planned}: choose how the learning rate continues in this {state} "
                f"run, schedule={' or '.join(map(repr, choices))} (--schedule {'|'.join(choices)}); got {schedule!r}"
            )
        longer = dataclasses.replace(self.settings, num_epochs=num_epochs)
        return dataclasses.replace(self, settings=longer, schedule=schedule, force=force)

    def refuse_differences(self, present: ExperimentDescription) -> None:
        """Compare the description of the run that is about to continue with the saved one.

        Raises:
            ExperimentError: If anything differs; every difference is listed.
        """
        if not self.force:
            self.description.refuse_differences(present, self.folder, how="force=True (--force)")

    def reopened(self, toolbox: TrainerToolbox, rebuild: Rebuild, processes: Processes) -> ReopenedRun:
        """Open the folder, and load weights and states into the toolbox, which is as built for a new run.

        ``rebuild`` builds the schedule for a number of epochs, with the toolbox's optimizer.

        Raises:
            ExperimentError: If another process trains the run, a file is damaged, or a state does not fit.
        """
        run = Experiment(self.folder, self.settings, writes=processes.is_main)
        with run.closed_on_failure():
            state = restored_in_all(run, processes, "this trainer")
            with refusing_what_does_not_fit(self.folder, "this trainer"):
                if self.schedule is not None and self.is_finished:
                    run.early_stopping.num_stale_epochs = 0
                weights = stored_weights(state, run.checkpoints, self.folder)
                parts = state.trainer
                _load_weights(toolbox, weights, parts.ema)
                toolbox.criterion.load_state_dict(restored(parts.criterion, toolbox.criterion.state_dict()))
                schedule_epochs = self._schedule(toolbox, parts, run, rebuild)
                own = parts.of_process(processes.rank)
                run.history.absorb([own["pending"]])
                epoch_start = own["epoch_generators"]
                return ReopenedRun(
                    run=run,
                    schedule_epochs=schedule_epochs,
                    scored="raw" if toolbox.ema is None else weights.kind,
                    scaler=parts.scaler,
                    extra=restored(parts.extra),
                    generators=GeneratorStates(**own["generators"]),
                    epoch_generators=None if epoch_start is None else GeneratorStates(**epoch_start),
                    gradients=own.get("gradients"),
                )

    def _schedule(
        self,
        toolbox: TrainerToolbox,
        state: TrainerState,
        run: Experiment,
        rebuild: Rebuild,
    ) -> int:
        """Restore the schedule, or rebuild it for a longer run; return the number of epochs that it is built for."""
        made_for = state.schedule_epochs
        optimizer = _stepping_as_built(restored(state.optimizer, options_of(toolbox.optimizer)), toolbox.optimizer)
        has_no_end = self.schedule == "stretch" and needs_a_metric(toolbox.scheduler)
        if self.schedule in (None, "keep") or has_no_end:
            if made_for != self.settings.num_epochs:
                toolbox.scheduler = rebuild(made_for)
            toolbox.scheduler.load_state_dict(restored(state.scheduler, toolbox.scheduler.state_dict()))
            load_whole_state(toolbox.optimizer, optimizer)
            return made_for
        load_whole_state(toolbox.optimizer, optimizer)
        made_for, steps = self.settings.num_epochs, run.progress.step
        if self.schedule == "restart":
            made_for, steps = made_for - run.progress.epoch, 0
        for group in toolbox.optimizer.param_groups:
            initial = group.get("initial_lr", group["lr"])
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(float(initial))  # the same tensor, which schedules change in place
            else:
                group["lr"] = initial
        toolbox.scheduler = rebuild(made_for)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the schedule is stepped without its optimizer on purpose
            step_after_batches(toolbox.scheduler, steps)
        return made_for


def _stepping_as_built(state: dict[str, Any], optimizer: optim.Optimizer) -> dict[str, Any]:
    """Return a saved optimizer's state with ``foreach`` and ``fused`` as in the present optimizer.

    With fused steps the gradient scaler leaves skipping infinite gradients to the optimizer, which other kinds of steps
    do not support; and on a GPU fused steps require the step count to be there.
    """
    for group, built in zip(state.get("param_groups", ()), optimizer.param_groups, strict=False):
        group.update({name: built[name] for name in _WAYS_TO_STEP if name in group and name in built})
    return state


@dataclass(frozen=True, kw_only=True)
class ReopenedRun:
    """A saved run that is ready to continue.

    Attributes:
        run: The experiment, with its folder locked.
        schedule_epochs: Number of epochs that the schedule is built for.
        scored: Which weights the last validation scored.
        scaler: The state of the gradient scaler, empty except with fp16.
        extra: What the trainer's ``get_extra_state`` returned.
        generators: The random generators as they were saved; restore them last.
        epoch_generators: Their states at the start of the interrupted epoch; None between two epochs.
        gradients: How gradients were averaged over processes; None for one process, or before the first step.
    """

    run: Experiment
    schedule_epochs: int
    scored: WeightsKind
    scaler: Mapping[str, Any]
    extra: dict[str, Any]
    generators: GeneratorStates
    epoch_generators: GeneratorStates | None
    gradients: Mapping[str, Any] | None


def restored_in_all(run: Experiment, processes: Processes, what: str) -> RunState:
    """Restore an experiment with a locked folder from its state on disk, in all processes, and return that state.

    The first process makes the files consistent before the others read them; ``what`` is continued, for messages.

    Raises:
        ExperimentError: If a file is damaged or the state does not fit.
        RunFailedError: If the folder is not writable.
    """

    def restored_here() -> RunState:
        with refusing_what_does_not_fit(run.folder, what):
            state = load_state(run.folder)
            run.restore(state)
        return state

    state = restored_here() if processes.is_main else None
    processes.broadcast(None)
    return state or restored_here()


@contextmanager
def refusing_what_does_not_fit(folder: Path, what: str) -> Iterator[None]:
    """Raise `ExperimentError` if the state that is loaded in a block does not fit what it is loaded into."""
    try:
        yield
    except (ExperimentError, RunFailedError, torch.OutOfMemoryError):
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = reason_in_short(error, longest=300)
        raise ExperimentError(f"{folder}: the saved state does not fit {what}: {reason}") from error


def _load_weights(toolbox: TrainerToolbox, weights: RunWeights, ema: Mapping[str, Any] | None) -> None:
    plain_network(toolbox.model).load_state_dict(weights.raw)
    if toolbox.ema is not None:
        plain_network(toolbox.ema).load_state_dict(weights.scored)  # if others are scored, `ema` holds its own weights
        if ema is not None:
            toolbox.ema.load_state_dict(ema, strict=False)


def weights_of(toolbox: TrainerToolbox, scored: WeightsKind) -> RunWeights:
    """Return the present weights of a run; those of the model are scored if there is no average.

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
    """Return the weights if all values other than tensors can be loaded without executing code."""
    for name, value in weights.items():
        if isinstance(value, Tensor):
            continue
        file = io.BytesIO()
        try:
            torch.save(value, file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception as error:  # pickling may raise anything that a user's object raises
            kind = re.search(r"GLOBAL (\S+) was not", str(error))
            found = f" ({kind[1]})" if kind else ""
            raise BadInputError(
                f"{name} in the network's state_dict, which get_extra_state returned, contains an object that cannot "
                f"be loaded with weights_only=True{found}: return tensors, Python's numbers and strings, and lists "
                "and dictionaries of them; convert NumPy's numbers by .item() and its arrays by torch.from_numpy"
            ) from error
    return weights


def state_of(
    toolbox: TrainerToolbox,
    *,
    scored: WeightsKind,
    optimizer: Mapping[str, Any],
    schedule_epochs: int,
    scaler: Mapping[str, Any],
    extra: object,
    processes: Sequence[Mapping[str, Any]],
    trainer: str,
) -> TrainerState:
    """Return the states of a run's parts, which a resumed run needs in addition to the weights; see `TrainerState`.

    ``scored`` says which weights are scored, and ``trainer`` is the trainer's name, for messages.

    Raises:
        BadInputError: If the state of a user's own part contains something that cannot be saved.
    """
    ema = None if toolbox.ema is None else toolbox.ema.state_dict()
    if ema is not None and scored == "ema":  # its weights are in separate files
        ema = {name: value for name, value in ema.items() if not name.startswith("module.")}
    return TrainerState(
        optimizer=plain(optimizer, "the optimizer's state", rebuilt=True),
        scheduler=plain(toolbox.scheduler.state_dict(), "the schedule's state", rebuilt=True),
        schedule_epochs=schedule_epochs,
        scaler=scaler,
        criterion=plain(toolbox.criterion.state_dict(), "the criterion's state", rebuilt=True),
        extra=plain(extra, f"what {trainer}.get_extra_state returned"),
        ema=ema,
        processes=processes,
    )


def unsaved_parts(
    attributes: Mapping[str, object], toolbox: TrainerToolbox, loaders: Loaders, state: TrainerState
) -> list[str]:
    """Return the names and kinds of a trainer's attributes whose ``state_dict`` is not saved.

    A state is saved if its tensors are, or if the extra state contains a dictionary with the same keys.
    """
    networks = [plain_network(network).state_dict() for network in toolbox.networks]
    memory = {_place(tensor) for tensor in tensors_in([vars(state), networks])}
    names = {frozenset(map(str, mapping)) for mapping in _mappings(state.extra)}
    known = [*vars(toolbox).values(), plain_network(toolbox.model), *loaders]
    own = {f"self.{name}": value for name, value in attributes.items() if not any(value is part for part in known)}
    found = []
    for name, part in _parts(own):
        try:
            part_state = part.state_dict()  # type: ignore[attr-defined]
        except Exception:  # another kind of ``state_dict``, or not ready
            continue
        tensors = list(tensors_in(part_state))
        is_saved = (bool(tensors) and all(_place(tensor) in memory for tensor in tensors)) or (
            isinstance(part_state, Mapping) and frozenset(map(str, part_state)) in names
        )
        if part_state and not is_saved:
            found.append(f"{name} ({type(part).__name__})")
    return found


def _parts(attributes: Mapping[str, object], depth: int = 0) -> Iterator[tuple[str, object]]:
    if depth > _DEPTH:
        return
    for name, value in attributes.items():
        members: Iterable[tuple[object, object]] = ()
        if isinstance(value, Mapping) and not isinstance(value, nn.Module):
            members = value.items()
        elif isinstance(value, list | tuple):
            members = enumerate(value)
        elif not isinstance(value, type) and all(
            callable(getattr(value, method, None)) for method in ("state_dict", "load_state_dict")
        ):
            yield name, value
        for key, member in members:
            yield from _parts({f"{name}[{key!r}]": member}, depth + 1)


def _mappings(tree: object) -> Iterator[Mapping[object, object]]:
    if isinstance(tree, Mapping):
        yield tree
    if isinstance(tree, Mapping | list | tuple):
        for member in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _mappings(member)


def _place(tensor: Tensor) -> object:
    """Return a key for a tensor's memory, which a state shares with the object that it belongs to."""
    return tensor.device, tensor.data_ptr() if tensor.numel() else id(tensor), tensor.numel()
