"""Functions shared by the commands: adding a command, and the options of `TrainOptions`.

This module imports neither PyTorch nor MONAI, so that ``--help`` is fast.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from typing_extensions import override

from candy_monai.cli.errors import PROGRAM
from candy_monai.errors import SettingsError
from candy_monai.experiment.settings import FLAG
from candy_monai.launched import refuse_several
from candy_monai.recipes.options import TrainOptions, parsed_pairs

if TYPE_CHECKING:
    from candy_monai.recipes.jobs import JobLauncher

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""The object to which ``add_parser`` of each command adds its parser."""

T = TypeVar("T")
_WIDTH = 79
_FIELDS = {field.name: field for field in dataclasses.fields(TrainOptions)}


def new_command(
    subparsers: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    text: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add a command; ``run`` gets the parsed arguments and returns the exit code.

    ``summary`` stands in the list of commands, ``text`` and, below the options, ``example`` in the command's help.
    """
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=textwrap.fill(text, _WIDTH, break_on_hyphens=False),
        epilog="\n".join(
            ["examples:" if "\n" in example else "example:", *(_as_shell(line) for line in example.split("\n"))]
        ),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    add_debug(parser, default=argparse.SUPPRESS)  # keeps a --debug that stands before the command
    parser.set_defaults(run=run)
    return parser


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Breaks lines between words alone: an option that is broken at a hyphen cannot be copied."""

    @override
    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def _as_shell(command: str) -> str:
    """Return a command line of an example, continued as a shell reads it where it is longer than the help."""
    kept = re.sub(r"(?<= )(--\S+|>) (?=[^-\s])", "\\1\0", command)  # an option and its value stay on one line
    lines = textwrap.wrap(kept, _WIDTH - 2, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False)
    return " \\\n".join(lines).replace("\0", " ")


def as_train(
    args: argparse.Namespace, *, but: Mapping[str, bool] = MappingProxyType({}), command: str = "train"
) -> list[str]:
    """Return the words of the command that trains with the options of one that prepares it, whose options it has.

    ``but`` are options that it has not, each with whether a value follows it.
    """
    place = args.words.index(args.command)  # only options without a value stand before it
    given = iter([*args.words[:place], command, *args.words[place + 1 :]])
    words = []
    for word in given:
        name, equals, _ = word.partition("=")
        if name not in but:
            words.append(word)
        elif not equals and but[name]:
            next(given, None)
    return [PROGRAM, *words]


def add_debug(parser: argparse.ArgumentParser, *, default: bool | str) -> None:
    """Add ``--debug``."""
    parser.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add the dataset's folder."""
    parser.add_argument(
        "dataset", metavar="DATASET", type=Path, help="a dataset folder in nnU-Net format; it is never written to"
    )


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Add ``--checkpoint``."""
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="NAME",
        help="the weights: best, latest, or the name of a weight file in the experiment (default: best)",
    )


def add_options(parser: argparse._ActionsContainer, *names: str, **changes: Any) -> None:
    """Add options as `TrainOptions` declares them, with other arguments of ``add_argument`` where given."""
    for name in names:
        facts = _FIELDS[name].metadata
        arguments: dict[str, Any] = {"dest": name, "help": facts["help"], "default": _FIELDS[name].default}
        if facts["kind"] is FLAG:
            arguments["action"] = "store_true"
        else:
            arguments |= {"metavar": facts["metavar"], "type": as_argument(facts["kind"].read)}
        if facts["collected"] is not None:
            arguments |= {"action": "append", "default": [], "type": str}
        parser.add_argument(facts["flag"], **{**arguments, **changes})


def add_requeue(parser: argparse.ArgumentParser) -> None:
    """Add ``--requeue``."""
    parser.add_argument(
        "--requeue",
        action="store_true",
        help="in a SLURM job: on SIGTERM or SIGUSR1, which 'sbatch --signal USR1@120' sends before the time limit, "
        "save and requeue the job; when it starts again, the same command continues",
    )


def add_launcher(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--launcher`` and ``--launcher-args``; ``what`` are the jobs that are submitted, and what happens then."""
    parser.add_argument(
        "--launcher",
        choices=("slurm", "local"),
        help=f"submit {what}; local: as processes of this machine, to try it out (needs the extra 'slurm')",
    )
    parser.add_argument(
        "--launcher-args",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a resource of a job, as a long option of sbatch: time=12:00:00 (required), partition=gpu, "
        "gpus-per-node=1; may be repeated",
    )


def chosen_launcher(args: argparse.Namespace, say: Callable[[str], None] = print) -> JobLauncher | None:
    """Return the launcher given on the command line; None if there is none.

    Raises:
        SettingsError: If jobs cannot be submitted in this way.
    """
    arguments = parsed_pairs(args.launcher_args, flag="--launcher-args", example="partition=gpu")
    if args.launcher is None:
        if arguments:
            raise SettingsError("--launcher-args needs --launcher, for example --launcher slurm")
        return None
    refuse_several(f"--launcher {args.launcher}")
    from candy_monai.recipes.jobs import JobLauncher

    return JobLauncher(args.launcher, arguments, say=say)


def add_option_file(parser: argparse.ArgumentParser) -> None:
    """Add ``--options``, with which a cross-validation passes its options to its folds."""
    parser.add_argument("--options", type=Path, metavar="FILE", help=argparse.SUPPRESS)


def chosen_options(args: argparse.Namespace) -> TrainOptions:
    """Return the options of a command line.

    Raises:
        SettingsError: If one does not fit, or contradicts another.
    """
    if getattr(args, "options", None) is not None:
        return TrainOptions.from_json(args.options.read_text(encoding="utf-8"))
    values = {}
    for name in _FIELDS.keys() & vars(args).keys():
        collected = _FIELDS[name].metadata["collected"]
        values[name] = getattr(args, name) if collected is None else collected(getattr(args, name))
    return TrainOptions(**values)


def as_argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Make a function usable as argparse's ``type``, which would swallow the message of a `SettingsError`."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except SettingsError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed
