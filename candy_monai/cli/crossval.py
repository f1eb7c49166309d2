"""``candy-monai crossval``: train every fold of a dataset and sum up their scores."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from candy_monai.cli.feedback import Feedback, add_feedback
from candy_monai.cli.options import add_dataset, as_argument, chosen_options, new_command
from candy_monai.cli.predict import command_for
from candy_monai.cli.train import add_training
from candy_monai.experiment.settings import whole_number

if TYPE_CHECKING:
    from candy_monai.cli.options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "crossval",
        run,
        summary="train every fold, side by side, and sum up",
        text="Train each fold of a dataset by a process of its own and write the mean of their validation scores. "
        "Every option of 'train' holds for each fold; a --budget is one fold's. The same command after an interruption "
        "leaves finished folds as they are and goes on with the others.",
        example="candy-monai crossval Dataset004_Hippocampus --jobs 2 --epochs 50",
    )
    add_dataset(parser)
    parser.add_argument(
        "--jobs",
        dest="num_parallel",
        type=as_argument(whole_number(1).read),
        default=1,
        metavar="N",
        help="folds trained at the same time, each with its share of the processors (default: 1)",
    )
    add_training(parser, but=("fold", "jobs"))
    add_feedback(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    options = chosen_options(args)

    from candy_monai.recipes.crossval import cross_validate

    feedback: Feedback = args.feedback
    summary = cross_validate(args.dataset, options, num_parallel=args.num_parallel, on_progress=feedback.say)
    scores = json.loads(summary.read_text(encoding="utf-8"))
    feedback.tell("scores", **scores)
    if feedback.shows_text:
        print(_as_text(scores))
    return feedback.done("Summary", summary, then=command_for(summary.parent, options, dataset=args.dataset))


def _as_text(summary: dict[str, Any]) -> str:
    """Lay the scores out: a line a fold, then their mean."""
    names = summary["class_names"]
    means = {"fold": "mean", "foreground_mean": summary["foreground_mean"], "classes": summary["classes"]}
    rows = [["fold", "Dice", *(names.get(label, f"class {label}") for label in summary["classes"])]]
    for fold in (*summary["folds"], means):
        scores = [fold["foreground_mean"], *(fold["classes"].get(label) for label in summary["classes"])]
        rows.append([str(fold["fold"]), *("-" if score is None else f"{score:.4f}" for score in scores)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
