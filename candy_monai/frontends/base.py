"""The base class of all dashboards: callbacks that do nothing, and access to secrets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import ClassVar, TypeVar, overload

from candy_monai.config import Secret, Secrets, environment_variable, secrets_file
from candy_monai.errors import SettingsError
from candy_monai.experiment.events import Event

S = TypeVar("S", bound=Secret)


class Frontend:
    """A dashboard that receives the events of a run. Override the callbacks that you need.

    A callback may raise: the run continues, and a frontend that fails five times in a row is not called again. Read the
    secrets in the constructor, so that a missing one is reported before training starts.

    The callbacks of a run are called in order and one at a time, on a separate thread: a slow or hanging frontend does
    not delay the training. While a callback takes longer than half a second, a finished epoch replaces an earlier
    pending one; the start and the end of the run are always reported. Pending events are delivered after
    `Trainer.train` has returned, or when the program ends, where one call may take five seconds, or four times the
    longest call before.

    The thread shares the process with the training. Callbacks receive copies, and their return values are ignored; but
    a callback that seeds or draws from the global random generators (``random``, ``numpy.random``, ``torch``) changes
    the random numbers of the training, and one that computes continuously slows it down. Use a separate generator
    (``random.Random()``, ``numpy.random.default_rng()``, ``torch.Generator()``), and do heavy work elsewhere.

    Args:
        secrets: The user's secrets by name. Only a copy whose ``repr`` hides the values is kept.

    Attributes:
        catches_up: Whether the report of an epoch includes all epochs before it, so that only the last unreported
            epochs are lost. The log says at the end of a run which were lost.
    """

    catches_up: ClassVar[bool] = False
    _write_log: Callable[[str], None] | None = None

    def __init__(self, secrets: Mapping[str, Secret]) -> None:
        self._secrets = secrets if isinstance(secrets, Secrets) else Secrets(secrets)

    def log(self, msg: str) -> None:
        """Write a message into the log of the current run; outside of a run it is a warning.

        Args:
            msg: Any text without secrets.
        """
        if self._write_log is None:
            warnings.warn(msg, RuntimeWarning, stacklevel=2)
        else:
            self._write_log(msg)

    def log_to(self, write: Callable[[str], None]) -> None:
        """Set the function that `log` calls with each text; called at the start of each run."""
        self._write_log = write

    def parts(self) -> tuple[Frontend, ...]:
        """Return the frontends that are called separately: this one, or the parts of a hybrid one."""
        return (self,)

    @overload
    def require_nonempty_secret(self, entry: str) -> str: ...

    @overload
    def require_nonempty_secret(self, entry: str, *, require_type: type[S]) -> S: ...

    def require_nonempty_secret(self, entry: str, *, require_type: type[object] = str) -> object:
        """Return a secret, or raise an error that says how to set it.

        Text is converted if a number is requested, since environment variables hold only text.

        Args:
            entry: The secret's name.
            require_type: The required type: ``str``, ``int``, ``float`` or ``bool``.

        Raises:
            SettingsError: If the secret is missing, empty or of another type. Its value is not shown.
        """
        remedy = (
            f"run 'candy-monai config set-secret {entry}', or set the environment variable"
            f" {environment_variable(entry)}, or {entry!r} in {secrets_file()} (mode 600)"
        )
        value = self._secrets.get(entry)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise SettingsError(f"{type(self).__name__} needs the secret {entry!r}: {remedy}")
        if type(value) is require_type:
            return value
        if require_type in (int, float) and not isinstance(value, bool):
            with suppress(ValueError):  # reported below, without the value
                return float(value) if require_type is float else int(str(value))
        raise SettingsError(
            f"{type(self).__name__} needs the secret {entry!r} as {require_type.__name__},"
            f" got {type(value).__name__}: {remedy}"
        )

    def on_experiment_created(
        self,
        experiment_id: str,
        trainer: str,
        model: str,
        note: str,
        num_params: float,
        num_macs: float,
        num_epochs: int,
        early_stop_tolerance: int | None,
    ) -> None:
        """Receive the start of a run.

        Args:
            experiment_id: The run's id, ``YYYYMMDD-HH-xxxx``.
            trainer: The trainer's class name.
            model: The network's class name.
            note: The user's note, possibly empty.
            num_params: Number of parameters of the network (not in millions).
            num_macs: Number of multiply-accumulate operations of one forward pass of the example input (not in
                billions); NaN if they could not be counted.
            num_epochs: Number of planned epochs.
            early_stop_tolerance: Epochs without improvement after which the run stops; None for never.
        """

    def on_experiment_updated(
        self, experiment_id: str, epoch: int, metrics: dict[str, list[float]], early_stop_tolerance: int | None
    ) -> None:
        """Receive a finished epoch.

        Args:
            experiment_id: The run's id.
            epoch: The finished epoch, counted from 1.
            metrics: The values of every metric over the epochs so far; NaN for missing ones.
            early_stop_tolerance: Remaining epochs without improvement before the run stops; None for no limit.
        """

    def on_experiment_completed(self, experiment_id: str) -> None:
        """Receive the end of the run, including early stopping.

        Args:
            experiment_id: The run's id.
        """

    def on_experiment_interrupted(self, experiment_id: str, error: BaseException) -> None:
        """Receive the end of a run that failed or was interrupted.

        Args:
            experiment_id: The run's id.
            error: What ended it: an error, or ``KeyboardInterrupt``.
        """

    def on_event(self, event: Event) -> None:
        """Receive an event, which contains more than its callback, and is delivered after it.

        Args:
            event: A `RunStarted`, `EpochFinished` (without its preview's tensors: the pictures are in the run's
                folder), `RunFinished` or `RunInterrupted`, or after a planned run the `RunScored` of its best weights.
        """

    def on_experiment_closed(self, experiment_id: str) -> None:
        """Receive the final call of a run: its pictures are drawn, and its best weights are scored.

        Args:
            experiment_id: The run's id.
        """
