"""``candy-monai train``: from a dataset folder to a trained experiment."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from candy_monai.cli.feedback import Feedback, add_feedback
from candy_monai.cli.options import add_dataset, add_option_file, add_options, chosen_options, new_command
from candy_monai.cli.predict import command_for
from candy_monai.recipes.options import TrainOptions

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
    add_training(parser)
    add_feedback(parser)
    add_option_file(parser)


def add_training(parser: argparse.ArgumentParser, *, but: Sequence[str] = ()) -> None:
    """Add what decides a training but for its dataset.

    Args:
        parser: Where to add it.
        but: Fields of `TrainOptions` to leave out.
    """
    length = parser.add_mutually_exclusive_group()
    for name in TrainOptions.names():
        if name not in but:
            add_options(length if name in ("num_epochs", "budget_s") else parser, name)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    options = chosen_options(args)  # before the imports, which take seconds

    from candy_monai.recipes.train import train_dataset

    feedback: Feedback = args.feedback
    elapsed_s = time.monotonic() - args.started
    folder = train_dataset(args.dataset, options, elapsed_s=elapsed_s, on_progress=feedback.say)
    return feedback.done("Experiment", folder, then=command_for(folder, options, dataset=args.dataset))
