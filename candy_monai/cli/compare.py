"""``candy-monai compare``: methods on the same cases, with differences, tests and a ranking."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from candy_monai.cli.errors import DONE
from candy_monai.cli.options import Subparsers, new_command
from candy_monai.evaluation.class_metrics import CLASS_METRICS


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "compare",
        run,
        summary="compare evaluations case by case: differences, tests, ranking",
        text="Compare two or more methods on the same cases: means with confidence intervals, paired differences with "
        "confidence intervals, Wilcoxon's signed-rank test with Holm's correction, and a ranking (rank for each "
        "case and class, then average). The exit code is 2 if cases, classes, references or the definition of a "
        "metric differ.",
        example="candy-monai compare ours/summary.json nnunet/summary.json\n"
        "candy-monai compare experiments/crossval-a experiments/crossval-b --groups 'patient(\\d+)'\n"
        "candy-monai compare a.json b.json c.json --metrics dice,hd95 --out comparison.json --plot comparison.png",
    )
    parser.add_argument(
        "evaluations",
        metavar="EVALUATION",
        nargs="+",
        type=Path,
        help="a summary (of 'evaluate --summary' or nnU-Net), a folder with a summary.json, an experiment with a "
        "validation.json, or a cross-validation",
    )
    parser.add_argument("--names", metavar="NAMES", help="their names, separated by commas (default: their paths)")
    parser.add_argument(
        "--metrics",
        metavar="NAMES",
        help=f"{', '.join(name for name, metric in CLASS_METRICS.items() if metric.better)}, separated by commas "
        "(default: all that every evaluation has)",
    )
    parser.add_argument(
        "--groups",
        metavar="REGEX|FILE.csv",
        help="average the cases of a patient and count them once; the patient is what the expression matches in the "
        "case id, or is given by a CSV file of case ids and groups",
    )
    parser.add_argument(
        "--common",
        action="store_true",
        help="compare only the cases that all evaluations have, and list the others (default: an error if the cases "
        "differ)",
    )
    parser.add_argument(
        "--intervals",
        choices=("t", "bootstrap"),
        default="t",
        help="95 %% confidence intervals of means by Student's t or the bootstrap (default: t)",
    )
    parser.add_argument("--classes", action="store_true", help="also show each class")
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw the values of each method as a box plot, and the paired differences with the intervals of their "
        "means",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all results, including those by class, as JSON")
    parser.add_argument("--json", action="store_true", help="print all results as JSON instead of the tables")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.errors import BadInputError
    from candy_monai.evaluation.comparison import compare_evaluations
    from candy_monai.evaluation.summaries import SUMMARY
    from candy_monai.experiment.folder import VALIDATION_SCORES
    from candy_monai.files import check_results_writable

    read = [
        path / name if path.is_dir() else path for path in args.evaluations for name in (SUMMARY, VALIDATION_SCORES)
    ]
    check_results_writable({"--out": args.out, "--plot": args.plot}, read)
    if args.plot is not None and args.plot.suffix.lower() != ".png":
        raise BadInputError(f"--plot: expected a file name that ends in .png, got {args.plot}")
    evaluations = args.evaluations
    if args.names is not None:
        names = [name.strip() for name in args.names.split(",")]
        if len(names) != len(evaluations) or len(set(names)) < len(names) or not all(names):
            raise BadInputError(f"--names: expected {len(evaluations)} different names, got {args.names!r}")
        evaluations = dict(zip(names, evaluations, strict=True))
    found = compare_evaluations(
        evaluations,
        metrics=None if args.metrics is None else [name.strip() for name in args.metrics.split(",")],
        common=args.common,
        groups=args.groups,
        method=args.intervals,
    )
    if args.out is not None:
        found.save(args.out)
    if args.plot is not None:
        found.save_figure(args.plot, classes=args.classes)
    if args.json:
        print(json.dumps(found.to_dict(), indent=2, allow_nan=False))
    else:
        print(found.table(classes=args.classes))
        if args.out is not None:
            print(f"Comparison: {args.out}")
        if args.plot is not None:
            print(f"Plot: {args.plot}")
    for note in found.notes():
        print(note, file=sys.stderr if args.json else sys.stdout)
    return DONE
