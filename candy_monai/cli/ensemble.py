"""``candy-monai ensemble``: fuse the label maps of several folders."""

from __future__ import annotations

import argparse
from pathlib import Path

from candy_monai.cli.errors import done
from candy_monai.cli.options import Subparsers, new_command


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "ensemble",
        run,
        summary="fuse the label maps of several tools or annotators",
        text="Fuse the label maps of each case in two or more folders: by majority vote, or by STAPLE, which "
        "estimates the reliability of each folder for each class. The folders must contain the same names on the "
        "same grids; anything else is refused before the images are read. For trained experiments use 'predict', "
        "which averages their probabilities and gives better results.",
        example="candy-monai ensemble annotator1 annotator2 annotator3 fused --method staple\n"
        "candy-monai ensemble ours nnunet totalsegmentator fused",
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="two or more folders of label maps")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="the folder for the fused label maps")
    parser.add_argument(
        "--method",
        choices=("majority", "staple"),
        default="majority",
        help="majority: the most frequent id (the lowest if there are several); staple: SimpleITK's MultiLabelSTAPLE, "
        "which needs the extra staple (default: majority)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.inference.label_fusion import fuse_folders

    def tell(number: int, count: int, case_id: str) -> None:
        print(f"[{number}/{count}] {case_id}", flush=True)

    fuse_folders(args.folders, args.output, method=args.method, on_case=tell)
    return done("Label maps", args.output)
