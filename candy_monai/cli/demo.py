"""``candy-monai demo``: the whole way on made-up data."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from candy_monai.cli.errors import done
from candy_monai.cli.options import add_device, as_argument, new_command, parse_duration, resolve_device, whole_number

if TYPE_CHECKING:
    from candy_monai.cli.options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "demo",
        run,
        summary="try everything on a made-up dataset",
        text="Write a small made-up dataset, train on it for a few minutes, predict cases that were not trained "
        "on, and show the result in one picture. Needs no data and no GPU.",
        example="candy-monai demo --out candy_demo --budget 2m",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("candy_demo"),
        metavar="DIR",
        help="folder for everything (default: candy_demo)",
    )
    parser.add_argument(
        "--budget",
        type=as_argument(parse_duration),
        default=120.0,
        metavar="TIME",
        help="time for preparing and training: 90s, 10m, 1h30m (default: 2m)",
    )
    add_device(parser)
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**32 - 1),
        default=0,
        metavar="N",
        help="seeds the data and the run (default: 0)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.demo.run import run_demo

    picture = run_demo(args.out, budget_s=args.budget, device=resolve_device(args.device), seed=args.seed)
    return done("Picture", picture)
