"""``candy-monai forecast``: the best score that a run will reach, from its scores so far."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from candy_monai.cli.errors import DONE
from candy_monai.cli.options import new_command, whole_number

if TYPE_CHECKING:
    from candy_monai.cli.options import Subparsers
    from candy_monai.forecasting.best_score import Forecast
    from candy_monai.forecasting.reading import ScoreHistory

PICTURE = "forecast.png"


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "forecast",
        run,
        summary="forecast the best score of a run",
        text="Read the validation scores of a run so far and say which best score to expect, when, with an 80 % "
        "interval, and what stopping now would cost; or why that cannot be said. Also draws it.",
        example="candy-monai forecast experiments/UNetTrainer/20251101-14-a3f2\n"
        "candy-monai forecast lightning_logs/version_0/metrics.csv --column val_dice --epochs 200\n"
        "candy-monai forecast nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0 --json",
    )
    parser.add_argument(
        "source",
        metavar="EXPERIMENT|FILE",
        type=Path,
        help="an experiment's folder, a metrics.csv, a training_log of nnU-Net or the folder of one",
    )
    parser.add_argument(
        "--epochs", type=whole_number(1), metavar="N", help="epochs planned (default: what the run says)"
    )
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="the column of the score (default: 'val score', or 'Pseudo dice' for nnU-Net); a loss is negated",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help=f"the picture to write (default: {PICTURE} in the experiment's folder, for anything else in the current "
        "one; with --json: none)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.errors import SettingsError
    from candy_monai.experiment.below import refuse_folder_of_runs
    from candy_monai.forecasting.best_score import forecast
    from candy_monai.forecasting.reading import read_scores

    if not any(next(args.source.glob(name), None) for name in ("metrics.csv", "training_log_*.txt", "experiment.json")):
        refuse_folder_of_runs(args.source, call="candy-monai forecast {run}")
    history = read_scores(args.source, column=args.column)
    horizon = args.epochs or history.horizon
    if horizon is None:
        raise SettingsError(f"{history.source}: does not say how many epochs are planned: add --epochs N")
    result = forecast(history.scores, horizon, learning_rates=history.learning_rates or None)
    picture = args.picture
    if picture is None and not args.json:
        picture = (args.source if (args.source / "experiment.json").is_file() else Path()) / PICTURE
    if picture is not None:
        _draw(picture, history, result, horizon)
    facts = _facts(history, result, horizon)
    if args.json:
        print(json.dumps({**facts, "picture": None if picture is None else str(picture)}, indent=1, allow_nan=False))
    else:
        _show(history, result, facts)
        print(f"Picture: {picture}")
    return DONE


def _draw(picture: Path, history: ScoreHistory, result: Forecast, horizon: int) -> None:
    from candy_monai.plotting.figures import save_figure
    from candy_monai.plotting.forecasts import forecast_figure

    figure = forecast_figure(history.scores, result, horizon, name=history.name, first_epoch=history.first_epoch)
    save_figure(figure, picture)


def _facts(history: ScoreHistory, result: Forecast, horizon: int) -> dict[str, object]:
    """Collect what is said, as plain values; epochs are numbered as the source numbers them."""
    shift = history.first_epoch - 1
    known = [score for score in history.scores if math.isfinite(score)]
    best = max(known, default=None)
    durations = [seconds for seconds in history.durations_s if math.isfinite(seconds)]
    left = max(0, result.epoch - len(history.scores)) if result.reason is None else None
    return {
        "source": str(history.source),
        "score_name": history.name,
        "epochs_done": len(history.scores),
        "epochs_planned": horizon,
        "best_so_far": best,
        "best_so_far_epoch": None if best is None else history.scores.index(best) + 1 + shift,
        "score": result.score if result.reason is None else None,
        "epoch": result.epoch + shift if result.reason is None else None,
        "interval": result.interval,
        "cost_of_stopping_now": None if best is None or result.reason is not None else result.score - best,
        "chance_of_improving": result.chance_above(best) if best is not None and result.reason is None else None,
        "seconds_left": left * math.fsum(durations) / len(durations) if durations and left is not None else None,
        "reason": result.reason,
    }


def _show(history: ScoreHistory, result: Forecast, facts: dict[str, object]) -> None:
    done, planned = facts["epochs_done"], facts["epochs_planned"]
    so_far = "no score yet"
    if facts["best_so_far"] is not None:
        so_far = f"best so far {facts['best_so_far']:.4f} at epoch {facts['best_so_far_epoch']}"
    print(f"{history.source}: {history.name}, {done} of {planned} epochs, {so_far}")
    if result.interval is None:
        print(f"No forecast: {result.reason}")
        return
    low, high = result.interval
    print(f"Maximum {result.score:.4f} predicted at epoch {facts['epoch']}; {low:.4f} to {high:.4f} in 80 % of runs")
    print(
        f"Stopping now would cost {facts['cost_of_stopping_now']:.4f}; "
        f"the chance that a better score comes is {facts['chance_of_improving']:.0%}"
    )
    if facts["seconds_left"] is not None:
        print(f"Time until then: {_duration(float(str(facts['seconds_left'])))}")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (seconds, "s"))
    return " ".join(f"{value} {unit}" for value, unit in parts if value) or "none"
