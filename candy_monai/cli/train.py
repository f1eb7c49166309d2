"""``candy-monai train``: from a dataset folder to a trained experiment."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from candy_monai.cli.feedback import Feedback, add_feedback
from candy_monai.cli.options import (
    Subparsers,
    add_dataset,
    add_launcher,
    add_option_file,
    add_options,
    add_requeue,
    as_argument,
    chosen_launcher,
    chosen_options,
    new_command,
)
from candy_monai.cli.predict import command_for
from candy_monai.errors import SettingsError
from candy_monai.experiment.settings import whole_number
from candy_monai.recipes.options import TrainOptions

if TYPE_CHECKING:
    from candy_monai.recipes.jobs import JobLauncher


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "train",
        run,
        summary="train on a dataset",
        text="Check a dataset, make a plan for it, preprocess it, and train on one fold of it. At the end, the folder "
        "of the experiment and the command for predicting with it are printed.",
        example="candy-monai train Dataset004_Hippocampus --budget 10m\n"
        "candy-monai train Dataset004_Hippocampus --fold 1 --epochs 50 --set batch_size=4 --seed 42\n"
        "candy-monai train Dataset004_Hippocampus --epochs 50 --repeat-seeds 5",
    )
    add_dataset(parser)
    add_training(parser)
    parser.add_argument(
        "--repeat-seeds",
        type=as_argument(whole_number(2).read),
        metavar="N",
        help="train with N consecutive seeds, starting at --seed (default: 0), and report the mean and the standard "
        "deviation of the scores; --budget is the time for one run",
    )
    add_launcher(parser, "the training as a job and return; the same command then shows its state, or continues it")
    add_requeue(parser)
    add_feedback(parser)
    add_option_file(parser)


def add_training(parser: argparse.ArgumentParser, *, but: Sequence[str] = ()) -> None:
    """Add the options that decide a training, except its dataset and the fields of ``but``."""
    length = parser.add_mutually_exclusive_group()
    for name in TrainOptions.names():
        if name not in but:
            add_options(length if name in ("num_epochs", "budget_s") else parser, name)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    options = chosen_options(args)  # before the imports, which take seconds
    ways = [args.launcher and "--launcher", args.requeue and "--requeue", args.repeat_seeds and "--repeat-seeds"]
    if len(given := list(filter(None, ways))) > 1:
        raise SettingsError(f"give {given[0]} or {given[1]}, not both")
    feedback: Feedback = args.feedback
    if (launcher := chosen_launcher(args, feedback.say)) is not None:
        return _submit(args, options, launcher)

    from candy_monai.recipes.seeds import SEEDS, repeat_seeds
    from candy_monai.recipes.train import train_dataset

    elapsed_s = time.monotonic() - args.started
    if args.repeat_seeds is not None:
        spread = repeat_seeds(
            args.dataset, options, num_seeds=args.repeat_seeds, elapsed_s=elapsed_s, on_progress=feedback.say
        )
        feedback.tell("scores", **spread.to_dict())
        if feedback.shows_text:
            print(spread.table())
        return feedback.done("Seeds", spread.folder / SEEDS)
    begun = None
    if args.requeue:
        from candy_monai.recipes.slurm_job import run_of_this_job

        begun = run_of_this_job(args.dataset, options)
    if begun is None:
        folder = train_dataset(args.dataset, options, elapsed_s=elapsed_s, on_progress=feedback.say)
    else:
        from candy_monai.recipes.resume import resume_training

        feedback.say(f"Continuing {begun}, which this job started")
        as_planned = dataclasses.replace(options, num_epochs=None)
        folder = resume_training(begun, as_planned, dataset=args.dataset, on_progress=feedback.say)
    return feedback.done("Experiment", folder, then=command_for(folder, options, dataset=args.dataset))


def _submit(args: argparse.Namespace, options: TrainOptions, launcher: JobLauncher) -> int:
    """Submit the training as a job, or name the experiment of one that is finished."""
    from candy_monai.recipes.jobs import submit_training

    run = submit_training(args.dataset, options, launcher=launcher)
    feedback: Feedback = args.feedback
    if run.scores is not None:
        feedback.say(f"{run.name} is finished")
        folder = run.scores.parent
        return feedback.done("Experiment", folder, then=command_for(folder, options, dataset=args.dataset))
    feedback.say(f"Its output is in {run.log}; the same command shows its state, or continues it")
    return feedback.done("Submitted", run.folder)
