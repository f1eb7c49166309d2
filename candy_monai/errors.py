"""The exceptions that this library raises on purpose, and helpers for their messages.

Each message contains what was received, what was expected and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

WARNING = "Warning: "
"""The prefix of warnings in logs and on the screen."""


class CandyError(Exception):
    """Base class of all errors that candy_monai raises on purpose."""


class BadInputError(CandyError, ValueError):
    """The user's input cannot be used; nothing was started. The exit code of the command line is 2."""


class SettingsError(BadInputError):
    """A setting is unknown, out of range or contradicts another one."""


class DatasetError(BadInputError):
    """A dataset cannot be used. Lists every problem, each with its file.

    Args:
        dataset: The dataset, usually its folder.
        problems: One line each: the file, what was found, what was expected, what to do.
    """

    def __init__(self, dataset: object, problems: Sequence[str]) -> None:
        self.dataset = str(dataset)
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"{self.dataset}: {count} found before any work started:{lines}")


class ImageReadError(BadInputError):
    """An image file is missing, damaged or of a format that no installed reader supports."""


class ExperimentError(BadInputError):
    """An experiment folder is missing, incomplete or not what was expected."""


class RunFailedError(CandyError, RuntimeError):
    """A run failed after its start for a reason other than its input, such as a full disk."""


class NonFiniteLossError(CandyError, ArithmeticError):
    """The training loss became NaN or infinite and the policy is to stop."""


class MissingExtraError(CandyError, ImportError):
    """An optional package is needed but not installed; the message names the extra that contains it."""


@contextmanager
def case_named(case_id: str) -> Iterator[None]:
    """Add a note with the case to an exception in a block."""
    try:
        yield
    except Exception as error:
        if (note := f"Raised for the case {case_id}") not in getattr(error, "__notes__", ()):  # of a wrapped dataset
            error.add_note(note)
        raise


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions that an exception was raised from, the last one first; not those of ours, which say it."""
    while (cause := error.__cause__) is not None and not isinstance(error, CandyError):
        yield cause
        error = cause


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the closest candidate, or an empty string if none is close."""
    close = difflib.get_close_matches(name, list(candidates), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def reason_in_short(error: Exception, longest: int = 200) -> str:
    """Return an error's type and message in one line; PyTorch's messages have several lines, with wrong advice."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:longest]
