"""The output of a command during its work and at its end: text, or JSON with one object per line."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

from candy_monai.cli.errors import DONE, done, outcome_of, say
from candy_monai.errors import WARNING
from candy_monai.launched import is_first

if TYPE_CHECKING:
    from candy_monai.observers.json_lines import JsonLines


def add_feedback(parser: argparse.ArgumentParser) -> None:
    """Add ``--log-format`` and ``--quiet``."""
    parser.add_argument(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="json: write one JSON object per line to standard output for each event, and everything else to standard "
        "error (default: text)",
    )
    parser.add_argument("--quiet", action="store_true", help="print only warnings and the place of the result")


class Feedback:
    """Reports about a command: as JSON lines, or as text if there are none; when quiet, results and warnings only."""

    def __init__(self, lines: JsonLines | None = None, *, is_quiet: bool = False) -> None:
        self.lines = lines
        self.is_quiet = is_quiet
        self.results: dict[str, Any] = {}

    @property
    def shows_text(self) -> bool:
        """Whether progress and results are shown as text."""
        return self.lines is None and not self.is_quiet

    def say(self, text: str) -> None:
        """Write a message, or a warning, which begins with ``Warning:``."""
        if self.lines is not None:
            self.lines.say(text)
        elif not self.is_quiet:
            print(text)
        elif text.startswith(WARNING):
            say(f"warning: {text.removeprefix(WARNING)}")

    def tell(self, event: str, **facts: Any) -> None:
        """Write an event for programs; text says the same in other words."""
        if self.lines is not None:
            self.lines.write(event, **facts)

    def saved(self, what: str, where: object) -> None:
        """Write the path of a file that was written."""
        if self.lines is None:
            print(f"{what}: {where}")
        else:
            self.lines.write("saved", what=what.lower(), path=str(where))

    def done(self, what: str, where: object, *, then: Sequence[str] = ()) -> int:
        """Write the place of the result, as `errors.done` does, and return the exit code."""
        if self.lines is None:
            return done(what, where, then=() if self.is_quiet else then)
        self.results = {what.lower(): str(where), "next": shlex.join(then) or None}
        return DONE


@contextmanager
def feedback_of(args: argparse.Namespace) -> Iterator[Feedback]:
    """Yield the feedback of a command; runs within the block are displayed in its format.

    In JSON the last line is ``end``, or ``error`` if the block raises. All other output goes to standard error.
    """
    is_quiet = getattr(args, "quiet", False)
    if getattr(args, "log_format", "text") == "json":
        with _as_json(is_quiet) as feedback:
            yield feedback
    elif is_quiet:
        from candy_monai.observers.screen import WarningsObserver, shown_by

        with shown_by(WarningsObserver(lambda text: say(f"warning: {text}"))):
            yield Feedback(is_quiet=True)
    else:
        yield Feedback()


@contextmanager
def _as_json(is_quiet: bool) -> Iterator[Feedback]:
    from candy_monai.observers.json_lines import JsonLines
    from candy_monai.observers.screen import shown_by

    started = time.monotonic()
    lines = JsonLines(sys.stdout if is_first() else None, is_quiet=is_quiet)
    feedback = Feedback(lines, is_quiet=is_quiet)
    try:
        with redirect_stdout(sys.stderr), shown_by(lines):
            yield feedback
    except (Exception, KeyboardInterrupt) as error:
        message, code = outcome_of(error)
        lines.write("error", level="error", message=message, type=type(error).__name__, code=code)
        raise
    lines.write("end", code=DONE, seconds=round(time.monotonic() - started, 3), **feedback.results)
