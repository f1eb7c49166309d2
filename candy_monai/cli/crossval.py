"""``candy-monai crossval``: train every fold of a dataset and summarise the scores."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

from candy_monai.cli.errors import PROGRAM
from candy_monai.cli.feedback import Feedback, add_feedback
from candy_monai.cli.options import (
    Subparsers,
    add_dataset,
    add_launcher,
    add_requeue,
    as_argument,
    chosen_launcher,
    chosen_options,
    new_command,
)
from candy_monai.cli.predict import command_for
from candy_monai.cli.train import add_training
from candy_monai.experiment.settings import whole_number
from candy_monai.text import as_word


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "crossval",
        run,
        summary="train every fold and summarise the scores",
        text="Train each fold of a dataset in a separate process, score every case with the model of the fold that "
        "left it out, and summarise these scores. All options of 'train' apply to each fold; --budget is the "
        "time for one fold. With --configurations, several configurations are trained on the same folds, for "
        "'select' to choose from. After an interruption, the same command skips finished folds and continues the "
        "others.",
        example="candy-monai crossval Dataset004_Hippocampus --jobs 2 --epochs 50\n"
        "candy-monai crossval Dataset027_ACDC --configurations 2d,3d --budget 30m\n"
        "candy-monai crossval Dataset027_ACDC --launcher slurm --launcher-args time=12:00:00 --launcher-args gpus=1",
    )
    add_dataset(parser)
    parser.add_argument(
        "--jobs",
        dest="num_parallel",
        type=as_argument(whole_number(1).read),
        metavar="N",
        help="number of folds trained at the same time, each with its share of the processors (default: 1, or all as "
        "SLURM jobs)",
    )
    parser.add_argument(
        "--configurations",
        type=_names,
        metavar="2d,3d|all",
        help="train each of these configurations on every fold: 2d, 3d, 3d_lowres, 3d_cascade (with 3d_lowres as its "
        "first stage); all: those that suit the dataset (default: the one of --configuration)",
    )
    add_training(parser, but=("fold", "jobs"))
    add_launcher(parser, "each fold as a job and wait for all; Ctrl-C cancels them")
    add_requeue(parser)
    add_feedback(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    options = chosen_options(args)

    from candy_monai.recipes.crossval import cross_validate

    feedback: Feedback = args.feedback
    try:
        file = cross_validate(
            args.dataset,
            options,
            configurations=args.configurations,
            num_parallel=args.num_parallel,
            launcher=chosen_launcher(args, feedback.say),
            on_progress=feedback.say,
        )
    except KeyboardInterrupt:
        feedback.say("The cross-validation was interrupted; the same command continues it")
        raise
    scores = json.loads(file.read_text(encoding="utf-8"))
    feedback.tell("scores", **scores)
    if feedback.shows_text:
        print(as_text(scores))
    then = command_for(file.parent, options, dataset=args.dataset)
    return feedback.done(
        "Summary", file, then=[PROGRAM, "select", as_word(file.parent)] if "configurations" in scores else then
    )


def as_text(summary: dict[str, Any]) -> str:
    """Format scores: a line for each fold, their mean, and that over all cases; or a line for each configuration."""
    from candy_monai.evaluation.results import aligned_rows
    from candy_monai.metrics.interval import interval_as_text, number_as_text

    if "configurations" in summary:
        of_each = summary["configurations"]
        note = (
            "Dice: mean over all cases, each scored by the fold that left it out; spread: standard deviation of the "
            "folds' means"
        )
        return "\n".join([*aligned_rows(_table(of_each)), note])
    means = {**summary, "fold": "mean"}
    rows = [["fold", "Dice", *_headings(summary["classes"], summary["class_names"])]]
    for fold in (*summary["folds"], means):
        scores = [fold["foreground_mean"], *(fold["classes"].get(label) for label in summary["classes"])]
        rows.append([str(fold["fold"]), *map(number_as_text, scores)])
    cases, within = summary["cases"], interval_as_text(summary["cases"]["interval_95"])
    dice = number_as_text(cases["foreground_mean"])
    over_cases = f"over {cases['num_cases']} cases: Dice {dice} (95 % interval {within})"
    return "\n".join(
        [*aligned_rows(rows), f"{over_cases}; standard deviation over folds {number_as_text(summary['std'])}"]
    )


def _table(of_each: dict[str, Any]) -> list[list[str]]:
    """Return a row for each configuration, below the headings."""
    from candy_monai.metrics.interval import interval_as_text, number_as_text

    names = {label: name for one in of_each.values() for label, name in one["class_names"].items()}
    labels = list(dict.fromkeys(label for one in of_each.values() for label in one["cases"]["classes"]))
    rows = [["configuration", "folds", "cases", "Dice", "95 % interval", "spread", *_headings(labels, names)]]
    for name, one in of_each.items():
        scored = sum(fold["foreground_mean"] is not None for fold in one["folds"])
        cases = one["cases"]
        numbers = [cases["foreground_mean"], one["std"], *(cases["classes"].get(label) for label in labels)]
        dice, *others = map(number_as_text, numbers)
        within = interval_as_text(cases["interval_95"])
        rows.append([name, f"{scored}/{len(one['folds'])}", str(cases["num_cases"]), dice, within, *others])
    return rows


def _headings(labels: Iterable[str], names: dict[str, str]) -> list[str]:
    return [names.get(label, f"class {label}") for label in labels]


def _names(text: str) -> tuple[str, ...] | str:
    """Read ``2d,3d`` or ``all``."""
    return "all" if text.strip() == "all" else tuple(name.strip() for name in text.split(","))
