"""``candy-monai predict``: label maps for images, by one trained experiment or by several."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from candy_monai.cli.errors import DONE
from candy_monai.cli.options import (
    add_device,
    add_trust,
    as_argument,
    new_command,
    parse_channels,
    parse_memory,
    resolve_device,
)

if TYPE_CHECKING:
    from candy_monai.cli.options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "predict",
        run,
        summary="predict with a trained experiment",
        text="Predict the label maps of an image or of a folder of images. Each is written with the shape and the "
        "position in space of its image. Several experiments predict together, by the mean of their probabilities; the "
        "folder of a cross-validation stands for its folds. Images must have the run's channels, as files that end in "
        "_0000, _0001 and so on or in one file; anything else is refused, and --channels says which ones are meant. A "
        "case that cannot be predicted is named and does not stop the others; the command then ends with 1.",
        example="candy-monai predict experiments/UNetTrainer/20251101-14-a3f2 imagesTs predictions\n"
        "candy-monai predict experiments/crossval-Dataset004_Hippocampus imagesTs predictions --probabilities\n"
        "candy-monai predict RUN patient_0001.nii.gz predictions --channels 1,2\n"
        "candy-monai predict runs/fold0 runs/fold1 runs/fold2 imagesTs predictions --mirror --memory 4G",
    )
    parser.add_argument(
        "experiments",
        metavar="EXPERIMENT",
        nargs="+",
        type=Path,
        help="an experiment's folder, or that of a cross-validation; several are averaged",
    )
    parser.add_argument("input", metavar="INPUT", type=Path, help="an image (any of its channels' files), or a folder")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="the folder for the label maps")
    add_device(parser)
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="NAME",
        help="the weights: best, latest, or the name of a weight file in the experiment (default: best)",
    )
    parser.add_argument(
        "--channels",
        type=as_argument(parse_channels),
        metavar="N,N",
        help="which channels are the run's, in its order: 1,2 takes files that end in _0001 and _0002, or these "
        "channels of a file that holds more; none: such numbers belong to the names of the cases (default: 0,1,... and "
        "nothing else may be there)",
    )
    parser.add_argument(
        "--memory",
        type=as_argument(parse_memory),
        metavar="SIZE",
        help="memory that a case may take beside the network and the libraries: 1G, 500M; what does not fit goes "
        "to temporary files (default: no limit)",
    )
    parser.add_argument(
        "--mirror", action="store_true", help="average over mirror images along the plan's axes: better and slower"
    )
    parser.add_argument(
        "--largest-component", action="store_true", help="keep only the largest connected part of each class"
    )
    parser.add_argument(
        "--probabilities",
        action="store_true",
        help="also write CASE_probabilities.nii.gz, a channel a class; the label map is where each is the greatest",
    )
    parser.add_argument(
        "--trainer",
        metavar="FILE:Class",
        help="the trainer of your own that trained it, needed for any that is none of the bundles'; "
        "the file is executed",
    )
    add_trust(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.cli.progress import PredictionProgress
    from candy_monai.recipes.predict import load_experiments

    predictor = load_experiments(
        args.experiments,
        trainer=args.trainer,
        checkpoint=args.checkpoint,
        device=resolve_device(args.device),
        mirror=args.mirror,
        largest_component=args.largest_component,
        memory=args.memory,
        channels=args.channels,
        trust=args.trust,
    )
    with PredictionProgress() as progress:
        written = predictor.predict_to_files(
            args.input, args.output, probabilities=args.probabilities, listener=progress
        )
    print(f"{len(written)} label {'map' if len(written) == 1 else 'maps'} in {args.output}")
    return DONE
