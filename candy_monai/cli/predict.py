"""``candy-monai predict``: label maps for images, by a trained experiment."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from candy_monai.cli.options import add_device, new_command, resolve_device

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
        "position in space of its image.",
        example="candy-monai predict experiments/UNetTrainer/20251101-14-a3f2 imagesTs predictions",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", type=Path, help="the experiment's folder")
    parser.add_argument("input", metavar="INPUT", type=Path, help="an image, or a folder of images")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="the folder for the label maps")
    add_device(parser)
    parser.add_argument(
        "--checkpoint",
        default="best",
        metavar="NAME",
        help="the weights: best, latest, or the name of a weight file in the experiment (default: best)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.inference.predictor import load_predictor

    predictor = load_predictor(args.experiment, device=resolve_device(args.device), checkpoint=args.checkpoint)
    written = predictor.predict_to_files(args.input, args.output, on_case=_print_progress)
    print(f"{len(written)} label {'map' if len(written) == 1 else 'maps'} in {args.output}")
    return 0


def _print_progress(done: int, total: int, case_id: str) -> None:
    print(f"[{done}/{total}] {case_id}", flush=True)
