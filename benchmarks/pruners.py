"""Compare how much ForecastPruner, MedianPruner and HyperbandPruner save in a sweep, on recorded curves.

The curves of a dataset in ``benchmarks/curves`` are the trials of a study, which Optuna runs one after the other in
many random orders. Each run is divided into as many equal parts as the shortest run has epochs; a trial reports the
Dice after each part, and the pruner decides. The forecast uses coefficients that were fitted without the dataset of the
study.

A winner is a trial within 1 % of the study's best Dice. For each setting of each pruner, the benchmark gives the epochs
(in whole runs) until the first winner is complete, the epochs of the whole study, and how often all winners were
pruned. In the first number, a study without a complete winner counts with all its epochs. Settings should be compared
at an equal rate of lost winners.

The curves were recorded with different numbers of training cases, epochs and steps, so that they differ more than the
trials of most sweeps. Prints one JSON line, or a table with --table.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import optuna
from forecast import Array, drawn_once, learned, left_out, load_curves
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial, TrialState

from candy_monai.optuna import ForecastPruner

PARTS = 30
NEAR = 0.01
"""Of the best Dice: a trial that comes so near is a winner."""


class WithoutReferences(ForecastPruner):
    """Computes forecasts from a trial's own scores only."""

    def _references_among(self, completed: Iterable[FrozenTrial], sign: float) -> list[list[float]]:
        return []


PRUNERS: dict[str, Callable[[], BasePruner]] = {
    "none": NopPruner,
    **{
        f"forecast, confidence {confidence}, {warmup} warm-up steps{from_what}": functools.partial(
            kind, confidence, horizon=PARTS, n_warmup_steps=warmup, score_range=(0, 1)
        )
        for kind, from_what in ((ForecastPruner, ""), (WithoutReferences, ", without references"))
        for confidence, warmup in ((0.7, 0), (0.8, 0), (0.9, 0), (0.8, 8))
    },
    "median, Optuna's defaults": MedianPruner,
    **{
        f"median, 1 startup trial, {warmup} warm-up steps": functools.partial(MedianPruner, 1, warmup)
        for warmup in (5, 8, 10, 12, 15)
    },
    "hyperband, Optuna's defaults": HyperbandPruner,
    **{
        f"hyperband, least {least}, factor {factor}": functools.partial(HyperbandPruner, least, PARTS, factor)
        for least in (3, 8, 10, 15)
        for factor in (3, 4)
    },
}


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The result of a study; lengths are in whole runs.

    Attributes:
        first: Length until the first winner was found; that of all trials if none was.
        total: Length of all trials.
        lost: Whether no winner was completed.
        short: The difference between the best trial and the best completed trial, as a fraction of the best.
    """

    first: float
    total: float
    lost: bool
    short: float


def parted(scores: Array) -> Array:
    """Return the score at the end of each of `PARTS` equal parts of a run."""
    ends = np.ceil(np.arange(1, PARTS + 1) * len(scores) / PARTS).astype(int) - 1
    return scores[ends]


def replayed(make: Callable[[], BasePruner], curves: list[Array], order: Array, seed: int) -> Replay:
    """Run a study on curves in the given order; each curve is the Dice by parts of its run."""
    best = max(float(np.nanmax(curve)) for curve in curves)
    study = optuna.create_study(
        direction="maximize",
        pruner=make(),
        sampler=optuna.samplers.RandomSampler(seed=seed),
        study_name=f"replay {seed}",  # Hyperband selects a trial's bracket by it
    )
    steps, first, reached = 0, None, 0.0
    for index in order:
        trial = study.ask()
        for step, score in enumerate(curves[index].tolist(), start=1):
            steps += 1
            trial.report(score, step)
            if step < PARTS and trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            value = float(np.nanmax(curves[index]))
            study.tell(trial, value)
            reached = max(reached, value)
            if first is None and value >= (1 - NEAR) * best:
                first = steps
    total = steps / PARTS
    return Replay(
        first=total if first is None else first / PARTS, total=total, lost=first is None, short=1 - reached / best
    )


def studies() -> dict[str, list[Array]]:
    """Return the curves of each dataset, the Dice by parts of the run."""
    found: dict[str, list[Array]] = {}
    for curve in load_curves(both=True):
        if curve.name.endswith(" dice"):
            found.setdefault(curve.dataset, []).append(parted(curve.scores))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--orders", type=int, default=20, help="random orders of each study")
    parser.add_argument("--table", action="store_true", help="print a table")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    by_dataset = studies()
    replays: dict[str, list[Replay]] = {name: [] for name in PRUNERS}
    for dataset, curves in by_dataset.items():
        with learned(left_out().get(dataset, {})), drawn_once():
            for seed in range(args.orders):
                order = np.random.default_rng(seed).permutation(len(curves))
                for name, make in PRUNERS.items():
                    replays[name].append(replayed(make, curves, order, seed))
    rows = [
        {
            "pruner": name,
            "runs_to_first": round(float(np.mean([replay.first for replay in found])), 2),
            "runs_in_all": round(float(np.mean([replay.total for replay in found])), 2),
            "lost": round(float(np.mean([replay.lost for replay in found])), 3),
            "short": round(float(np.mean([replay.short for replay in found])), 4),
        }
        for name, found in replays.items()
    ]
    if not args.table:
        print(json.dumps({"curves": sum(map(len, by_dataset.values())), "studies": len(by_dataset), "pruners": rows}))
        return
    print(f"{sum(map(len, by_dataset.values()))} curves, {len(by_dataset)} studies, {args.orders} orders of each\n")
    print(
        "| pruner | runs to the first winner | runs in all | winners lost | best is short by |\n|---|---|---|---|---|"
    )
    for row in rows:
        cells = (row["runs_to_first"], row["runs_in_all"], f"{row['lost']:.1%}", f"{row['short']:.2%}")
        print(f"| {row['pruner']} | {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
