"""Measure the errors of the forecast of the best score on real training curves; print one JSON line, or tables.

At 25, 50 and 75 % of each curve in ``benchmarks/curves``, every method receives the scores so far and predicts the best
score of the run. Errors of the score are fractions of the score range of the whole run, errors of the epoch are
fractions of the length of the run; a method that abstains counts as "best so far". The epoch to predict is that of the
best score to come, or the current one if the best score has already been reached.

For each curve, the forecast uses coefficients that were fitted without the dataset of that curve; the way of fitting
was chosen on the tuning datasets only. By default only the other datasets are reported.

With ``--groups`` the curves are those in ``benchmarks/curves/groups``. Each is predicted with and without other curves
of its group as references, with all or a few of them: the other folds of a configuration, which have the same settings
as the run, or the other trials of a sweep, which have different settings.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from candy_monai.experiment.history import load_metrics
from candy_monai.experiment.score_prediction import chance_of_gain
from candy_monai.forecasting import best_score, gain
from candy_monai.forecasting.best_score import Forecast, forecast
from candy_monai.forecasting.curve import SeenCurve
from candy_monai.forecasting.model_average import draw_best

CURVES = Path(__file__).parent / "curves"
GROUPS = CURVES / "groups"
LEFT_OUT = CURVES / "left_out.json"
SHARES = (0.25, 0.5, 0.75)
CONFIDENCE = 0.8
FEWEST_OTHERS = 3
DRAWS = 4
"""How often some of a curve's group are drawn where it is not foretold with all of them."""
GAIN = 0.02
"""Of the run's range: a smaller gain is none for which an interval is judged."""
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The scores and learning rates of one run by epoch."""

    name: str
    run: str
    dataset: str
    scores: Array
    learning_rates: Array

    @property
    def range(self) -> float:
        """Best minus worst score."""
        return float(np.nanmax(self.scores) - np.nanmin(self.scores))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a method predicted for one curve at one point, and what happened."""

    error: float
    epoch_error: float
    covered: bool | None
    abstained: bool


Method = Callable[[Array, Array, int], Forecast]
"""Foretells from the scores so far, the learning rates of the whole run and its length."""


def load_curves(part: str | None = None, *, both: bool = False) -> list[Curve]:
    """Return the curves of one part, ``tuning`` or ``reporting``, or of both, without those that are constant.

    Args:
        part: Which datasets; None for all.
        both: Return the Dice and the negative loss of each run, instead of only the one that was its score.
    """
    index = json.loads((CURVES / "index.json").read_text())
    curves = []
    for name, entry in index.items():
        if part not in (None, entry["part"]):
            continue
        metrics = {key: np.array(values) for key, values in load_metrics(CURVES / f"{name}.csv").items()}
        views = {f"{name} dice": metrics["val dice"], f"{name} loss": -metrics["val combined loss"]}
        for view, scores in views.items() if both else ((name, metrics["val score"]),):
            if np.isfinite(scores).any() and np.nanmax(scores) - np.nanmin(scores) > 1e-6:
                rates = metrics["learning rate"]
                curves.append(Curve(name=view, run=name, dataset=entry["dataset"], scores=scores, learning_rates=rates))
    return curves


@dataclass(frozen=True, kw_only=True)
class Member:
    """A curve with the other curves of its group, and the kind of the group: ``folds`` or ``sweep``."""

    curve: Curve
    others: tuple[Array, ...]
    kind: str


