"""``candy-monai resume``: continue an interrupted training."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from candy_monai.cli.feedback import Feedback, add_feedback
from candy_monai.cli.options import Subparsers, add_option_file, add_options, add_requeue, chosen_options, new_command
from candy_monai.cli.predict import as_recorded, command_for
from candy_monai.recipes.options import TrainOptions

_OF_A_RUN = {
    "num_epochs": "total number of epochs (default: as many as were planned)",
    "store": "folder of preprocessed cases (default: its original path)",
    "previous": "the first stage of the configuration 3d_cascade (default: its original path)",
    "trainer": "your own trainer that the run was started with",
}


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "resume",
        run,
        summary="continue an interrupted training",
        text="Continue a run from its last saved state; on a CPU the result is bit-identical to that of an "
        "uninterrupted run. A finished run is not changed, unless --epochs is larger than before; one with a budget "
        "cannot be extended: start a new run with 'train --init-from'.",
        example="candy-monai resume experiments/UNetTrainer/20251101-14-a3f2\n"
        "candy-monai resume experiments/UNetTrainer/20251101-14-a3f2 --epochs 200 --schedule restart",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", type=Path, help="the experiment's folder")
    for field in dataclasses.fields(TrainOptions):
        if field.metadata["resumes"]:
            add_options(parser, field.name, help=_OF_A_RUN.get(field.name, field.metadata["help"]))
    parser.add_argument(
        "--schedule",
        choices=("keep", "stretch", "restart"),
        help="the learning rate if --epochs extends the run: keep it at its final value; stretch the schedule of an "
        "unfinished run; restart the schedule for the added epochs of a finished run",
    )
    parser.add_argument(
        "--dataset", type=Path, metavar="DIR", help="the current path of the dataset (default: its original path)"
    )
    parser.add_argument(
        "--force", action="store_true", help="continue even if the data, the network or the trainer differ"
    )
    add_requeue(parser)
    add_feedback(parser)
    add_option_file(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    options = chosen_options(args)

    from candy_monai.experiment.description import read_description
    from candy_monai.recipes.resume import resume_training

    feedback: Feedback = args.feedback
    folder = resume_training(
        args.experiment,
        options,
        dataset=args.dataset,
        schedule=args.schedule,
        force=args.force,
        on_progress=feedback.say,
    )
    options, dataset = as_recorded(read_description(folder), options, args.dataset)
    return feedback.done("Experiment", folder, then=command_for(folder, options, dataset=dataset))
