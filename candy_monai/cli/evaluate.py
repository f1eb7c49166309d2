"""``candy-monai evaluate``: compare label maps with references."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from candy_monai.cli.errors import DONE
from candy_monai.cli.feedback import Feedback, add_feedback
from candy_monai.cli.options import Subparsers, as_argument, new_command
from candy_monai.errors import SettingsError
from candy_monai.evaluation.class_metrics import CLASS_METRICS, METRIC_GROUPS, metrics_named
from candy_monai.experiment.settings import whole_number

if TYPE_CHECKING:
    from candy_monai.data.datasets.nnunet_description import DatasetDescription
    from candy_monai.evaluation.results import EvalResult
    from candy_monai.evaluation.statistics import Method

_MOST_LISTED = 3


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "evaluate",
        run,
        summary="compare label maps with references",
        text="Compare the label maps of a folder with the references of the same names, and print the mean of each "
        "metric by class. Classes, regions and the ignore label are taken from a dataset.json next to LABELS, in it, "
        "or in PREDICTIONS, if there is one; an id that it does not name is an error. Label maps with differently "
        "oriented axes are brought to the axes of their references. Probabilities next to label maps are ignored. The "
        "exit code is 2 if names, grids or ids do not match.",
        example="candy-monai evaluate predictions Dataset004_Hippocampus/labelsTs\n"
        "candy-monai evaluate predictions labelsTs --metrics dice,hd95 --summary summary.json\n"
        "candy-monai evaluate predictions labelsTs --metrics all --csv cases.csv --intervals t\n"
        "candy-monai evaluate ten_predictions labelsTs --common",
    )
    parser.add_argument(
        "predictions", metavar="PREDICTIONS", type=Path, help="a folder of label maps, or a single label map"
    )
    parser.add_argument(
        "labels", metavar="LABELS", type=Path, help="the folder of the references, or a single reference"
    )
    parser.add_argument(
        "--metrics",
        default="dice,iou",
        metavar="NAMES",
        help=f"{', '.join(CLASS_METRICS)}; or the groups {', '.join(METRIC_GROUPS)}; separated by commas; distances "
        "are in mm (default: dice,iou)",
    )
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        metavar="MM|CLASS=MM,...",
        help="tolerance of surface_dice, for all classes or for some given by name or id (default: 1)",
    )
    parser.add_argument(
        "--subvoxels",
        action="store_true",
        help="measure surfaces between voxels, as DeepMind's surface-distance does (default: the outermost voxels, as "
        "in MONAI)",
    )
    parser.add_argument(
        "--lesions",
        metavar="RULE",
        help="when a lesion counts as detected: panoptica (intersection over union of 0.5), brats (within a dilation "
        "of 3 voxels, above 50 mm3), or entries as in 'iou=0.1,connectivity=faces' or "
        "'brats,dilation=1,least_mm3=2' (default: panoptica)",
    )
    parser.add_argument(
        "--ignore",
        type=int,
        metavar="ID",
        help="label id whose voxels are ignored (default: that of dataset.json, if any)",
    )
    parser.add_argument(
        "--common",
        action="store_true",
        help="compare only the cases that are in both folders, and list the others (default: an error if the cases "
        "differ)",
    )
    parser.add_argument(
        "--summary", type=Path, metavar="FILE", help="write all results in the format of nnU-Net's summary.json"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a CSV file with a row for each case and class")
    parser.add_argument(
        "--intervals",
        choices=("t", "bootstrap"),
        help="show the 95 %% confidence intervals of the means over cases, by Student's t or the bootstrap; the "
        "summary always contains them (by default, by t)",
    )
    parser.add_argument(
        "--jobs",
        type=as_argument(whole_number(1).read),
        metavar="N",
        help="number of cases measured at the same time (default: one per processor, fewer if memory is short)",
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="write an HTML page of the cases and classes, which can be sorted and filtered",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON instead of the table")
    add_feedback(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.evaluation.scored_classes import dataset_evaluator
    from candy_monai.experiment.runs import refuse_run
    from candy_monai.files import check_results_writable

    feedback: Feedback = args.feedback
    if args.json and feedback.lines is not None:
        raise SettingsError("give --json or --log-format json, not both: the one prints a summary, the other events")
    refuse_run(args.predictions)
    results = {"--summary": args.summary, "--csv": args.csv, "--page": args.page}
    check_results_writable(results, [*_files_of(args.predictions), *_files_of(args.labels)])
    metrics = [name.strip() for name in args.metrics.split(",")]
    _refuse_idle(args, metrics)
    description = _description_of(args.labels, args.predictions)
    evaluator = dataset_evaluator(
        description,
        *metrics,
        ignore_label=args.ignore,
        tolerance_mm=1.0 if args.tolerance is None else args.tolerance,
        lesions=args.lesions or "panoptica",
        subvoxels=args.subvoxels,
    )
    done = itertools.count(1)

    def tell_case(case_id: str) -> None:
        if not feedback.is_quiet:
            feedback.tell("case", case=case_id, done=next(done))

    result = evaluator.evaluate(args.predictions, args.labels, common=args.common, jobs=args.jobs, on_case=tell_case)
    notes = [*(_undescribed(args.labels, args.predictions) if description is None else ()), *result.notes()]
    method = cast("Method", args.intervals or "t")
    feedback.tell("scores", scores=result.named_means, num_cases=len(result))
    if args.json:
        print(json.dumps(result.to_dict(method=method), indent=2, allow_nan=False))
    elif feedback.shows_text:
        _show(result, args.intervals)
    _write(result, args, method, notes)
    for note in notes:
        if feedback.lines is not None or feedback.is_quiet:
            feedback.say(f"Warning: {note}")
        else:
            print(note, file=sys.stderr if args.json else sys.stdout)
    return DONE


def _files_of(path: Path) -> list[Path]:
    """Return the label maps of a folder, or the given one, and the other files that are read."""
    from candy_monai.data.images.formats import READABLE
    from candy_monai.data.images.names import image_suffix

    folder = _folder(path)
    inside = [file for file in folder.iterdir() if image_suffix(file) in READABLE] if path.is_dir() else [path]
    return [folder.parent / "dataset.json", folder / "dataset.json", *inside]


def _refuse_idle(args: argparse.Namespace, metrics: Sequence[str]) -> None:
    """Raise SettingsError for an option that concerns none of the requested metrics."""
    asked = metrics_named(metrics)
    kinds = {CLASS_METRICS[name].kind for name in asked}
    for option, is_given, is_used, example in (
        ("--tolerance", args.tolerance is not None, "surface_dice" in asked, "surface_dice"),
        ("--subvoxels", args.subvoxels, "surfaces" in kinds, "surfaces"),
        ("--lesions", args.lesions is not None, "lesions" in kinds, "lesions"),
    ):
        if is_given and not is_used:
            raise SettingsError(
                f"{option} has no effect on --metrics {args.metrics}; leave it out, or add {example} to the metrics"
            )


def _write(result: EvalResult, args: argparse.Namespace, method: Method, notes: Sequence[str]) -> None:
    """Write the requested files, and report each unless the summary is on standard output."""
    tell = (lambda _what, _where: None) if args.json else args.feedback.saved
    if args.summary is not None:
        result.save(args.summary, method=method)
        tell("Summary", args.summary)
    if args.csv is not None:
        result.save_csv(args.csv)
        tell("Table", args.csv)
    if args.page is not None:
        from candy_monai.report.evaluation import write_evaluation

        args.page.parent.mkdir(parents=True, exist_ok=True)
        title = f"{args.predictions} against {args.labels}"
        names = result.class_names
        write_evaluation(result.to_dict(method=method), args.page, title=title, notes=notes, names=names)
        tell("Page", args.page)


def _tolerance(text: str) -> float | dict[int | str, float]:
    """Read ``1.5`` or ``liver=2,kidney=3``."""
    from candy_monai.recipes.options import parsed_pairs

    with suppress(ValueError):
        return float(text)
    pairs = text.split(",")
    if not all(pair.rpartition("=")[0].strip() for pair in pairs):
        raise argparse.ArgumentTypeError(f"expected a number, or CLASS=MM pairs separated by commas, got {text!r}")
    found = as_argument(lambda _: parsed_pairs(pairs, flag="--tolerance", example="liver=2"))(text)
    try:
        return {name: float(value) for name, value in found.items()}
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected CLASS=MM pairs separated by commas, got {text!r}") from None


def _description_of(labels: Path, predictions: Path) -> DatasetDescription | None:
    """Read the description of the label maps, if there is one."""
    from candy_monai.data.datasets.nnunet_description import read_dataset_description

    for folder in _described_in(labels, predictions):
        if (folder / "dataset.json").is_file():
            return read_dataset_description(folder)
    return None


def _described_in(labels: Path, predictions: Path) -> tuple[Path, ...]:
    """Return the folders that may hold a description: next to the labels, with them, with nnU-Net's predictions."""
    of_labels, of_predictions = _folder(labels), _folder(predictions)
    return of_labels.parent, of_labels, of_predictions


