"""``candy-monai export``: a trained experiment in a format that runs where candy_monai is not installed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from candy_monai.cli.errors import done
from candy_monai.cli.options import add_checkpoint, add_options, new_command
from candy_monai.export.targets import TARGETS

if TYPE_CHECKING:
    from candy_monai.cli.options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    targets = ", ".join(f"{name} ({target.summary})" for name, target in TARGETS.items())
    parser = new_command(
        subparsers,
        "export",
        run,
        summary="write a trained experiment for other software",
        text="Write a trained experiment in a format that runs where candy_monai is not installed. Every target but "
        "monai-bundle is the network in one file, with a JSON file beside it that says what it takes to use it: "
        "spacing, orientation, normalisation, window, classes. What was written is compared with the experiment on "
        "real cases, and is not kept if it differs.",
        example="candy-monai export experiments/UNetTrainer/20251101-14-a3f2 hippocampus --to monai-bundle\n"
        "candy-monai export experiments/crossval-Dataset004_Hippocampus hippocampus --to monai-bundle\n"
        "candy-monai export experiments/UNetTrainer/20251101-14-a3f2 hippocampus.onnx --to onnx\n"
        "candy-monai export RUN hippocampus-v1.0.0 --to slicer --images imagesTs",
    )
    parser.add_argument(
        "experiments",
        metavar="EXPERIMENT",
        nargs="+",
        type=Path,
        help="an experiment's folder, that of a cross-validation, or of a trained nnU-Net; several become "
        "an ensemble, where the target is monai-bundle",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to write, or the file")
    parser.add_argument("--to", metavar="TARGET", required=True, help=targets)
    parser.add_argument(
        "--portable",
        action="store_true",
        help="monai-bundle: name MONAI's transforms alone, of which some only come near those of the experiment; by "
        "default the bundle carries ours",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--images",
        type=Path,
        metavar="PATH",
        help="an image or a folder of images to compare on (default: two cases that the experiment was validated on, "
        "from its dataset; with monai-bundle up to ten)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file, or the bundle, that is there")
    add_options(
        parser,
        "trainer",
        help="the trainer of your own that trained it, needed for any that is none of the bundles'; "
        "the file is executed",
    )
    add_options(parser, "trust")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.export.exporting import export_experiments

    written = export_experiments(
        args.experiments,
        args.out,
        to=args.to,
        portable=args.portable,
        checkpoint=args.checkpoint,
        images=args.images,
        trainer=args.trainer,
        trust=args.trust,
        overwrite=args.overwrite,
    )
    return done("Exported", written)
