"""The end of a command: its exit code, and the output about its result or its error."""

from __future__ import annotations

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import TypeGuard

from candy_monai.errors import BadInputError, CandyError
from candy_monai.launched import is_first

PROGRAM = "candy-monai"

DONE = 0
FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130
"""The exit code of a program that was ended by Ctrl-C."""

_MOST_LINES = 8


def report(error: BaseException, *, debug: bool) -> int:
    """Print an error to standard error and return its exit code."""
    if debug:
        traceback.print_exception(error)
    message, code = outcome_of(error)
    say(message if code == INTERRUPTED else f"error: {message}")
    if not debug and _is_unexpected(error):
        say("run again with --debug to see the traceback")
    return code


def outcome_of(error: BaseException) -> tuple[str, int]:
    """Return the message of an error that ends a command, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted{f': {error}' if str(error) else ''}", INTERRUPTED
    if isinstance(error, CandyError):
        return str(error), BAD_INPUT if isinstance(error, BadInputError) else FAILED
    if _is_of_a_full_disk(error):
        file = error.filename or "a file"
        return f"{file}: cannot be written, the disk is full; free some space and try again", FAILED
    if _is_another_process_s(error):
        return "another process of this run has ended; its own message says why", FAILED
    return _unexpected(error), FAILED


def done(what: str, where: object, *, then: Sequence[str] = ()) -> int:
    """Print the place of the result and the next command, once for all processes, and return the exit code."""
    if is_first():
        print(f"{what}: {where}")
        tell_next(then)
    return DONE


def tell_next(then: Sequence[str]) -> None:
    """Print the command that one would use next, if there is one."""
    if then:
        print(f"Next: {shlex.join(then)}")


def say(message: str) -> None:
    """Print a message to standard error, under the program's name."""
    print(f"{PROGRAM}: {message}", file=sys.stderr)


def _is_unexpected(error: BaseException) -> bool:
    is_known = isinstance(error, KeyboardInterrupt | CandyError) or _is_of_a_full_disk(error)
    return not is_known and not _is_another_process_s(error)


def _is_of_a_full_disk(error: BaseException) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _is_another_process_s(error: BaseException) -> bool:
    """Return whether this process, one of several under torchrun, only noticed that another one was gone."""
    text = str(error)
    return os.environ.get("WORLD_SIZE", "1") != "1" and any(
        f"Connection {what} by peer" in text for what in ("closed", "reset")
    )


def _unexpected(error: BaseException) -> str:
    """Return the type and the message, which may have hundreds of lines for mismatching weights."""
    lines = str(error).splitlines()
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], f"... {len(lines) - _MOST_LINES} more lines"]
    said = ": ".join(filter(None, [type(error).__name__, "\n".join(lines)]))
    return "\n".join([said, *getattr(error, "__notes__", ())])
