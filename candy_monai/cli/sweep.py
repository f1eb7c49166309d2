"""``candy-monai sweep``: search settings of a dataset's runs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from candy_monai.cli.errors import done
from candy_monai.cli.options import (
    Subparsers,
    add_dataset,
    add_launcher,
    add_requeue,
    as_argument,
    chosen_launcher,
    chosen_options,
    new_command,
)
from candy_monai.cli.predict import command_for
from candy_monai.cli.train import add_training
from candy_monai.errors import SettingsError
from candy_monai.experiment.settings import FORECAST_CONFIDENCE, whole_number

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from rich.table import Table


PRUNERS = ("forecast", "median", "hyperband", "none")
_MOST_ROWS = 30
_NAME_WIDTH = 14
_WIDEST = 1000


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "sweep",
        run,
        summary="search for good settings",
        text="Search settings with Optuna. Each trial is a run as with 'train'; trials that are not expected to "
        "exceed the best one are ended early. All options of 'train' apply to each trial; --budget is the time "
        "for one trial. The same command continues an interrupted sweep, and with a larger --trials extends it.",
        example="candy-monai sweep Dataset004_Hippocampus --space space.yml --trials 20 --epochs 50\n"
        "with space.yml:\n"
        "  learning_rate: {low: 1e-4, high: 1e-2, log: true}\n"
        "  batch_size: {choices: [2, 4, 8]}",
    )
    add_dataset(parser)
    parser.add_argument(
        "--space",
        type=Path,
        required=True,
        metavar="FILE",
        help="a YAML or JSON file with the search space: entries of the plan (as for --set), attributes of the "
        "trainer, bundle, network, configuration or warm_up; each as {low: A, high: B}, optionally with log: "
        "true or a step, or as {choices: [A, B]}",
    )
    whole = as_argument(whole_number(1).read)
    parser.add_argument(
        "--trials",
        dest="num_trials",
        type=whole,
        required=True,
        metavar="N",
        help="total number of trials of the sweep",
    )
    parser.add_argument(
        "--jobs",
        dest="num_parallel",
        type=whole,
        default=1,
        metavar="N",
        help="number of trials at the same time, each with its share of the processors (default: 1)",
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="a database for the study, such as postgresql://..., which several machines may share (default: a file "
        "in the sweep's folder)",
    )
    parser.add_argument(
        "--name", metavar="NAME", help="name of the study and of its folder within --out (default: sweep-DATASET)"
    )
    parser.add_argument(
        "--pruner",
        choices=PRUNERS,
        default=PRUNERS[0],
        help="which trials to end early: by the forecast of their best score, by one of Optuna's pruners, or none "
        "(default: forecast)",
    )
    parser.add_argument(
        "--confidence",
        type=as_argument(FORECAST_CONFIDENCE.read),
        metavar="P",
        help="how sure the forecast must be that a trial will not beat the best (default: 0.9)",
    )
    add_training(parser, but=("jobs",))
    add_launcher(parser, "each trial as a job and wait for all, --jobs at the same time; Ctrl-C cancels them")
    add_requeue(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    options = chosen_options(args)

    from candy_monai.optional import require

    require("optuna", extra="optuna", purpose="search settings")

    from rich.console import Console

    from candy_monai.recipes.sweep import sweep_dataset
    from candy_monai.recipes.sweep_study import PAGE, SWEEP

    folder = sweep_dataset(
        args.dataset,
        args.space,
        options,
        num_trials=args.num_trials,
        num_parallel=args.num_parallel,
        launcher=chosen_launcher(args),
        storage=args.storage,
        name=args.name,
        pruner=_pruner(args.pruner, args.confidence),
    )
    summary = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
    console = Console()
    is_wide = Console(width=_WIDEST).measure(results_table(summary)).minimum > console.width
    console.print(results_table(summary, in_one_column=is_wide))
    print(f"Plots: {folder / PAGE}")
    best = summary["best"]["experiment"]
    return done("Best experiment", best, then=command_for(Path(best), options, dataset=args.dataset))


def _pruner(name: str, confidence: float | None) -> BasePruner:
    if confidence is not None and name != "forecast":
        raise SettingsError(f"--confidence has no effect on --pruner {name}; leave it out, or use --pruner forecast")
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    from candy_monai.optuna import ForecastPruner

    if name == "forecast":
        return ForecastPruner(0.9 if confidence is None else confidence, score_range=(0, 1))
    return {"median": MedianPruner, "hyperband": HyperbandPruner, "none": NopPruner}[name]()


def results_table(summary: dict[str, Any], *, in_one_column: bool = False) -> Table:
    """Lay out the trials of ``sweep.json``, the best first; pruned and failed ones follow by their validation score.

    For a narrow screen, all settings are in one column, instead of one column each.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from candy_monai.metrics.interval import number_as_text

    trials = sorted(
        summary["trials"],
        key=lambda trial: (trial["dice"] is None, -(trial["dice"] or trial["best_validation_score"] or 0.0)),
    )
    names = list(dict.fromkeys(name for trial in trials for name in trial["settings"]))
    of = f", the first {_MOST_ROWS} of {len(trials)} trials" if len(trials) > _MOST_ROWS else ""
    table = Table(title=Text(f"{summary['study']}{of}"), title_justify="left", box=box.SIMPLE)
    for heading in ("trial", "Dice", "validation", "epochs"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    if in_one_column:
        table.add_column("settings", overflow="fold")
    for name in () if in_one_column else names:
        table.add_column(Text(name), overflow="fold", min_width=min(len(name), _NAME_WIDTH))
    for trial in trials[:_MOST_ROWS]:
        of_planned = f" of {trial['epochs_planned']}" if trial["epochs_planned"] else ""
        values = [_value(trial["settings"].get(name)) for name in names]
        if in_one_column:
            values = [", ".join(f"{name}={value}" for name, value in zip(names, values, strict=True))]
        cells = [
            str(trial["trial"]),
            number_as_text(trial["dice"]),
            number_as_text(trial["best_validation_score"]),
            f"{trial['epochs']}{of_planned}",
            {"complete": "done", "fail": "failed"}.get(trial["state"], trial["state"]),
            *values,
        ]
        table.add_row(*map(Text, cells))  # Text: brackets in a value are no markup
    return table


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
