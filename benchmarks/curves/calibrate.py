"""Fit the forecast's model of the future of a curve to real curves; write forecasting/coefficients.py.

Every run gives two curves, its Dice and its negative loss, and each is cut after many different numbers of epochs.
Three linear functions of the features, which correct the values that the quotients predict for the probability of no
gain and for the location and spread of a gain, are fitted to the continuation after each cut by the pinball loss of all
quantiles: that of the median is the error that the back-test reports. Some synthetic curves that saturate or peak are
included, so that the forecast of ideal curves does not get worse. The width that the distribution needs for its
intervals to contain the gains, and the frequency of gains where none was expected, are then measured on runs of
datasets that were left out. For the back-test all of this is repeated without each dataset in turn, and written to
``left_out.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

sys.path.insert(0, str(Path(__file__).parents[1]))
from forecast import GAIN, LEFT_OUT, SHARES, Curve, learned, load_curves, seen

from candy_monai.forecasting.best_score import why_not
from candy_monai.forecasting.curve import seen_curve
from candy_monai.forecasting.features import NAMES, features_of, headroom, left
from candy_monai.forecasting.gain import LEAST_SPREAD, Gain, promise, standardised
from candy_monai.forecasting.model_average import draw_best

TARGET = Path(__file__).parents[2] / "candy_monai" / "forecasting" / "coefficients.py"
LEVELS = torch.arange(0.5, 10, dtype=torch.float64) / 10
CUTS = 8
STEPS, STEP = 120, 0.05
RIDGE = 5e-4
MOST_GAIN = 1.5
MADE_UP = "made up"
MADE_UP_CURVES, MADE_UP_WEIGHT = 80, 0.3
NO_GAIN = 0.004
"""A gain of less than this share of the run's range is none."""
LEAST_RANGE = 0.1
"""Of a score: a run that moves by less counts no more for it."""
WIDTHS = np.linspace(0.4, 3.0, 27)
HELD = 0.85
"""Share of the gains that intervals are made to hold: 5 % more than said, since datasets are less alike than runs."""
UNLIKELY = 0.2
"""Chance of a gain below which it is asked how often one came all the same."""
NEAR = 0.13
"""How far from a share of the run the cuts are that say how wide the distribution must be there."""
Array = NDArray[np.float64]


class Experience(NamedTuple):
    """The fitted coefficients, in the order of the features."""

    means: list[float]
    scales: list[float]
    weights: list[list[float]]
    widening: list[list[float]]
    least_chance: list[float]


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """The features at each cut of each curve, and the outcome: ``gain`` in ranges seen, ``size`` the range seen.

    ``size`` is a fraction of the range of the whole run.
    """

    features: Array
    rising: list[bool]
    gain: Array
    size: Array
    run: list[str]
    dataset: Array