def load_members() -> list[Member]:
    """Return the curves in groups; constant curves are among the others of a group, but are not predicted."""
    index = json.loads((GROUPS / "index.json").read_text())
    curves = {}
    for name, entry in index.items():
        metrics = {key: np.array(values) for key, values in load_metrics(GROUPS / f"{name}.csv").items()}
        scores, rates = metrics["val score"], metrics["learning rate"]
        curves[name] = Curve(name=name, run=name, dataset=entry["dataset"], scores=scores, learning_rates=rates)
    groups = {entry["group"]: [n for n, e in index.items() if e["group"] == entry["group"]] for entry in index.values()}
    return [
        Member(
            curve=curves[name],
            others=tuple(curves[other].scores for other in names if other != name),
            kind="folds" if "folds" in group else "sweep",
        )
        for group, names in groups.items()
        for name in names
        if len(names) > FEWEST_OTHERS and curves[name].range > 1e-6
    ]


def ours(scores: Array, learning_rates: Array, horizon: int) -> Forecast:
    return forecast(scores, horizon, learning_rates=learning_rates[: len(scores)])


def ours_with(
    scores: Array, learning_rates: Array, horizon: int, *, references: Sequence[Array], same_settings: bool
) -> Forecast:
    rates = learning_rates[: len(scores)]
    return forecast(scores, horizon, learning_rates=rates, references=references, same_settings=same_settings)


def ours_with_schedule(scores: Array, learning_rates: Array, horizon: int) -> Forecast:
    return forecast(scores, horizon, learning_rates=learning_rates)


def ours_without_rates(scores: Array, learning_rates: Array, horizon: int) -> Forecast:
    return forecast(scores, horizon)


def quotient_only(scores: Array, learning_rates: Array, horizon: int) -> Forecast:
    return forecast(scores, horizon, method="quotient")


def best_so_far(scores: Array, learning_rates: Array, horizon: int) -> Forecast:
    return _said(float(np.nanmax(scores)), len(scores))


def last_value(scores: Array, learning_rates: Array, horizon: int) -> Forecast:
    known = scores[np.isfinite(scores)]
    return _said(float(known[-1]), len(scores))


def exponential(scores: Array, learning_rates: Array, horizon: int) -> Forecast:
    """Fit ``a + b exp(-t / tau)`` by least squares, and return its best value over the remaining epochs."""
    return _best_of_family(scores, horizon, lambda t, tau: np.exp(-t / tau), np.geomspace(0.5, 5 * horizon, 60))


def power_law(scores: Array, learning_rates: Array, horizon: int) -> Forecast:
    """Fit ``a + b t ** -c`` by least squares, and return its best value over the remaining epochs."""
    return _best_of_family(scores, horizon, lambda t, c: t**-c, np.geomspace(0.05, 5, 60))


def plain_quotient(scores: Array, learning_rates: Array, horizon: int) -> Forecast:
    """Fit polynomials up to degree 5 to the raw epochs, and return the ratio of the leading coefficients.

    This solves ``P(x) - y Q(x) = 0`` directly by linear least squares, and takes the asymptote for the maximum.
    """
    x, known = np.arange(1, len(scores) + 1.0), np.isfinite(scores)
    x, y = x[known], scores[known]
    powers = x[:, None] ** np.arange(6)
    solution = np.linalg.lstsq(np.hstack([powers, -y[:, None] * powers[:, 1:]]), y, rcond=None)[0]
    if len(y) < 6 or not solution[10]:
        return best_so_far(scores, learning_rates, horizon)
    return _said(float(solution[5] / solution[10]), horizon)


METHODS: dict[str, Method] = {
    "forecast": ours,
    "with the schedule's future": ours_with_schedule,
    "without learning rates": ours_without_rates,
    "quotients alone": quotient_only,
    "best so far": best_so_far,
    "last value": last_value,
    "exponential": exponential,
    "power law": power_law,
    "plain degree 5": plain_quotient,
}


def _said(score: float, epoch: int) -> Forecast:
    return Forecast(epoch=epoch, score=score, interval=None, reason=None)


