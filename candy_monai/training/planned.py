"""What a recipe adds to the runs of a trainer: facts and files, events after a run, no earlier runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from candy_monai.experiment.events import Event
from candy_monai.training.trainer import Trainer


def add_to_folder(
    trainer: Trainer, *, facts: Mapping[str, object] | None = None, files: Mapping[str, str] | None = None
) -> None:
    """Add facts and files to the experiment folders of a trainer's next runs."""
    trainer._facts.update(facts or {})
    trainer._files.update(files or {})


def forget_earlier_runs(trainer: Trainer) -> None:
    """Make the forecast of a trainer's next runs learn from their own scores alone, whatever runs there have been."""
    trainer._knows_earlier_runs = False


@contextmanager
def observed_beyond_the_run(trainer: Trainer) -> Iterator[Callable[[Event], None]]:
    """Yield what tells observers of what comes after a trainer's next run; dashboards are closed with the block."""

    def tell(event: Event) -> None:
        assert trainer._run is not None  # it was trained by now
        trainer._run.reporter.notify(event)

    with trainer._dashboards.staying_open():
        yield tell
