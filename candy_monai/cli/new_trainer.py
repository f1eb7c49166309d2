"""``candy-monai new-trainer``: write a commented file with a trainer to start from."""

from __future__ import annotations

import argparse
from pathlib import Path

from candy_monai.cli.errors import PROGRAM, done
from candy_monai.cli.options import Subparsers, new_command
from candy_monai.cli.starting_files import check_class_name, check_trainer_file, render, snake_case, write_new
from candy_monai.text import as_word


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "new-trainer",
        run,
        summary="write a file with a trainer to start from",
        text="Write a commented Python file with a working trainer: a small network and the methods that are most "
        "often changed. Existing files are not overwritten.",
        example="candy-monai new-trainer MyTrainer\ncandy-monai new-trainer MyTrainer --out ideas/first.py",
    )
    parser.add_argument("name", metavar="NAME", help="the name of the class, such as MyTrainer")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the file to write (default: the name in snake case, such as my_trainer.py, in the current folder)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    check_class_name(args.name)
    path = args.out or Path(f"{snake_case(args.name)}.py")
    check_trainer_file(path)
    write_new(path, render("trainer.py", name=args.name, file=path.name))
    return done("Trainer", path, then=[PROGRAM, "train", "DATASET", "--trainer", f"{as_word(path)}:{args.name}"])