def _best_of_family(scores: Array, horizon: int, shape: Callable[[Array, float], Array], grid: Array) -> Forecast:
    epochs, known = np.arange(1, len(scores) + 1.0), np.isfinite(scores)
    best: tuple[float, Array, float] | None = None
    for parameter in grid:
        system = np.stack([np.ones(known.sum()), shape(epochs[known], parameter)], axis=1)
        solution = np.linalg.lstsq(system, scores[known], rcond=None)[0]
        loss = float(((system @ solution - scores[known]) ** 2).sum())
        if best is None or loss < best[0]:
            best = loss, solution, parameter
    assert best is not None
    _, (level, size), parameter = best
    ahead = np.arange(len(scores), horizon + 1.0)
    curve = level + size * shape(ahead, parameter)
    return _said(max(float(curve.max()), float(np.nanmax(scores))), int(ahead[curve.argmax()]))


def seen(curve: Curve, share: float) -> int:
    """Return how many epochs of the curve are visible at this fraction of it."""
    return max(1, math.floor(share * len(curve.scores) + 0.5))


@cache
def left_out() -> dict[str, dict[str, Sequence[object]]]:
    """Return the coefficients that were fitted without each dataset."""
    return json.loads(LEFT_OUT.read_text())  # type: ignore[no-any-return]


@contextmanager
def drawn_once() -> Iterator[None]:
    """Cache the slowest part of a forecast for each curve, on which alone it depends."""
    known: dict[tuple[object, ...], tuple[Array, Array]] = {}

    def drawn(curve: SeenCurve, *, degree: int) -> tuple[Array, Array]:
        key = curve.values.tobytes(), curve.axis.tobytes(), curve.now, curve.top, degree
        if key not in known:
            known[key] = draw_best(curve, degree=degree)
        return known[key]

    with mock.patch.object(best_score, "draw_best", drawn):
        yield


@contextmanager
def learned(experience: Mapping[str, Sequence[object]]) -> Iterator[None]:
    """Restrict the forecast to these coefficients, named like those in `candy_monai.forecasting.gain` in lower case."""
    with mock.patch.multiple(gain, **{name.upper(): values for name, values in experience.items()}):
        yield


def outcome(method: Method, curve: Curve, now: int) -> Outcome:
    """Predict the rest of a curve after ``now`` epochs with a method."""
    horizon = len(curve.scores)
    with learned(left_out().get(curve.dataset, {})):
        said = method(curve.scores[:now], curve.learning_rates, horizon)
    truth, so_far = float(np.nanmax(curve.scores)), float(np.nanmax(curve.scores[:now]))
    score, epoch = (said.score, said.epoch) if said.reason is None else (so_far, now)
    when = max(now, int(np.nanargmax(curve.scores)) + 1)
    low, high = said.interval or (math.nan, math.nan)
    slack = 1e-9 * max(1.0, abs(truth))
    return Outcome(
        error=abs(score - truth) / curve.range,
        epoch_error=abs(epoch - when) / horizon,
        covered=None if said.interval is None else low - slack <= truth <= high + slack,
        abstained=said.reason is not None,
    )


def stopped_by_forecast(curve: Curve) -> int:
    """Return after how many epochs a run ends with ``early_stop_tolerance="forecast"``."""
    sure = 0
    with learned(left_out().get(curve.dataset, {})):
        for now in range(6, len(curve.scores)):
            scores = curve.scores[:now]
            chance = chance_of_gain(ours(scores, curve.learning_rates, len(curve.scores)), scores.tolist(), margin=0.01)
            sure = sure + 1 if chance is not None and chance < 0.1 else 0
            if sure == 3:
                return now
    return len(curve.scores)


def stopped_by_patience(curve: Curve, epochs: int) -> int:
    """Return after how many epochs a run ends that stops after so many epochs without a better score."""
    best, at = -math.inf, 0
    for epoch, score in enumerate(curve.scores.tolist(), start=1):
        if score > best:
            best, at = score, epoch
        elif epoch - at >= epochs:
            return epoch
    return len(curve.scores)


