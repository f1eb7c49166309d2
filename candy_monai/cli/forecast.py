"""``candy-monai forecast``: predict the best score of a run from its scores so far."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from candy_monai.cli.errors import DONE
from candy_monai.cli.options import Subparsers, add_options, new_command

if TYPE_CHECKING:
    from candy_monai.experiment.references import ReferenceRun
    from candy_monai.forecasting.best_score import Forecast
    from candy_monai.forecasting.reading import ScoreHistory

PICTURE = "forecast.png"
_WHAT_DECIDES = "it grows with how well they predict one another, and how similar they are to this run so far"


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(
        subparsers,
        "forecast",
        run,
        summary="forecast the best score of a run",
        text="Predict the best score of a run, its epoch, an 80 % interval and the cost of stopping now, from the "
        "validation scores so far, or say why no forecast is possible. Also draws a figure.",
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
    add_options(parser, "num_epochs", help="number of planned epochs (default: that of the run)")
    parser.add_argument(
        "--column",
        metavar="NAME",
        help="the column with the score (default: 'val score', or 'Pseudo dice' for nnU-Net); a loss is negated",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help=f"the picture to write (default: {PICTURE} in the experiment's folder, for anything else in the current "
        "one; with --json: none)",
    )
    add_options(parser, "no_references")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from candy_monai.errors import BadInputError, SettingsError
    from candy_monai.experiment.description import DESCRIPTION
    from candy_monai.experiment.folder import METRICS
    from candy_monai.experiment.references import folder_of_experiments, have_same_settings, references_as_text
    from candy_monai.experiment.runs import refuse_folder_of_runs
    from candy_monai.files import check_file_writable
    from candy_monai.forecasting.best_score import forecast
    from candy_monai.forecasting.reading import read_scores

    if not any(next(args.source.glob(name), None) for name in (METRICS, "training_log_*.txt", DESCRIPTION)):
        refuse_folder_of_runs(args.source, call="candy-monai forecast {run}")
    picture = args.picture
    if picture is None and not args.json:
        picture = (args.source if (args.source / DESCRIPTION).is_file() else Path()) / PICTURE
    if picture is not None:
        try:
            check_file_writable(picture)
        except BadInputError as error:
            raise BadInputError(f"{error}; give another file for the picture with --picture") from error
    history = read_scores(args.source, column=args.column)
    length = _length(args.source, history)
    horizon = args.num_epochs or length.num_epochs
    if horizon is None:
        raise SettingsError(f"{history.source}: does not say how many epochs are planned: add --epochs N")
    references = () if args.no_references else _references(args.source, args.column)
    result = forecast(
        history.scores,
        horizon,
        score_range=history.score_range,
        learning_rates=history.learning_rates or None,
        references=[reference.scores for reference in references],
        same_settings=have_same_settings(references),
    )
    if picture is not None:
        _draw(picture, history, result, horizon)
    facts = _facts(history, result, horizon, ended=None if args.num_epochs else length.ended)
    facts["references"] = [str(reference.folder) for reference in references]
    if args.json:
        print(json.dumps({**facts, "picture": None if picture is None else str(picture)}, indent=1, allow_nan=False))
    else:
        _show(history, result, facts)
        if references and facts["ended"] is None:
            print(references_as_text(references, folder_of_experiments(_folder_of(args.source))))
            print(f"Their weight in the forecast is {result.by_references:.0%}; {_WHAT_DECIDES}")
        print(f"Picture: {picture}")
    return DONE


class _Length(NamedTuple):
    """The number of epochs of a run; ``ended`` is the reason if there are no further epochs."""

    num_epochs: int | None
    ended: str | None = None


def _length(source: Path, history: ScoreHistory) -> _Length:
    """Return the number of epochs of a run, from its saved state if it has one."""
    from candy_monai.errors import ExperimentError
    from candy_monai.experiment.description import DESCRIPTION
    from candy_monai.experiment.folder import STATE
    from candy_monai.experiment.state import load_state
    from candy_monai.experiment.time_limit import epochs_in_time

    folder = _folder_of(source)
    if history.horizon is None or not all((folder / name).is_file() for name in (STATE, DESCRIPTION)):
        return _Length(history.horizon)
    try:
        state = load_state(folder)
    except ExperimentError:  # of another version, or half copied: the scores are read all the same
        return _Length(history.horizon)
    limit_s, done = state.settings.time_limit_s, state.progress.epoch
    if not state.is_complete:
        expected = epochs_in_time(
            history.durations_s[:done],
            elapsed_s=state.progress.total_s,
            num_epochs=history.horizon,
            limit_s=limit_s,
        )
        return _Length(max(expected, done + 1))
    if done >= history.horizon:
        return _Length(history.horizon, "all planned epochs")
    return _Length(done, "early stopping" if limit_s is None else "time limit reached")


def _folder_of(source: Path) -> Path:
    return source if source.is_dir() else source.parent


def _references(source: Path, column: str | None) -> tuple[ReferenceRun, ...]:
    """Return the earlier runs of the same task for an experiment; none for anything else."""
    from candy_monai.errors import ExperimentError
    from candy_monai.experiment.description import DESCRIPTION, read_description
    from candy_monai.experiment.references import folder_of_experiments, references_of

    folder = _folder_of(source)
    if not (folder / DESCRIPTION).is_file():
        return ()
    try:
        description = read_description(folder)
    except ExperimentError:  # of another version: the scores are read all the same
        return ()
    return references_of(description, folder_of_experiments(folder), but=folder, column=column)


def _draw(picture: Path, history: ScoreHistory, result: Forecast, horizon: int) -> None:
    from candy_monai.plotting.canvas.figures import save_figure
    from candy_monai.plotting.charts.forecasts import forecast_figure

    figure = forecast_figure(history.scores, result, horizon, name=history.name, first_epoch=history.first_epoch)
    save_figure(figure, picture)


def _facts(history: ScoreHistory, result: Forecast, horizon: int, *, ended: str | None) -> dict[str, Any]:
    """Return the output as plain values; epochs are numbered as in the source."""
    shift = history.first_epoch - 1
    known = [score for score in history.scores if math.isfinite(score)]
    best = max(known, default=None)
    durations = [seconds for seconds in history.durations_s if math.isfinite(seconds)]
    epoch_s = math.fsum(durations) / len(durations) if durations else None
    done = len(history.scores)
    left = max(0, result.epoch - done) if result.reason is None else None
    return {
        "source": str(history.source),
        "score_name": history.name,
        "epochs_done": done,
        "epochs_planned": horizon,
        "finished": ended is not None,
        "ended": ended,
        "best_so_far": best,
        "best_so_far_epoch": None if best is None else history.scores.index(best) + 1 + shift,
        "score": result.score if result.reason is None else None,
        "epoch": result.epoch + shift if result.reason is None else None,
        "interval": result.interval,
        "cost_of_stopping_now": None if best is None or result.reason is not None else result.score - best,
        "chance_of_improving": result.chance_above(best) if best is not None and result.reason is None else None,
        "seconds_left": None if epoch_s is None or left is None else left * epoch_s,
        "seconds_to_the_end": None if epoch_s is None else max(0, horizon - done) * epoch_s,
        "score_range": history.score_range,
        "by_references": result.by_references,
        "reason": result.reason,
    }


def _show(history: ScoreHistory, result: Forecast, facts: dict[str, Any]) -> None:
    from candy_monai.experiment.score_prediction import chance_as_text, duration_as_text, score_as_text

    done, planned, ended = facts["epochs_done"], facts["epochs_planned"], facts["ended"]
    so_far = "no score yet"
    if facts["best_so_far"] is not None:
        so_far = f"best{' so far' * (ended is None)} {facts['best_so_far']:.4f} at epoch {facts['best_so_far_epoch']}"
    extent = f"{done} of {planned} epochs"
    if ended is not None:
        extent = f"finished, {done} epoch{'s' * (done != 1)} run ({ended})"
    print(f"{history.source}: {history.name}, {extent}, {so_far}")
    if ended is not None:
        print("Nothing is left to forecast")
        return
    if result.interval is None:
        print(f"No forecast: {result.reason}")
        return
    low, high = result.interval
    best, chance = facts["best_so_far"], facts["chance_of_improving"]
    when = facts["epoch"] if result.score > best else facts["best_so_far_epoch"]
    print(
        f"Maximum {result.score:.4f} predicted at epoch {when}; "
        f"{low:.4f} to {high:.4f} in 80 % of the runs that get better"
    )
    print(
        f"Stopping now would cost {score_as_text(result.score - best)}; the chance of a better score is "
        f"{chance_as_text(chance)}"
    )
    if facts["seconds_left"] is not None:
        until, end = facts["seconds_left"], facts["seconds_to_the_end"]
        time = f"Time until then: {duration_as_text(until)}; the" if until else "The"
        print(f"{time} run ends at epoch {planned}, in {duration_as_text(end)}")