def cut(curves: list[Curve]) -> Cuts:
    rows = []
    for curve in curves:
        horizon, scores = len(curve.scores), curve.scores
        places = {seen(curve, share) for share in SHARES}
        for now in sorted({*range(6, horizon - 1, max(1, horizon // CUTS)), *places}):
            known = seen_curve(scores[:now], horizon, learning_rates=curve.learning_rates[:now])
            if now >= horizon or why_not(known, 6) is not None:
                continue
            features = features_of(known, draw_best(known, degree=5)[0])
            gain = (float(np.nanmax(scores)) - known.best) / known.range
            size = known.range / max(curve.range, LEAST_RANGE)
            rows.append((features, known.rises, gain, size, curve.run, curve.dataset))
    features, rising, gain, size, names, datasets = map(list, zip(*rows, strict=True))
    return Cuts(
        features=np.array(features),
        rising=rising,
        gain=np.array(gain),
        size=np.array(size),
        run=names,
        dataset=np.array(datasets),
    )


def made_up_curves(count: int) -> list[Curve]:
    """Return noisy curves that saturate, peak or drift, some of them under a schedule that reduces the noise."""
    generator = np.random.default_rng(0)
    curves = []
    for number in range(count):
        horizon = int(generator.choice([30, 50, 80, 100]))
        t = np.arange(1, horizon + 1) / horizon
        slowness = float(np.exp(generator.uniform(math.log(0.03), math.log(0.6))))
        shapes = [1 - np.exp(-t / slowness), t / (t + slowness), t / slowness * np.exp(1 - t / slowness)]
        shape = shapes[number % 3] - (generator.uniform(0, 0.4) * t if number % 5 == 0 else 0)
        noise = float(np.exp(generator.uniform(math.log(0.003), math.log(0.05)))) * generator.standard_normal(horizon)
        decays = number % 2 == 0
        scores = generator.uniform(0.4, 0.95) * (shape / np.ptp(shape) + noise * (1.2 - t if decays else 1.0))
        rates = 1 - t + 1 / horizon if decays else np.ones(horizon)
        name = f"{MADE_UP} {number}"
        curves.append(Curve(name=name, run=name, dataset=MADE_UP, scores=scores, learning_rates=rates))
    return curves


def distribution(weights: Tensor, standard: Tensor, promised: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    none, middle, spread = (standard @ weights.T + promised).unbind(1)
    return none, middle, softplus(spread) + LEAST_SPREAD


def quantiles(weights: Tensor, standard: Tensor, promised: Tensor, room: Tensor) -> Tensor:
    """Return the quantiles at `LEVELS` like `Gain.quantiles`, but differentiable."""
    none, middle, spread = (value[:, None] for value in distribution(weights, standard, promised))
    among = (LEVELS - none.sigmoid()) / (1 - none.sigmoid() + 1e-9)
    deviation = torch.special.ndtri(among.clamp(1e-4, 1 - 1e-4)).clamp(-3, 3)
    gain = (middle + spread * deviation).exp().clamp(max=MOST_GAIN)
    return torch.where(among > 1e-4, gain / (1 + gain / room[:, None].clamp(min=1e-6)), 0.0)


def fitted(cuts: Cuts, chosen: Array) -> Experience:
    """Fit to the selected cuts; every run has the same weight."""
    features = cuts.features[chosen]
    means, scales = np.nanmean(features, 0), np.nanstd(features, 0) + 1e-6
    standard, promised = torch.tensor(standardised(features, means, scales)), torch.tensor(promise(features))
    room = torch.tensor(headroom(features))
    gain, size = torch.tensor(cuts.gain[chosen]), torch.tensor(cuts.size[chosen])
    runs = [run for run, used in zip(cuts.run, chosen, strict=True) if used]
    number = Counter(runs)
    real = sum(not run.startswith(MADE_UP) for run in number)
    weight = [(MADE_UP_WEIGHT / MADE_UP_CURVES if run.startswith(MADE_UP) else 1 / real) / number[run] for run in runs]
    share = torch.tensor(weight, dtype=torch.float64)
    weights = torch.zeros(3, standard.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=STEP)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    none_came = (gain * size < NO_GAIN).double()
    for _ in range(STEPS):
        miss = (gain[:, None] - quantiles(weights, standard, promised, room)) * size[:, None]
        pinball = torch.maximum(LEVELS * miss, (LEVELS - 1) * miss).mean(1)
        none, middle, spread = distribution(weights, standard, promised)
        # A small likelihood term, since the pinball loss has no gradient where a quantile is 0.
        likelihood = binary_cross_entropy_with_logits(none, none_came, reduction="none") + 0.3 * (1 - none_came) * (
            spread.log() + 0.5 * (((gain + 1e-4).log() - middle) / spread) ** 2
        )
        loss = (share * (pinball + 0.02 * likelihood)).sum() + RIDGE * (weights[:, :-1] ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    numbers = (np.round(values, 5).tolist() for values in (means, scales, weights.detach().numpy()))
    return Experience(*numbers, widening=[[1.0] * len(SHARES)] * 2, least_chance=[0.0] * 2)


def hedged(cuts: Cuts, without: dict[str, Experience], experience: Experience) -> Experience:
    """Set the width of intervals and the minimum probability of a gain, separately for losses and other scores.

    Args:
        cuts: All of them.
        without: For each dataset that may be used, the coefficients fitted without it.
        experience: The coefficients that are returned, with these two replaced.
    """
    kinds, shares, to_come = (
        cuts.features[:, NAMES.index("loss")],
        cuts.features[:, NAMES.index("share")],
        left(cuts.features),
    )
    came = cuts.gain * cuts.size > GAIN
    hopes = np.full(len(cuts.run), math.nan)
    for dataset, known in without.items():
        with learned(known._asdict()):
            for i in np.flatnonzero(cuts.dataset == dataset):
                hopes[i] = 1 - Gain.expected(cuts.features[i]).none
    unlikely = hopes < UNLIKELY
    least_chance = [
        round(float(came[unlikely & (kinds == kind)].sum() / to_come[unlikely & (kinds == kind)].sum()), 3)
        for kind in (0, 1)
    ]
    held: dict[tuple[int, int], list[Array]] = {(kind, place): [] for kind in (0, 1) for place in range(len(SHARES))}
    for dataset, known in without.items():
        with learned(known._replace(least_chance=least_chance)._asdict()):
            for (kind, place), found in held.items():
                near = came & (cuts.dataset == dataset) & (kinds == kind) & (abs(shares - SHARES[place]) < NEAR)
                found += [
                    _holds(Gain.expected(cuts.features[i], rising=cuts.rising[i]), cuts.gain[i])
                    for i in np.flatnonzero(near)
                ]
    best = {key: abs(np.mean(found, axis=0) - HELD).argmin() for key, found in held.items()}
    widening = [[round(float(WIDTHS[best[kind, place]]), 3) for place in range(len(SHARES))] for kind in (0, 1)]
    return experience._replace(widening=widening, least_chance=least_chance)


def _holds(expected: Gain, gain: float) -> Array:
    """Return for each of `WIDTHS` whether the interval then contains the gain."""
    intervals = [replace(expected, widening=width).interval() for width in WIDTHS.tolist()]
    return np.array([low - 1e-9 <= gain <= high + 1e-9 for low, high in intervals])


def learn(cuts: Cuts) -> dict[str, Experience]:
    """Fit without each dataset in turn, for the back-test, and to all of them, under an empty name."""
    names = sorted({*cuts.dataset.tolist()} - {MADE_UP})

    @cache
    def without(left_out: frozenset[str]) -> Experience:
        return fitted(cuts, ~np.isin(cuts.dataset, [*left_out]))

    return {
        name: hedged(
            cuts,
            {other: without(frozenset({name, other} - {""})) for other in names if other != name},
            without(frozenset({name} - {""})),
        )
        for name in ("", *names)
    }


def write(experience: Experience, num_runs: int) -> None:
    """Write the module, with one feature per line."""
    columns = (experience.means, experience.scales, *(weights[:-1] for weights in experience.weights))
    rows = "".join(
        f'    "{name}": ({", ".join(f"{value:.5g}" for value in row)}),\n'
        for name, *row in zip(NAMES, *columns, strict=True)
    )
    TARGET.write_text(
        '"""What the features of a curve say about its future, learned from real runs.\n\n'
        f"Written by ``benchmarks/curves/calibrate.py`` from {num_runs} real runs; not to be edited by hand.\n"
        f'"""\n\nFEATURES = {{\n{rows}}}\n'
        '"""Of each feature: mean, standard deviation, and its weights for the chance of no gain, its middle and its '
        'spread."""\n'
        f"CONSTANTS = ({', '.join(f'{weights[-1]:.5g}' for weights in experience.weights)})\n"
        '"""Of these three numbers."""\n'
        f"WIDENING = ({', '.join(str(tuple(line)) for line in experience.widening)})\n"
        '"""At a quarter, a half and three quarters of a run: of other scores, and of losses."""\n'
        f"LEAST_CHANCE = {tuple(experience.least_chance)}\n"
        '"""Of a gain, for each share of the learning that is left: of other scores, and of losses."""\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    torch.set_num_threads(1)
    cuts = cut([*load_curves(both=True), *made_up_curves(MADE_UP_CURVES)])
    num_runs = len({run for run in cuts.run if not run.startswith(MADE_UP)})
    experience = learn(cuts)
    write(experience.pop(""), num_runs)
    LEFT_OUT.write_text(json.dumps({name: known._asdict() for name, known in experience.items()}) + "\n")
    print(json.dumps({"benchmark": "calibrate", "runs": num_runs, "cuts": len(cuts.run), "features": len(NAMES)}))


if __name__ == "__main__":
    main()