def print_stopping(curves: Sequence[Curve]) -> None:
    """Print the fraction of the planned epochs that was trained, and the loss of score as a fraction of its range."""
    rules = {"forecast": stopped_by_forecast}
    rules |= {f"{wait} epochs without improvement": partial(stopped_by_patience, epochs=wait) for wait in (10, 15)}
    print("\n| stopped by | epochs | lost | more than 1 % lost |\n|---|---|---|---|")
    for name, rule in rules.items():
        ends = [rule(curve) for curve in curves]
        lost = [
            float(np.nanmax(c.scores) - np.nanmax(c.scores[:end])) / c.range
            for c, end in zip(curves, ends, strict=True)
        ]
        epochs = np.mean([end / len(curve.scores) for curve, end in zip(curves, ends, strict=True)])
        print(f"| {name} | {epochs:.0%} | {np.mean(lost):.3f} | {np.mean(np.array(lost) > 0.01):.0%} |")


@dataclass(frozen=True, kw_only=True)
class Given:
    """The references of a forecast: how many other curves of the group, and whether their settings are the same."""

    name: str
    number: int
    same_settings: bool

    def methods(self, member: Member) -> list[Method]:
        """Return the forecast with the references, several times with different ones if not all are given."""
        generator = np.random.default_rng(0)
        times = DRAWS if self.number < len(member.others) else 1
        drawn = [generator.permutation(len(member.others))[: self.number] for _ in range(times)]
        return [
            partial(ours_with, references=[member.others[i] for i in one], same_settings=self.same_settings)
            for one in drawn
        ]


GIVEN = {
    "folds": (
        Given(name="with the four others", number=4, same_settings=True),
        Given(name="with three of them", number=3, same_settings=True),
        Given(name="with two of them", number=2, same_settings=True),
        Given(name="with four, `same_settings` not said", number=4, same_settings=False),
    ),
    "sweep": (
        Given(name="with the eleven others", number=11, same_settings=False),
        Given(name="with six of them", number=6, same_settings=False),
        Given(name="with three of them", number=3, same_settings=False),
    ),
}


