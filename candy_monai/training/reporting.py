"""What a trainer can be asked and told while it runs: messages, metrics, its folder, its forecast. Trains nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from candy_monai.aliases import Metrics, PathLike, Scalar
from candy_monai.config import load_secrets
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.experiment.events import Event, MessageLogged
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.history import column_beside
from candy_monai.experiment.score_prediction import predict_maximum, seconds_until
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.choice import find_frontend, known_frontends
from candy_monai.frontends.delivery import Delivery
from candy_monai.observers.base import ObserverGroup


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """What a preview is drawn for: the trainer's run, and what `preview_style` returned when that run began."""

    trainer: Reporting
    run: Experiment
    style: object


# Of the thread that draws: the trainer may be in its next run when it does.
_drawn: ContextVar[_Drawn | None] = ContextVar("_drawn", default=None)


class Reporting:
    """The link between a trainer, its current experiment and those who watch it.

    What is logged before there is an experiment, while the parts of a run are built, is kept and written into it.
    """

    def __init__(self) -> None:
        self._experiment: Experiment | None = None
        self._early_messages: list[tuple[str, bool]] = []
        self._observers = ObserverGroup((), self.log)
        self._frontend: Frontend | None = None
        self._deliveries: tuple[Delivery, ...] = ()
        self._said_of: set[str] = set()

    def log(self, msg: str, *, on_screen: bool = True) -> None:
        """Write a message to ``logs.txt``, verbatim.

        Args:
            msg: Any text.
            on_screen: Also show it on the screen.
        """
        drawn = self._drawn()
        run = self._experiment if drawn is None else drawn.run
        if run is None:
            self._early_messages.append((msg, on_screen))
            return
        line = run.log(msg)
        if on_screen:
            self._notify(MessageLogged(line))

    def record(self, metric: str, value: Scalar) -> None:
        """Record one value of a metric; the epoch's average goes to ``metrics.csv``.

        A metric that is called like a column of the run's own, such as ``learning rate``, becomes the column
        ``learning rate (metric)``.

        Args:
            metric: The metric's name.
            value: A number or a tensor of one element, NaN for "not measured".

        Raises:
            BadInputError: If it is not one number.
        """
        history, column = self._current().history, column_beside(metric)
        history.record(column, value)
        if column != metric and column not in self._said_of:
            self._said_of.add(column)
            self.log(f"The metric {metric!r} is kept as {column!r}: the run has a column of this name", on_screen=False)

    def record_all(self, metrics: Metrics) -> None:
        """Record one value of each metric."""
        for metric, value in metrics.items():
            self.record(metric, value)

    def metrics(self) -> dict[str, list[float]]:
        """Return every metric over the epochs so far; NaN where an epoch has none."""
        return self._current().history.metrics()

    def experiment_id(self) -> str:
        """Return the id of the current or last run.

        Raises:
            ExperimentError: If there was no run yet.
        """
        return self._current().experiment_id

    def experiment_folder(self) -> Path:
        """Return the folder of the current or last run.

        Raises:
            ExperimentError: If there was no run yet.
        """
        return self._current().folder

    def set_frontend(self, frontend: type[Frontend] | str, *, path_to_secrets: PathLike | None = None) -> None:
        """Report the coming runs to a dashboard.

        Args:
            frontend: The dashboard's class, or the name that the command line has for it, such as ``"notion"``; it is
                made with the user's secrets at once, so a missing one is said now.
            path_to_secrets: Where the secrets are, instead of the user's config folder.

        Raises:
            BadInputError: If it is no dashboard, or none of this name is known.
        """
        if isinstance(frontend, str):
            frontend = find_frontend(frontend, option="set_frontend")
        elif not isinstance(frontend, type) or not issubclass(frontend, Frontend):
            raise BadInputError(
                f"set_frontend was given {frontend!r}, expected a subclass of Frontend, or a name: {known_frontends()}"
            )
        self._frontend = frontend(load_secrets(path_to_secrets))
        self._deliveries = ()

    def predict_maximum_validation_score(self, num_epochs: int, degree: int = 5) -> tuple[int, float]:
        """Forecast the best validation score of the run by quotient regression.

        Args:
            num_epochs: The run's length: the forecast looks no further.
            degree: Upper bound of the polynomials' degree.

        Returns:
            The epoch of the best score and the score. When the curve says too little: the best so far.
        """
        run = self._current()
        prediction = predict_maximum(run.history.metrics(), num_epochs, degree=degree, score_range=run.score_range)
        return prediction.epoch, prediction.score

    def etc(
        self,
        epoch: int,
        num_epochs: int,
        *,
        target_epoch: int | None = None,
        val_score_prediction_degree: int = 5,
    ) -> float:
        """Estimate the seconds until the target epoch is done, never negative.

        Args:
            epoch: Epochs done.
            num_epochs: The run's length.
            target_epoch: The epoch to wait for; None for that of the forecast best score.
            val_score_prediction_degree: The forecast's degree.
        """
        if target_epoch is None:
            target_epoch, _ = self.predict_maximum_validation_score(num_epochs, degree=val_score_prediction_degree)
        return seconds_until(target_epoch, epoch, self._current().history.metrics())

    def _log_early_messages(self) -> None:
        messages, self._early_messages = self._early_messages, []
        for message, on_screen in messages:
            self.log(message, on_screen=on_screen)

    def _notify(self, event: Event) -> None:
        self._observers.receive(event)

    @contextmanager
    def _drawing(self, run: Experiment, style: object) -> Iterator[None]:
        """Let this thread see a run as the current one, and what its previews look like, while the block runs."""
        token = _drawn.set(_Drawn(trainer=self, run=run, style=style))
        try:
            yield
        finally:
            _drawn.reset(token)

    def _drawn(self) -> _Drawn | None:
        """Return what this thread draws a preview for; None if it draws none of this trainer."""
        drawn = _drawn.get()
        return drawn if drawn is not None and drawn.trainer is self else None

    def _current(self) -> Experiment:
        drawn = self._drawn()
        if drawn is not None:
            return drawn.run
        if self._experiment is None:
            raise ExperimentError(f"this {type(self).__name__} has no experiment yet: call train() first")
        return self._experiment
