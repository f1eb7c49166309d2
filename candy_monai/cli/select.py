"""``candy-monai select``: choose configuration, ensemble and postprocessing of a cross-validation out of fold."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from candy_monai.cli.errors import DONE, done
from candy_monai.cli.options import Subparsers, add_options, as_argument, new_command
from candy_monai.cli.predict import as_recorded, command_for, parse_memory
from candy_monai.experiment.settings import whole_number
from candy_monai.recipes.options import TrainOptions

if TYPE_CHECKING:
    from candy_monai.recipes.selection import Selection


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "select",
        run,
        summary="choose the best model of a cross-validation",
        text="Predict every case with the models of the fold that left it out, and choose the configuration, or the "
        "ensemble of configurations, with the highest mean Dice. Then choose the threshold of each region, if "
        "classes are regions, and the postprocessing (keep the largest component of the foreground or of single "
        "classes, remove small components, fill holes); a step is kept only if it helps. The choice and its "
        "reasons are written to inference.json in CROSSVAL, which 'predict CROSSVAL' and 'export CROSSVAL' "
        "follow. After an interruption, the same command continues.",
        example="candy-monai select experiments/crossval-Dataset027_ACDC\n"
        "candy-monai select experiments/crossval-Dataset027_ACDC --memory 4G --json",
    )
    parser.add_argument("crossval", metavar="CROSSVAL", type=Path, help="the folder of a cross-validation")
    parser.add_argument(
        "--dataset", metavar="DATASET", type=Path, help="the current path of the dataset (default: its original path)"
    )
    add_options(parser, "device")
    parser.add_argument(
        "--memory",
        type=as_argument(parse_memory),
        metavar="SIZE",
        help="memory limit for predicting a case, as for 'predict' (default: no limit)",
    )
    parser.add_argument(
        "--jobs",
        type=as_argument(whole_number(1).read),
        metavar="N",
        help="number of cases scored at the same time (default: one per processor, fewer if memory is short)",
    )
    add_options(
        parser,
        "trainer",
        help="your own trainer that trained the folds, if it was not that of a bundle; the file is executed",
    )
    add_options(parser, "trust")
    parser.add_argument("--json", action="store_true", help="print the content of inference.json instead of the table")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.experiment.description import read_description
    from candy_monai.recipes.select import select
    from candy_monai.recipes.selection import INFERENCE

    chosen = select(
        args.crossval,
        dataset=args.dataset,
        device=args.device,
        memory=args.memory,
        jobs=args.jobs,
        trainer=args.trainer,
        trust=args.trust,
        on_progress=lambda line: print(line, file=sys.stderr if args.json else sys.stdout),
    )
    if args.json:
        print(json.dumps(chosen.to_dict(), indent=2, allow_nan=False))
        return DONE
    print(as_text(chosen))
    options = TrainOptions(trainer=args.trainer, trust=args.trust)
    options, dataset = as_recorded(read_description(chosen.experiments[0]), options, args.dataset)
    return done("Chosen", args.crossval / INFERENCE, then=command_for(args.crossval, options, dataset=dataset))


def as_text(chosen: Selection) -> str:
    """Lay out the scores of all candidates and of what was chosen, and the reasons."""
    from candy_monai.evaluation.results import aligned_rows
    from candy_monai.metrics.interval import interval_as_text, number_as_text

    labels = list(chosen.scores["classes"])
    rows = [["candidate", "cases", "Dice", "95 % interval", "spread", *labels]]
    last = {**chosen.scores, "name": f"{chosen.scores['name']}, as chosen"}
    for found in (*chosen.candidates, last):
        numbers = [found["dice"], found["std"], *(found["classes"].get(label) for label in labels)]
        dice, *others = map(number_as_text, numbers)
        within = interval_as_text(found["interval_95"])
        rows.append([found["name"], str(found["num_cases"]), dice, within, *others])
    return "\n".join([*aligned_rows(rows), *(f"- {reason}" for reason in chosen.reasons)])