def _undescribed(labels: Path, predictions: Path) -> list[str]:
    """Return notes on what a ``dataset.json`` would describe, if there is none."""
    from candy_monai.data.datasets.nnunet_description import misnamed_description
    from candy_monai.data.values import join_names
    from candy_monai.inference.manifest import MANIFEST, regions_in

    folders = _described_in(labels, predictions)
    found = filter(None, map(misnamed_description, dict.fromkeys(folders)))
    notes = [f"ignored: {file}, which must be called dataset.json" for file in found]
    if names := regions_in(folders[-1]):
        notes.append(
            f"single ids were measured, although {folders[-1] / MANIFEST} names the overlapping regions "
            f"{join_names(names)}: to measure these, copy the dataset.json of the dataset to {folders[1]}"
        )
    return notes


def _folder(path: Path) -> Path:
    return (path if path.is_dir() else path.parent).resolve()


def _show(result: EvalResult, intervals: Method | None) -> None:
    print(result.table(intervals=intervals))
    metric = next(iter(result.mean_metrics), None)
    if metric is None or len(result) <= _MOST_LISTED or CLASS_METRICS[metric].better is None:
        return
    worst = (result.max_n if CLASS_METRICS[metric].lower_is_better else result.min_n)(metric, _MOST_LISTED)
    print(f"worst {metric}: " + ", ".join(f"{case.case_id} {case.metrics[metric]:.4f}" for case in worst))
