"""Add facts and files of a recipe to the runs of a trainer, send events after a run, or forget earlier runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from candy_monai.experiment.events import Event
from candy_monai.training.trainer import Trainer


def add_to_folder(
    trainer: Trainer, *, facts: Mapping[str, object] | None = None, files: Mapping[str, str | Path] | None = None
) -> None:
    """Add facts and files, as texts or to be copied, to the experiment folders of a trainer's next runs."""
    trainer._facts.update(facts or {})
    trainer._files.update(files or {})


def forget_earlier_runs(trainer: Trainer) -> None:
    """Make the forecast of a trainer's next runs use only their own scores, not earlier runs."""
    trainer._knows_earlier_runs = False


@contextmanager
def observed_beyond_the_run(trainer: Trainer) -> Iterator[Callable[[Event], None]]:
    """Yield a function that sends observers events after a trainer's next run; dashboards stay open in the block."""

    def tell(event: Event) -> None:
        assert trainer._run is not None  # it has been trained by now
        trainer._run.reporter.notify(event)

    with trainer._dashboards.staying_open():
        yield tell
