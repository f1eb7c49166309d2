"""``candy-monai train``: from a dataset folder to a trained experiment."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from candy_monai.cli.errors import done
from candy_monai.cli.options import (
    add_dataset,
    add_device,
    add_frontend,
    add_jobs,
    add_out,
    add_plan,
    add_set,
    add_transforms,
    as_argument,
    new_command,
    parse_duration,
    parse_fold,
    parse_overrides,
    parse_save_interval,
    resolve_device,
    whole_number,
)

if TYPE_CHECKING:
    from candy_monai.cli.options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "train",
        run,
        summary="train on a dataset",
        text="Check a dataset, plan for it, preprocess it, and train on one fold of it. Ends by naming the "
        "experiment's folder.",
        example="candy-monai train Dataset004_Hippocampus --budget 10m\n"
        "candy-monai train Dataset004_Hippocampus --fold 1 --epochs 50 --set batch_size=4 --seed 42",
    )
    add_dataset(parser)
    parser.add_argument(
        "--fold",
        type=as_argument(parse_fold),
        default=0,
        metavar="N|all",
        help="the fold to validate on; 'all' trains on every case (default: 0)",
    )
    add_training(parser)
    add_jobs(parser)


def add_training(parser: argparse.ArgumentParser) -> None:
    """Add what decides a training but for its dataset and its fold."""
    parser.add_argument("--bundle", default="unet", metavar="NAME", help="the architecture (default: unet)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=whole_number(1), metavar="N", help="epochs to train (default: the plan's)")
    length.add_argument(
        "--budget",
        type=as_argument(parse_duration),
        metavar="TIME",
        help="train for as long as fits into this time, preparing included: 90s, 10m, 1h30m",
    )
    parser.add_argument(
        "--save-every",
        type=as_argument(parse_save_interval),
        metavar="STEPS|TIME",
        help="save within epochs, too: after so many steps, or as often as 10m or 90s says (default: at their ends)",
    )
    parser.add_argument(
        "--seed", type=whole_number(0, 2**32 - 1), metavar="N", help="seeds the run (default: drawn, and recorded)"
    )
    add_set(parser)
    add_plan(parser)
    add_device(parser)
    add_out(parser)
    parser.add_argument(
        "--splits", type=Path, metavar="FILE", help="a splits_final.json (default: the dataset's own, else 5 folds)"
    )
    parser.add_argument(
        "--num-folds", type=whole_number(2), metavar="N", help="how many folds to make (default: 5, or one a case)"
    )
    parser.add_argument(
        "--groups",
        metavar="REGEX|FILE.csv",
        help="keep cases on one side of a fold that share a group: what the expression finds in the id, or what a CSV "
        "file of case ids and groups says",
    )
    parser.add_argument(
        "--stratify",
        metavar="REGEX|FILE.csv",
        help="give every fold its share of each kind of case; the kinds are said as for --groups",
    )
    parser.add_argument(
        "--trainer", metavar="FILE:Class", help="a SegmentationTrainer of your own; the file is executed"
    )
    add_transforms(parser)
    add_frontend(parser)
    parser.add_argument("--note", default="", metavar="TEXT", help="your words about this run, kept with it")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    overrides = parse_overrides(args.overrides)  # before the imports, which take seconds

    from candy_monai.frontends.choice import choose_frontend

    frontend = choose_frontend(args.frontends)

    from candy_monai.recipes.train import train_dataset

    folder = train_dataset(
        args.dataset,
        bundle=args.bundle,
        fold=args.fold,
        num_epochs=args.epochs,
        budget_s=args.budget,
        save_every=args.save_every,
        seed=args.seed,
        overrides=overrides,
        plan=args.plan,
        jobs=args.jobs,
        device=resolve_device(args.device),
        out=args.out,
        store=args.store,
        store_precision=args.store_precision,
        splits=args.splits,
        groups=args.groups,
        stratify=args.stratify,
        num_folds=args.num_folds,
        note=args.note,
        frontend=frontend,
        trainer=args.trainer,
        transforms=args.transforms,
        trust=args.trust,
        elapsed_s=time.monotonic() - args.started,
    )
    return done("Experiment", folder)
