"""``candy-monai label-issues``: rank suspicious regions of a dataset's labels."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from candy_monai.cli.errors import DONE
from candy_monai.cli.options import Subparsers, add_checkpoint, add_options, as_argument, new_command
from candy_monai.experiment.settings import whole_number


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "label-issues",
        run,
        summary="find suspicious labels",
        text="Predict each case of a dataset with the runs that were not trained on it, usually the fold of a "
        "cross-validation that left it out, and list the regions where all of them contradict the label, the "
        "most doubtful first. Writes label_issues.json and a picture of each of the first regions. A listed "
        "region may also be an error of the models, so check it.",
        example="candy-monai label-issues experiments/crossval-Dataset004_Hippocampus issues\n"
        "candy-monai label-issues experiments/crossval-a experiments/crossval-b issues --mirror --pictures 50",
    )
    parser.add_argument(
        "experiments",
        metavar="EXPERIMENT",
        nargs="+",
        type=Path,
        help="the folder of a cross-validation or of a run on one fold; several must belong to the same dataset",
    )
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="the folder for the list and the pictures")
    parser.add_argument(
        "--dataset", type=Path, metavar="FOLDER", help="the current path of the dataset (default: its original path)"
    )
    add_options(parser, "device")
    add_checkpoint(parser)
    parser.add_argument(
        "--mirror", action="store_true", help="average over mirrored images along the mirror axes of the plan"
    )
    parser.add_argument(
        "--pictures",
        type=as_argument(whole_number(0).read),
        default=20,
        metavar="N",
        help="number of regions to draw (default: 20)",
    )
    parser.add_argument("--json", action="store_true", help="print the list as JSON instead of the table")
    add_options(parser, "trainer", help="your own trainer that trained the runs; the file is executed")
    add_options(parser, "trust")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.device import find_device
    from candy_monai.recipes.label_issues import LABEL_ISSUES, find_label_issues

    def tell(line: str) -> None:
        print(line, file=sys.stderr if args.json else sys.stdout, flush=True)

    found = find_label_issues(
        args.experiments,
        args.output,
        dataset=args.dataset,
        most_pictures=args.pictures,
        on_progress=tell,
        device=str(find_device(args.device)),
        checkpoint=args.checkpoint,
        mirror=args.mirror,
        trainer=args.trainer,
        trust=args.trust,
    )
    if args.json:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
        return DONE
    print(found.table())
    if found.left_out:
        left_out = "1 case is" if len(found.left_out) == 1 else f"{len(found.left_out)} cases are"
        print(f"{left_out} left out, since every run was trained on them")
    print(f"Label issues: {args.output / LABEL_ISSUES}")
    return DONE
