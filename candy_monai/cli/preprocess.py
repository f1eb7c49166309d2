"""``candy-monai preprocess``: plan for a dataset and store its preprocessed cases."""

from __future__ import annotations

import argparse
import dataclasses

from candy_monai.cli.errors import DONE, done
from candy_monai.cli.options import Subparsers, add_dataset, add_options, as_train, chosen_options, new_command


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "preprocess",
        run,
        summary="plan for a dataset and preprocess it",
        text="Check a dataset, make a plan for it, and store the preprocessed cases, which is also the first part of "
        "'train'. 'train' then uses them, if it is given the same --out or --store, --bundle, --trainer or "
        "--network with its --network-args, --configuration, --set, --plan, --transforms and --device. Cases "
        "that are already stored are skipped. Processes started by torchrun share the cases.",
        example="candy-monai preprocess Dataset004_Hippocampus --set spacing_mm=1,1,1\n"
        "torchrun --nproc-per-node 2 -m candy_monai preprocess Dataset004_Hippocampus --jobs 1",
    )
    add_dataset(parser)
    add_options(parser, "bundle", "trainer", "network", "network_args", "configuration", "overrides", "plan", "jobs")
    add_options(parser, "previous")
    add_options(parser, "out", "store", "store_precision", "transforms", "trust")
    add_options(
        parser, "device", help="the device to plan for: cpu, cuda, cuda:1, mps (default: auto, the best available)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    options = dataclasses.replace(chosen_options(args), fold="all")  # preprocessed alike, whatever the folds are

    from rich.console import Console

    from candy_monai.cli.tables import plan_table
    from candy_monai.device import find_device
    from candy_monai.processes import Processes
    from candy_monai.recipes.prepare import prepare_dataset
    from candy_monai.recipes.train import Parts

    parts = Parts.of(options)
    processes = Processes.from_environment()
    prepared = prepare_dataset(
        args.dataset,
        options,
        own=parts.own,
        trainer=parts.trainer,
        device=processes.device_of(find_device(options.device)),
        processes=processes,
        on_progress=print if processes.is_main else lambda _: None,
    )
    if not processes.is_main:
        return DONE
    Console().print(plan_table(prepared.plan))
    return done("Store", prepared.store.folder, then=as_train(args))
