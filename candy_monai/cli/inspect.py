"""``candy-monai inspect``: the contents, the problems and the plan of a dataset."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from candy_monai.cli.errors import BAD_INPUT, DONE, tell_next
from candy_monai.cli.options import Subparsers, add_options, as_train, chosen_options, new_command
from candy_monai.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from candy_monai.data.datasets.folds import Fold
    from candy_monai.data.inspection.checks import DatasetReport
    from candy_monai.data.inspection.fingerprint import Fingerprint
    from candy_monai.data.planning.explanation import Choice
    from candy_monai.data.planning.plan import Plan
    from candy_monai.recipes.options import TrainOptions


_PLACES_PER_CLASS = 32


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "inspect",
        run,
        summary="check a dataset and show its plan, or show the contents of a MONAI Bundle",
        text="Read every case of a dataset, report problems and unusual findings, and show its fingerprint, the folds "
        "and the plan. Without --out, nothing is written. The exit code is 2 if a problem would stop training. For the "
        "folder of a MONAI Bundle, show its contents, and whether it can be opened without running its Python "
        "code.",
        example="candy-monai inspect Dataset004_Hippocampus --explain\n"
        "candy-monai inspect Dataset027_ACDC --groups '^(patient\\d+)'\n"
        "candy-monai inspect Dataset004_Hippocampus --out hippocampus\n"
        "candy-monai inspect Dataset004_Hippocampus --json > inspection.json\n"
        "candy-monai inspect spleen_ct_segmentation",
    )
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        type=Path,
        help="a dataset folder in nnU-Net format, or the folder of a MONAI Bundle; it is never written to",
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")
    parser.add_argument(
        "--explain", action="store_true", help="give the reason for each entry of the plan, and how to change it"
    )
    parser.add_argument(
        "--out",
        dest="folder",
        type=Path,
        metavar="DIR",
        help="write inspection.png (class frequencies, spacings, shapes, cases) and inspection.json to this folder",
    )
    add_options(parser, "bundle", "trainer", "network", "network_args", "configuration", "overrides", "jobs")
    add_options(parser, "splits", "num_folds", "groups", "stratify")
    add_options(
        parser, "device", help="the device to plan for: cpu, cuda, cuda:1, mps (default: auto, the best available)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    if any((args.dataset / "configs").glob("inference.*")):
        return _inspect_bundle(args)
    options = chosen_options(args)

    from candy_monai.data.inspection.checks import visit_dataset
    from candy_monai.files import check_writable
    from candy_monai.recipes.inspection import INSPECTION, save_inspection
    from candy_monai.recipes.prepare import check_fold_options, chosen_folds, refuse_inside

    if args.folder is not None:
        refuse_inside(args.folder, args.dataset)
        check_writable(args.folder)
    check_fold_options(args.dataset, options)
    checked = visit_dataset(args.dataset, num_workers=options.jobs, places_per_class=_PLACES_PER_CLASS)
    report, fingerprint = checked.report, checked.fingerprint
    if fingerprint is None and not report.problems:
        report = replace(report, problems=("imagesTr: no case; training needs at least one image with its label",))
    planned: tuple[Plan, Sequence[Choice]] | None = None
    folds: tuple[Fold, ...] = ()
    if fingerprint is not None:
        planned, folds = _planned(fingerprint, options), chosen_folds(checked.dataset, options)
        report = replace(report, warnings=checked.warnings_for(folds))
    as_json = _as_json(report, fingerprint, planned, folds)
    if args.json:
        print(as_json)
    else:
        _show(args.dataset, report, fingerprint, planned, folds, explain=args.explain)
    if args.folder is not None:
        from candy_monai.files import atomic_write_text

        args.folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(args.folder / INSPECTION, as_json)
        if fingerprint is not None:
            save_inspection(checked.dataset, fingerprint, args.folder)
        if not args.json:
            print(f"Written to {args.folder}")
    if not args.json and not report.problems:
        tell_next(_next_command(args, options))
    return BAD_INPUT if report.problems else DONE


def _inspect_bundle(args: argparse.Namespace) -> int:
    from candy_monai.incoming.bundle_inspection import inspect_bundle

    if args.explain or args.folder is not None:
        raise SettingsError(
            f"{args.dataset}: is a MONAI Bundle, and --explain and --out apply to datasets only: leave them out"
        )
    inspection = inspect_bundle(args.dataset)
    print(inspection.to_json() if args.json else inspection)
    return DONE if inspection.problem is None else BAD_INPUT


def _next_command(args: argparse.Namespace, options: TrainOptions) -> list[str]:
    """Return the words of the command that trains what was planned; a cascade is trained with its first stage."""
    from candy_monai.recipes.cascade import FIRST, SECOND

    left_out = {"--explain": False, "--out": True}
    if options.configuration != SECOND:
        return as_train(args, but=left_out)
    words = as_train(args, but={**left_out, "--configuration": True}, command="crossval")
    return [*words, "--configurations", f"{FIRST},{SECOND}"]


def _planned(fingerprint: Fingerprint, options: TrainOptions) -> tuple[Plan, Sequence[Choice]]:
    """Return the plan and its explanation."""
    from candy_monai.data.planning.explanation import explain
    from candy_monai.device import find_device
    from candy_monai.recipes.prepare import checked_plan
    from candy_monai.recipes.trainers import chosen_trainer
    from candy_monai.training.segmentation import own_criterion

    trainer = chosen_trainer(options)
    made = checked_plan(fingerprint, options, trainer, find_device(options.device))
    return made, explain(made, fingerprint, criterion_of=own_criterion(trainer))


def _as_json(
    report: DatasetReport,
    fingerprint: Fingerprint | None,
    planned: tuple[Plan, Sequence[Choice]] | None,
    folds: Sequence[Fold],
) -> str:
    content = {
        "problems": list(report.problems),
        "warnings": list(report.warnings),
        "fingerprint": None if fingerprint is None else json.loads(fingerprint.to_json()),
        "plan": None if planned is None else planned[0].to_dict(),
        "explanation": None if planned is None else [vars(choice) for choice in planned[1]],
        "folds": [{"train": fold.train, "val": fold.validation} for fold in folds],
    }
    return json.dumps(content, allow_nan=False)


def _show(
    dataset: Path,
    report: DatasetReport,
    fingerprint: Fingerprint | None,
    planned: tuple[Plan, Sequence[Choice]] | None,
    folds: Sequence[Fold],
    *,
    explain: bool,
) -> None:
    from rich.console import Console

    from candy_monai.cli.tables import explanation_text, fingerprint_table, plan_table

    if fingerprint is not None and planned is not None:
        made, choices = planned
        console = Console()
        console.print(fingerprint_table(fingerprint))
        console.print(explanation_text(choices) if explain else plan_table(made))
        print(f"Folds: {len(folds)}, validation cases {', '.join(str(len(fold.validation)) for fold in folds)}")
    for kind, texts in (("warning", report.warnings), ("problem", report.problems)):
        for text in texts:
            print(f"{kind}: {text}", file=sys.stderr)
    if report.problems:
        print(
            f"{dataset}: {len(report.problems)} problem{'s' * (len(report.problems) != 1)} to fix before training",
            file=sys.stderr,
        )
    else:
        print("No problems found: ready for training.")
