"""``candy-monai preprocess``: plan for a dataset and store what training reads."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from candy_monai.cli.errors import done, say
from candy_monai.cli.options import (
    add_dataset,
    add_device,
    add_jobs,
    add_out,
    add_plan,
    add_set,
    add_transforms,
    new_command,
    parse_overrides,
    resolve_device,
)

if TYPE_CHECKING:
    from candy_monai.cli.options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "preprocess",
        run,
        summary="plan for a dataset and preprocess it",
        text="Check a dataset, plan for it, and store the preprocessed cases, as 'train' does first. 'train' then "
        "finds them, given the same --out or --store, --set, --plan, --transforms and --device. Cases that were stored "
        "before are left as they are.",
        example="candy-monai preprocess Dataset004_Hippocampus --set spacing_mm=1,1,1",
    )
    add_dataset(parser)
    add_set(parser)
    add_plan(parser)
    add_jobs(parser)
    add_out(parser)
    add_transforms(parser)
    add_device(parser, why="what to plan for")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    overrides = parse_overrides(args.overrides)

    from rich.console import Console

    from candy_monai.cli.tables import plan_table
    from candy_monai.data.pipelines.building import read_own_transforms
    from candy_monai.recipes.prepare import prepare_dataset

    own = None if args.transforms is None else read_own_transforms(args.transforms, trust=args.trust)
    prepared = prepare_dataset(
        args.dataset,
        overrides=overrides,
        store=args.store,
        out=args.out,
        device=resolve_device(args.device),
        precision=args.store_precision,
        own=own,
        plan_from=args.plan,
        jobs=args.jobs,
        on_progress=print,
    )
    for warning in prepared.warnings:
        say(f"warning: {warning}")
    Console().print(plan_table(prepared.plan))
    return done("Store", prepared.store_folder)
