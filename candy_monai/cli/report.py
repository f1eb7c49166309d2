"""``candy-monai report``: the page of a run, or one that compares several."""

from __future__ import annotations

import argparse
from pathlib import Path

from candy_monai.cli.errors import done
from candy_monai.cli.options import Subparsers, new_command
from candy_monai.errors import BadInputError


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "report",
        run,
        summary="write the report page of a run, or compare runs",
        text="Write the report.html of a run again, from the files in its folder: curves, scores of cases and "
        "classes, images, plan, settings and log in one file, which opens without a server. This also works for "
        "runs of earlier versions. For several runs, write a page that compares them: differences in settings, "
        "plan and data, their curves, and their scores case by case. For the folder of a cross-validation, write "
        "crossval.html, with the cases of all folds.",
        example="candy-monai report experiments/UNetTrainer/20251101-14-a3f2\n"
        "candy-monai report experiments/UNetTrainer/* --out comparison.html",
    )
    parser.add_argument(
        "experiments",
        metavar="EXPERIMENT",
        nargs="+",
        type=Path,
        help="the folder of an experiment; several are compared",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the file to write (default: report.html in the experiment's folder; for several, comparison.html in "
        "the current folder)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.experiment.runs import configurations_below, folds_below
    from candy_monai.files import check_file_writable
    from candy_monai.report.comparison import COMPARISON, write_comparison
    from candy_monai.report.document import REPORT
    from candy_monai.report.evaluation import write_cross_validation
    from candy_monai.report.observer import write_report

    first, *others = args.experiments
    if args.out is not None:
        check_file_writable(args.out)
        args.out.parent.mkdir(parents=True, exist_ok=True)
    elif others:
        check_file_writable(Path(COMPARISON))
    elif first.is_dir():  # of what is none, the page's writer says what it is
        try:
            check_file_writable(first / REPORT)
        except BadInputError as error:
            raise BadInputError(f"{error}; give another file for the page with --out") from error
    if others:
        return done("Comparison", write_comparison(args.experiments, args.out or Path(COMPARISON)))
    if folds_below(first):
        return done("Report", write_cross_validation(first, to=args.out))
    if configurations := configurations_below(first):
        raise BadInputError(
            f"{first}: a cross-validation of the configurations {', '.join(configurations)}, each of "
            f"which has its own page: give one of them, such as {next(iter(configurations.values()))}"
        )
    return done("Report", write_report(first, to=args.out))
