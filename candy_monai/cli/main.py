"""The command line: find the command, parse its arguments, and convert exceptions to an exit code.

Each command is a module of this package with ``add_parser`` and ``run``. Heavy packages are imported only by ``run``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

from typing_extensions import override

from candy_monai.allocation import freed_memory_kept
from candy_monai.cli import (
    compare,
    completion,
    config,
    crossval,
    demo,
    ensemble,
    evaluate,
    export,
    forecast,
    inspect,
    label_issues,
    new_bundle,
    new_trainer,
    predict,
    preprocess,
    report,
    resume,
    select,
    sweep,
    train,
)
from candy_monai.cli.errors import BAD_INPUT, PROGRAM, say
from candy_monai.cli.errors import report as report_error
from candy_monai.cli.feedback import feedback_of
from candy_monai.cli.options import add_debug
from candy_monai.cli.output import output_that_may_be_closed
from candy_monai.errors import did_you_mean
from candy_monai.launched import name_as_torchrun, refuse_several
from candy_monai.process_age import process_age_s

COMMANDS = {
    "demo": demo,
    "inspect": inspect,
    "preprocess": preprocess,
    "train": train,
    "crossval": crossval,
    "select": select,
    "sweep": sweep,
    "resume": resume,
    "predict": predict,
    "ensemble": ensemble,
    "evaluate": evaluate,
    "compare": compare,
    "label-issues": label_issues,
    "export": export,
    "forecast": forecast,
    "report": report,
    "new-trainer": new_trainer,
    "new-bundle": new_bundle,
    "config": config,
    "completion": completion,
}
"""The commands, in the order in which they are typically used."""

_SHARED_OUT = ("preprocess", "train", "resume", "predict")
"""Commands whose work several processes can share; the others run in one process."""


@freed_memory_kept()
def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments without the program's name; None for those of this process.

    Returns:
        0 done, 1 the run failed, 2 wrong arguments or bad input, 130 interrupted.
    """
    # The start of Python and the imports count as time of a command; the time of another caller does not.
    started = time.monotonic() - (process_age_s() if argv is None else 0.0)
    with output_that_may_be_closed():
        return _run(argv, started)


def _run(argv: Sequence[str] | None, started: float) -> int:
    _share_processors()
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        args = _parsed(arguments)
    except SystemExit as end:  # argparse ends so, after help and after errors
        return _code(end)
    try:
        args.started, args.words = started, arguments
        name_as_torchrun()
        if args.command not in _SHARED_OUT:
            refuse_several(f"'{PROGRAM} {args.command}'")
        with feedback_of(args) as args.feedback, _requeued(args):
            code: int = args.run(args)
    except (Exception, KeyboardInterrupt) as error:  # first: a run that was interrupted is a SystemExit, too
        return report_error(error, debug=args.debug)
    except SystemExit as end:
        return _code(end)
    return code


def _requeued(args: argparse.Namespace) -> AbstractContextManager[None]:
    """Return the context in which a command is continued when its job is requeued, if requested."""
    if not getattr(args, "requeue", False):
        return nullcontext()
    from candy_monai.recipes.slurm_job import requeued_if_interrupted

    return requeued_if_interrupted(say)


def _share_processors() -> None:
    """Write the variable by which waiting OpenMP threads sleep early, unless the user has set one, for PyTorch to read.

    By default GNU's OpenMP lets them spin for milliseconds. If other programs run, a thread often waits for one that
    has lost its processor, and a training step takes several times as long as necessary.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


class _Parser(argparse.ArgumentParser):
    """Reports an error in two lines, without the long usage text."""

    @override
    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}\nTry '{self.prog} --help'.\n")


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser, commands = _parser()
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        known = f" Known: {', '.join(COMMANDS)}"
        parser.error(f"unknown command {command!r}.{did_you_mean(command, COMMANDS) or known}")
    args, unknown = parser.parse_known_args(arguments)
    if args.version:
        from candy_monai import __version__

        print(f"{PROGRAM} {__version__}")
        parser.exit()
    if unknown:
        _refuse(unknown, parser if command is None else commands[command])
    if command is None:
        parser.print_help(sys.stderr)
        parser.exit(BAD_INPUT)
    return args


def _parser() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    parser = _Parser(
        prog=PROGRAM,
        description="From a folder of labelled medical images to a trained, checked and deployable MONAI model.",
        epilog=f"'{PROGRAM} COMMAND --help' shows a command's options and an example. To try candy_monai on synthetic "
        f"data: {PROGRAM} demo",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="show the version")
    add_debug(parser, default=False)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for module in COMMANDS.values():
        module.add_parser(subparsers)
    return parser, subparsers.choices


def _refuse(unknown: Sequence[str], parser: argparse.ArgumentParser) -> NoReturn:
    option = next((argument for argument in unknown if argument.startswith("-")), None)
    if option is None:
        parser.error(f"unexpected argument {unknown[0]!r}")
    name = option.partition("=")[0]
    known = [text for action in parser._actions for text in action.option_strings]
    parser.error(f"unknown option {name!r}.{did_you_mean(name, known)}")


def _code(end: SystemExit) -> int:
    return end.code if isinstance(end.code, int) else int(end.code is not None)