def print_members(members: Sequence[Member]) -> None:
    """Print the errors with and without references by kind of group, as Markdown."""
    heads = " | ".join(f"{share:.0%}" for share in SHARES)
    print(f"| curves | method | {heads} | of best so far's | change by references | held (by chance) |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, given in GIVEN.items():
        own = [member for member in members if member.kind == kind]
        plain = [("best so far", lambda _: [best_so_far]), ("without references", lambda _: [ours])]
        errors: dict[str, Array] = {}
        for name, methods in [*plain, *((one.name, one.methods) for one in given)]:
            found = [
                [[outcome(method, m.curve, seen(m.curve, share)) for method in methods(m)] for m in own]
                for share in SHARES
            ]
            errors[name] = np.array([[np.mean([o.error for o in each]) for each in at] for at in found])
            means = errors[name].mean(1)
            ratios = ", ".join(f"{ratio:.2f}" for ratio in means / errors["best so far"].mean(1))
            change = errors[name] - errors.get("without references", errors[name])
            off = zip(change.mean(1), change.std(1) / math.sqrt(len(own)), strict=True)
            said = ", ".join(f"{mean:+.3f} ({error:.3f})" for mean, error in off) if change.any() else ""
            numbers = [figures([o for each in at for o in each]) for at in found]
            held = ", ".join("" if n["coverage"] is None else f"{n['coverage']:.2f}" for n in numbers).strip(", ")
            band = numbers[0]["band"]
            by_chance = f" ({band[0]:.2f} to {band[1]:.2f})" if held and len(found[0][0]) == 1 else ""
            cells = " | ".join(f"{mean:.3f}" for mean in means)
            print(f"| {kind} ({len(own)}) | {name} | {cells} | {ratios} | {said} | {held}{by_chance} |", flush=True)


def figures(outcomes: Sequence[Outcome]) -> dict[str, float | int | list[float] | None]:
    """Summarise one method at one fraction: mean errors, coverage with its sampling range, abstentions."""
    covered = [o.covered for o in outcomes if o.covered is not None]
    band = [float(binom.ppf(q, len(covered), CONFIDENCE)) / len(covered) for q in (0.025, 0.975)] if covered else []
    return {
        "error": round(float(np.mean([o.error for o in outcomes])), 4),
        "epoch_error": round(float(np.mean([o.epoch_error for o in outcomes])), 3),
        "coverage": round(float(np.mean(covered)), 3) if covered else None,
        "band": [round(limit, 3) for limit in band],
        "intervals": len(covered),
        "abstained": round(float(np.mean([o.abstained for o in outcomes])), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("reporting", "tuning", "all"), default="reporting")
    parser.add_argument("--table", action="store_true", help="print readable tables instead of the JSON line")
    parser.add_argument("--both", action="store_true", help="the Dice and the negative loss of every run")
    parser.add_argument("--groups", action="store_true", help="the curves in groups, with and without references")
    arguments = parser.parse_args()
    if arguments.groups:
        with drawn_once():
            print_members(load_members())
        return
    curves = load_curves(None if arguments.part == "all" else arguments.part, both=arguments.both)
    everything = {
        name: {share: [outcome(method, curve, seen(curve, share)) for curve in curves] for share in SHARES}
        for name, method in METHODS.items()
    }
    started = time.perf_counter()
    for curve in curves:
        ours(curve.scores[: seen(curve, 0.5)], curve.learning_rates, len(curve.scores))
    milliseconds = 1000 * (time.perf_counter() - started) / len(curves)
    if arguments.table:
        print_tables(curves, everything)
        print_stopping(curves)
        print(f"\n{milliseconds:.1f} ms a forecast")
        return
    result = {name: {f"{s:.0%}": figures(by_share[s]) for s in SHARES} for name, by_share in everything.items()}
    print(
        json.dumps(
            {
                "benchmark": "forecast",
                "part": arguments.part,
                "curves": len(curves),
                "datasets": len({curve.dataset for curve in curves}),
                "milliseconds": round(milliseconds, 1),
                "methods": result,
            }
        )
    )


def print_tables(curves: Sequence[Curve], everything: dict[str, dict[float, list[Outcome]]]) -> None:
    """Print the results of each method, and of the forecast compared with the best so far by dataset, as Markdown."""
    heads = [f"{kind} at {share:.0%}" for kind in ("score", "epoch") for share in SHARES]
    print("| method | " + " | ".join(heads) + " | coverage | abstains |")
    print("|---|" + "---|" * (len(heads) + 2))
    for name, by_share in everything.items():
        numbers = [figures(by_share[share]) for share in SHARES]
        cells = [f"{n['error']:.3f}" for n in numbers] + [f"{n['epoch_error']:.2f}" for n in numbers]
        covered = ", ".join(f"{n['coverage']:.2f}" if n["coverage"] is not None else "" for n in numbers).strip(", ")
        abstained = ", ".join(f"{n['abstained']:.2f}" for n in numbers)
        print(f"| {name} | {' | '.join(cells)} | {covered} | {abstained} |")
    print(f"\ncoverage by chance: {', '.join(str(figures(everything['forecast'][s])['band']) for s in SHARES)}\n")
    print("| dataset | curves | " + " | ".join(f"{s:.0%}: forecast, best so far" for s in SHARES) + " |")
    print("|---|---|" + "---|" * len(SHARES))
    for dataset in sorted({curve.dataset for curve in curves}):
        own = [index for index, curve in enumerate(curves) if curve.dataset == dataset]
        cells = []
        for share in SHARES:
            pair = (np.mean([everything[name][share][i].error for i in own]) for name in ("forecast", "best so far"))
            cells.append(", ".join(f"{value:.3f}" for value in pair))
        print(f"| {dataset} | {len(own)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
