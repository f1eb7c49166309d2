"""``candy-monai resume``: go on with an interrupted training."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from candy_monai.cli.errors import done
from candy_monai.cli.options import add_device, add_frontend, add_trust, new_command, resolve_device, whole_number

if TYPE_CHECKING:
    from candy_monai.cli.options import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "resume",
        run,
        summary="go on with an interrupted training",
        text="Continue a run from where it was last saved; on a CPU the result is that of a run that was never "
        "interrupted, to the bit. A run that is finished is left as it is, unless --epochs asks for more.",
        example="candy-monai resume experiments/UNetTrainer/20251101-14-a3f2\n"
        "candy-monai resume experiments/UNetTrainer/20251101-14-a3f2 --epochs 200 --schedule restart",
    )
    parser.add_argument("experiment", metavar="EXPERIMENT", type=Path, help="the experiment's folder")
    parser.add_argument(
        "--epochs", type=whole_number(1), metavar="N", help="epochs in all (default: as many as were planned)"
    )
    parser.add_argument(
        "--schedule",
        choices=("keep", "stretch", "restart"),
        help="what the learning rate does when --epochs makes the run longer: keep it at its end value; stretch the "
        "schedule of an unfinished run; restart it for the added epochs of a finished one",
    )
    parser.add_argument("--dataset", type=Path, metavar="DIR", help="the dataset (default: where it was)")
    parser.add_argument("--store", type=Path, metavar="DIR", help="the store (default: where it was)")
    parser.add_argument("--trainer", metavar="FILE:Class", help="the trainer of your own that the run was begun with")
    parser.add_argument(
        "--force", action="store_true", help="go on even if the data, the network or the trainer are other ones"
    )
    add_trust(parser)
    add_device(parser)
    add_frontend(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.frontends.choice import choose_frontend

    frontend = choose_frontend(args.frontends)

    from candy_monai.recipes.resume import resume_training

    folder = resume_training(
        args.experiment,
        dataset=args.dataset,
        store=args.store,
        num_epochs=args.epochs,
        schedule=args.schedule,
        trainer=args.trainer,
        frontend=frontend,
        device=resolve_device(args.device),
        force=args.force,
        trust=args.trust,
    )
    return done("Experiment", folder)
