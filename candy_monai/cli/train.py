"""``candy-monai train``: from a dataset folder to a trained experiment."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from candy_monai.cli.errors import done
from candy_monai.cli.options import add_dataset, add_option_file, add_options, chosen_options, new_command
from candy_monai.cli.predict import command_for

if TYPE_CHECKING:
    from candy_monai.cli.options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "train",
        run,
        summary="train on a dataset",
        text="Check a dataset, plan for it, preprocess it, and train on one fold of it. Ends by naming the "
        "experiment's folder, and the command that predicts with it.",
        example="candy-monai train Dataset004_Hippocampus --budget 10m\n"
        "candy-monai train Dataset004_Hippocampus --fold 1 --epochs 50 --set batch_size=4 --seed 42",
    )
    add_dataset(parser)
    add_options(parser, "fold")
    add_training(parser)
    add_options(parser, "jobs")
    add_option_file(parser)


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add what decides a training but for its dataset, its fold and its preprocessing."""
    add_options(parser, "bundle")
    add_options(parser.add_mutually_exclusive_group(), "num_epochs", "budget_s")
    add_options(parser, "save_every", "seed", "overrides", "plan", "device", "out", "store", "store_precision")
    add_options(parser, "splits", "num_folds", "groups", "stratify", "trainer", "transforms", "trust")
    add_options(parser, "frontends", "note")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    options = chosen_options(args)  # before the imports, which take seconds

    from candy_monai.recipes.train import train_dataset

    folder = train_dataset(args.dataset, options, elapsed_s=time.monotonic() - args.started)
    return done("Experiment", folder, then=command_for(folder, options, dataset=args.dataset))
