"""What several commands read from the command line: options in common, and how their texts become values.

Imports neither PyTorch nor MONAI until a value needs them: ``--help`` has to answer at once.
"""

from __future__ import annotations

import argparse
import math
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from candy_monai.errors import SettingsError

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]
    """What ``add_parser`` of each command adds itself to."""

T = TypeVar("T")

_MEMORY = re.compile(r"(?P<number>[0-9.]+) ?(?P<unit>[KMGT])B?", re.ASCII)


def parse_duration(text: str) -> float:
    """Read a duration such as ``90s``, ``10m`` or ``1h30m``.

    Args:
        text: Hours, minutes and seconds in this order, each with its unit.

    Returns:
        Seconds, positive and finite.

    Raises:
        SettingsError: If it cannot be read, has no unit, or is no time at all.
    """
    from candy_monai.experiment.durations import seconds_of

    return seconds_of(text)


def parse_save_interval(text: str) -> int | str:
    """Read how often to save within an epoch: a number of steps, or a time such as ``10m`` or ``90s``.

    Raises:
        SettingsError: If it is neither.
    """
    from candy_monai.experiment.settings import SaveInterval

    value = int(text) if text.strip().isdecimal() else text
    SaveInterval.parse(value)
    return value


def parse_channels(text: str) -> tuple[int, ...]:
    """Read which channels are a run's, such as ``1,2``.

    Returns:
        The numbers; none for ``none``.

    Raises:
        SettingsError: If it is neither.
    """
    if text.strip().lower() == "none":
        return ()
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise SettingsError(f"{text!r} are no channels: expected numbers such as 1,2, or none")
    return tuple(map(int, numbers))


def parse_memory(text: str) -> int:
    """Read a size of memory such as ``500M`` or ``1.5G``.

    Args:
        text: A number and a unit: K, M, G or T, with or without a B; powers of 1000.

    Returns:
        Bytes.

    Raises:
        SettingsError: If it cannot be read, or is no memory at all.
    """
    match = _MEMORY.fullmatch(text.strip().upper())
    amount = float(match["number"]) if match and match["number"].count(".") <= 1 and match["number"] != "." else 0.0
    if match is None or not 0 < amount < math.inf:
        raise SettingsError(f"{text!r} is no size of memory: expected for example 500M, 1G or 1.5G")
    return int(amount * 1000 ** (" KMGT".index(match["unit"])))


def parse_overrides(items: Iterable[str]) -> dict[str, str]:
    """Read ``KEY=VALUE`` texts. What the keys mean is not looked at.

    Args:
        items: The texts; only the first ``=`` of each separates.

    Raises:
        SettingsError: If one has no key or no ``=``, or a key comes with two different values.
    """
    overrides: dict[str, str] = {}
    for item in items:
        key, separator, value = (part.strip() for part in item.partition("="))
        if not separator or not key:
            raise SettingsError(f"--set {item!r}: expected KEY=VALUE, for example --set batch_size=4")
        if overrides.setdefault(key, value) != value:
            raise SettingsError(f"--set {key} is given twice: {overrides[key]!r} and {value!r}")
    return overrides


def parse_fold(text: str) -> int | Literal["all"]:
    """Read a fold: a number from 0, or ``all``.

    Raises:
        SettingsError: If it is neither.
    """
    if text == "all":
        return "all"
    if not (text.isascii() and text.isdigit()):
        raise SettingsError(f"{text!r} is no fold: expected a number from 0, or 'all'")
    return int(text)


def resolve_device(name: str) -> str:
    """Turn ``auto`` into the best device of this machine, and refuse a device that it does not have.

    Raises:
        SettingsError: If PyTorch does not know the device, or this machine lacks it.
    """
    import torch

    from candy_monai.device import auto_device, why_absent

    if name == "auto":
        return auto_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingsError(f"--device {name!r} is unknown: expected auto, cpu, cuda, cuda:1 or mps") from None
    if reason := why_absent(device):
        raise SettingsError(f"--device {name}: {reason}; use --device auto or --device cpu")
    return name


def as_argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Make a function usable as argparse's ``type``, which would swallow the message of a `SettingsError`."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except SettingsError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def whole_number(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """Return a function for argparse that reads a whole number within bounds."""
    bounds = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"

    def parsed(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum or (maximum is not None and number > maximum):
            raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number {bounds}")
        return number

    return parsed


def new_command(
    subparsers: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    text: str,
    example: str,
) -> argparse.ArgumentParser:
    """Add a command with its help.

    Args:
        subparsers: Where to add it.
        name: The command.
        run: Called with the parsed arguments; returns the exit code.
        summary: One line for the list of commands.
        text: What it does, shown by its ``--help``.
        example: Command lines shown below the options.
    """
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=textwrap.fill(text, 79),
        epilog="\n".join(
            ["examples:" if "\n" in example else "example:", *(f"  {line}" for line in example.split("\n"))]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_debug(parser, default=argparse.SUPPRESS)  # keeps a --debug that stands before the command
    parser.set_defaults(run=run)
    return parser


def add_debug(parser: argparse.ArgumentParser, *, default: bool | str) -> None:
    """Add ``--debug``."""
    parser.add_argument("--debug", action="store_true", default=default, help="show the traceback of an error")


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add the dataset's folder."""
    parser.add_argument("dataset", metavar="DATASET", type=Path, help="a dataset folder in nnU-Net format; only read")


def add_device(parser: argparse.ArgumentParser, *, why: str = "where to compute") -> None:
    """Add ``--device``."""
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help=f"{why}: cpu, cuda, cuda:1, mps (default: auto, the best there is)",
    )


def add_frontend(parser: argparse.ArgumentParser) -> None:
    """Add ``--frontend``."""
    parser.add_argument(
        "--frontend",
        dest="frontends",
        action="append",
        default=[],
        metavar="NAME",
        help="a dashboard to report to: notion, or FILE:Class for one of your own; may be repeated",
    )


def add_transforms(parser: argparse.ArgumentParser) -> None:
    """Add ``--transforms`` and ``--trust``."""
    parser.add_argument(
        "--transforms",
        type=Path,
        metavar="FILE",
        help="a JSON or YAML file of MONAI transforms: a list for training patches, or lists under preprocessing, "
        "augmentation and postprocessing; they extend the plan's, or replace them where they load files (LoadImaged), "
        "cut the patch (RandWarpd) or undo preprocessing (Invertd) themselves",
    )
    add_trust(parser)


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust``."""
    parser.add_argument(
        "--trust",
        action="store_true",
        help="build whatever a list of transforms names, not only known ones: it may run any code, so trust its author",
    )


def add_set(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``."""
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="fix an entry of the plan, for example patch_shape=64,64,32; may be repeated",
    )


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add ``--plan``."""
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="keep an earlier plan, though the dataset has grown: an experiment's folder, or a file that holds a plan",
    )


def add_jobs(parser: argparse.ArgumentParser) -> None:
    """Add ``--jobs``."""
    parser.add_argument(
        "--jobs",
        type=whole_number(1),
        metavar="N",
        help="cases worked on at once (default: one a processor; fewer where memory is short)",
    )


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``, ``--store`` and ``--store-precision``."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("experiments"),
        metavar="DIR",
        help="folder of the experiments (default: experiments)",
    )
    parser.add_argument(
        "--store",
        type=Path,
        metavar="DIR",
        help="folder of preprocessed cases (default: .store in the folder of --out)",
    )
    parser.add_argument(
        "--store-precision",
        choices=("float32", "float16"),
        default="float32",
        help="type of the preprocessed images; float16 takes half the space (default: float32)",
    )
