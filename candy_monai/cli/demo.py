"""``candy-monai demo``: the whole workflow on synthetic data."""

from __future__ import annotations

import argparse
from pathlib import Path

from candy_monai.cli.errors import done
from candy_monai.cli.options import Subparsers, add_options, new_command


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "demo",
        run,
        summary="try candy_monai on a synthetic dataset",
        text="Write a small synthetic dataset, train on it for a few minutes, predict cases that were not trained on, "
        "and show the result in one picture. Needs neither data nor a GPU.",
        example="candy-monai demo --out candy_demo --budget 2m",
    )
    add_options(parser, "out", default=Path("candy_demo"), help="folder for all files (default: candy_demo)")
    add_options(
        parser, "budget_s", default=120.0, help="time for preparation and training: 90s, 10m, 1h30m (default: 2m)"
    )
    add_options(parser, "device")
    add_options(parser, "seed", default=0, help="random seed of the data and the run (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.demo.run import run_demo

    picture = run_demo(args.out, budget_s=args.budget_s, device=args.device, seed=args.seed)
    return done("Picture", picture)
