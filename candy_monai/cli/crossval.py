"""``candy-monai crossval``: train every fold of a dataset and sum up their scores."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from candy_monai.cli.errors import done
from candy_monai.cli.options import add_dataset, new_command, parse_overrides, whole_number
from candy_monai.cli.train import add_training

if TYPE_CHECKING:
    from candy_monai.cli.options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "crossval",
        run,
        summary="train every fold, side by side, and sum up",
        text="Train each fold of a dataset by a process of its own and write the mean of their validation scores. "
        "Every option of 'train' holds for each fold; a --budget is one fold's. The same command after an interruption "
        "leaves finished folds as they are and goes on with the others.",
        example="candy-monai crossval Dataset004_Hippocampus --jobs 2 --epochs 50",
    )
    add_dataset(parser)
    parser.add_argument(
        "--jobs", type=whole_number(1), default=1, metavar="N", help="folds trained at the same time (default: 1)"
    )
    add_training(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    parse_overrides(args.overrides)  # what is wrong with them is better said once than by every fold

    from candy_monai.data.planning.files import read_plan
    from candy_monai.recipes.crossval import cross_validate

    if args.plan is not None:
        read_plan(args.plan)

    summary = cross_validate(
        args.dataset,
        options=_options(args),
        jobs=args.jobs,
        out=args.out,
        store=args.store,
        num_folds=args.num_folds,
        groups=args.groups,
        stratify=args.stratify,
        splits=args.splits,
        device=args.device,
    )
    print(_as_text(json.loads(summary.read_text(encoding="utf-8"))))
    return done("Summary", summary)


def _options(args: argparse.Namespace) -> list[str]:
    """Return the options that every fold's ``train`` gets, as they would be typed."""
    single = {
        "--bundle": args.bundle,
        "--epochs": args.epochs,
        "--budget": None if args.budget is None else f"{args.budget}s",
        "--save-every": args.save_every,
        "--seed": args.seed,
        "--store-precision": args.store_precision,
        "--plan": None if args.plan is None else args.plan.resolve(),
        "--trainer": None if args.trainer is None else _absolute(args.trainer),
        "--transforms": None if args.transforms is None else args.transforms.resolve(),
        "--note": args.note or None,
    }
    repeated = [("--set", text) for text in args.overrides] + [("--frontend", name) for name in args.frontends]
    chosen = [(name, str(value)) for name, value in single.items() if value is not None]
    flags = ["--trust"] if args.trust else []
    return [*flags, *(text for pair in (*chosen, *repeated) for text in pair)]


def _absolute(where: str) -> str:
    file, separator, name = where.rpartition(":")
    return f"{Path(file).resolve()}{separator}{name}" if separator else where


def _as_text(summary: dict[str, Any]) -> str:
    """Lay the scores out: a line a fold, then their mean."""
    names = list(summary["classes"])
    rows = [["fold", "Dice", *(f"class {name}" for name in names)]]
    rows += [
        [str(fold["fold"]), *_numbers(fold["foreground_mean"], [fold["classes"].get(name) for name in names])]
        for fold in summary["folds"]
    ]
    rows.append(["mean", *_numbers(summary["foreground_mean"], [summary["classes"][name] for name in names])])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)


def _numbers(mean: float | None, classes: list[float | None]) -> list[str]:
    return ["-" if value is None else f"{value:.4f}" for value in (mean, *classes)]
