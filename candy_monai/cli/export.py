"""``candy-monai export``: write a trained experiment in a format that can be used without candy_monai."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from candy_monai.cli.errors import done
from candy_monai.cli.options import Subparsers, add_checkpoint, add_options, new_command
from candy_monai.export.targets import TARGETS
from candy_monai.text import as_word


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    targets = ", ".join(f"{name} ({target.summary})" for name, target in TARGETS.items())
    parser = new_command(
        subparsers,
        "export",
        run,
        summary="write a trained experiment for other software",
        text="Write a trained experiment in a format that can be used without candy_monai. Every target except "
        "monai-bundle is the network in one file, with a JSON file next to it that describes how to use it: "
        "spacing, orientation, normalisation, window, classes. The result is compared with the experiment on "
        "real cases, and is discarded if it differs.",
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
        help="the folder of an experiment, of a cross-validation, or of a trained nnU-Net; with monai-bundle, several "
        "are exported as an ensemble",
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder or the file to write")
    parser.add_argument("--to", metavar="|".join(TARGETS), required=True, help=targets)
    parser.add_argument(
        "--portable",
        action="store_true",
        help="monai-bundle: use only MONAI's transforms, some of which only approximate those of the experiment; by "
        "default the bundle includes candy_monai's",
    )
    add_checkpoint(parser)
    parser.add_argument(
        "--images",
        type=Path,
        metavar="PATH",
        help="an image or a folder of images for the comparison (default: two validation cases of the experiment, "
        "with monai-bundle up to ten)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file or bundle")
    add_options(
        parser,
        "trainer",
        help="your own trainer that trained the experiment, if it was not that of a bundle; the file is executed",
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
    if args.to != "monai-bundle":
        return done("Exported", written)
    code = done("Exported", written, then=["cd", as_word(written)])
    print(f"Then: {shlex.join(_inference_command(args.experiments[0]))}")
    return code


def _inference_command(experiment: Path) -> list[str]:
    """Return MONAI's command for predicting with a bundle in its folder, on the dataset's test cases if any."""
    from candy_monai.experiment.description import DESCRIPTION, read_description

    dataset = read_description(experiment).dataset if (experiment / DESCRIPTION).is_file() else None
    folder = None if dataset is None or dataset.folder is None else Path(dataset.folder).absolute()
    place = "DATASET" if folder is None or not any(folder.glob("imagesTs/*")) else str(folder)
    inference = ["--config_file", "configs/inference.json", "--dataset_dir", place, "--output_dir", "predictions"]
    return ["python", "-m", "monai.bundle", "run", *inference]
