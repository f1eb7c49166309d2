"""The base of every dashboard: four callbacks that do nothing, and access to its secrets. Knows no service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, overload

from candy_monai.config import SECRETS_FILE, Secret, Secrets, config_folder, environment_variable
from candy_monai.errors import SettingsError

S = TypeVar("S", bound=Secret)


class Frontend:
    """A remote dashboard that is told what happens in a run. Override the callbacks that you need.

    A callback may raise: the run goes on, and a frontend that keeps failing is dropped. Ask for the secrets in the
    constructor, so that a missing one is reported before training starts.

    Args:
        secrets: The user's secrets by name. Only a copy whose text form hides the values is kept.
    """

    def __init__(self, secrets: Mapping[str, Secret]) -> None:
        self._secrets = secrets if isinstance(secrets, Secrets) else Secrets(secrets)

    @overload
    def require_nonempty_secret(self, entry: str) -> str: ...

    @overload
    def require_nonempty_secret(self, entry: str, *, require_type: type[S]) -> S: ...

    def require_nonempty_secret(self, entry: str, *, require_type: type[object] = str) -> object:
        """Return a secret, or say how to set it.

        Text is turned into a number where a number is asked for, since environment variables hold only text.

        Args:
            entry: The secret's name.
            require_type: What it must be: ``str``, ``int``, ``float`` or ``bool``.

        Raises:
            SettingsError: If the secret is missing, empty or of another type. Its value is not shown.
        """
        remedy = f"set the environment variable {environment_variable(entry)}, or {entry!r} in {_file()} (mode 600)"
        value = self._secrets.get(entry)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise SettingsError(f"{type(self).__name__} needs the secret {entry!r}: {remedy}")
        if type(value) is require_type:
            return value
        if require_type in (int, float) and not isinstance(value, bool):
            try:
                number = float(value) if require_type is float else int(str(value))
            except ValueError:
                pass  # reported below, without the value
            else:
                return number
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
        """Hear that a run starts.

        Args:
            experiment_id: The run's id, ``YYYYMMDD-HH-xxxx``.
            trainer: The trainer's class name.
            model: The network's class name.
            note: The user's note, possibly empty.
            num_params: The network's parameters, as a plain count (not in millions).
            num_macs: Multiply-accumulate operations of one forward pass of the example input, as a plain count (not in
                billions); NaN where they could not be counted.
            num_epochs: The epochs planned.
            early_stop_tolerance: Epochs without improvement after which the run stops; None for never.
        """

    def on_experiment_updated(
        self, experiment_id: str, epoch: int, metrics: dict[str, list[float]], early_stop_tolerance: int | None
    ) -> None:
        """Hear that an epoch is finished.

        Args:
            experiment_id: The run's id.
            epoch: The finished epoch, counted from 1.
            metrics: Every metric over the epochs so far; NaN where an epoch has none.
            early_stop_tolerance: Epochs without improvement that are left before the run stops; None for no limit.
        """

    def on_experiment_completed(self, experiment_id: str) -> None:
        """Hear that the run is finished, early stop included.

        Args:
            experiment_id: The run's id.
        """

    def on_experiment_interrupted(self, experiment_id: str, error: BaseException) -> None:
        """Hear that the run ended before its time.

        Args:
            experiment_id: The run's id.
            error: What ended it: an error, or ``KeyboardInterrupt``.
        """


def _file() -> str:
    return str(config_folder() / SECRETS_FILE)
