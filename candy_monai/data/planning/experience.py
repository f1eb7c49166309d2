"""Choose between slices and volumes for a new dataset, based on earlier runs on real datasets.

Their table is ``experience.json`` beside this file, whose header describes how its rows were made. For a dataset with
rows of both configurations, they give the gain in Dice of slices over volumes in a given time. The expected gain for a
new dataset is the mean of these gains, over datasets of thick slices for thick slices and over the other datasets for
others, weighted by similarity in anisotropy and number of cases. Slices are used if the expected gain is above 0, and
volumes if it is not, or if no dataset has both.

The choice depends only on dataset, time and table, not on measurements, so that it is reproducible.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

import numpy as np

from candy_monai.aliases import Shape
from candy_monai.transforms.resampling import thick_axis

TABLE = "experience.json"

_FACTOR = 2.0
"""A dataset that differs in anisotropy by this factor has exp(-1/2) of the weight of an equal one ..."""

_FACTOR_OF_CASES = 4.0
"""... and so has one that differs by this factor in the number of cases."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Runs of one configuration on one dataset with one time budget.

    Attributes:
        dataset: The dataset.
        configuration: ``2d``, a 2-D network on slices, or ``3d``.
        anisotropy: The ratio of the longest planned spacing to the second longest.
        median_shape: The median shape of the cases, in the plan's axes.
        num_cases: Number of training cases.
        num_classes: Number of classes, including the background.
        cpu_s: The budget in CPU-seconds.
        num_steps: Optimizer steps in this time; None if not recorded.
        dice: Mean Dice of the foreground classes on unseen cases, averaged over the seeds.
        num_unseen: Number of unseen cases.
        num_seeds: Number of runs in the mean.
        seed: The seed of the run; None for several runs, or if not recorded.
    """

    dataset: str
    configuration: Literal["2d", "3d"]
    anisotropy: float
    median_shape: Shape
    num_cases: int
    num_classes: int
    cpu_s: float
    num_steps: int | None
    dice: float
    num_unseen: int
    num_seeds: int
    seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The expectation for a dataset according to the table.

    Attributes:
        gain: The expected gain in Dice of slices over volumes; None if the table has no such rows.
        datasets: The datasets used, the most similar first.
    """

    gain: float | None
    datasets: tuple[str, ...] = ()

    @property
    def configuration(self) -> Literal["2d", "3d"]:
        """The configuration to train."""
        return "2d" if self.gain is not None and self.gain > 0 else "3d"

    def __str__(self) -> str:
        if self.gain is None:
            return "no earlier run on a similar dataset compared slices with volumes"
        better, other = ("slices", "volumes") if self.gain > 0 else ("volumes", "slices")
        where = ", ".join(self.datasets[:3])
        return f"in runs on {where} {better} reached a Dice {abs(self.gain):.3f} above that of {other}"


@functools.cache
def experience() -> tuple[Row, ...]:
    """Read the table in this package."""
    text = resources.files("candy_monai.data.planning").joinpath(TABLE).read_text("utf-8")
    return tuple(Row(**{**row, "median_shape": tuple(row["median_shape"])}) for row in json.loads(text)["rows"])


def anisotropy(spacing_mm: Sequence[float]) -> float:
    """Return the ratio of the longest spacing of voxels to the second longest."""
    *_, second, longest = sorted(spacing_mm)
    return longest / second


def expected(
    spacing_mm: Sequence[float], num_cases: int, *, cpu_s: float | None = None, rows: Sequence[Row] | None = None
) -> Expected:
    """Return the expected gain of slices over volumes for a dataset.

    Args:
        spacing_mm: The planned spacing of a dataset of volumes.
        num_cases: Number of its cases.
        cpu_s: CPU-seconds for training; None for a run without a time limit, for which the longest runs of the table
            are used. Dice is interpolated linearly over the logarithm of the time, and is constant before the first and
            after the last time of a dataset.
        rows: The table; None for the one in this package.
    """
    is_thick, ratio = thick_axis(spacing_mm) is not None, anisotropy(spacing_mm)
    by_dataset: dict[tuple[str, float, int], list[Row]] = {}
    for row in experience() if rows is None else rows:
        if (thick_axis((1.0, 1.0, row.anisotropy)) is not None) == is_thick:
            by_dataset.setdefault((row.dataset, row.anisotropy, row.num_cases), []).append(row)
    compared = []
    for (name, its_ratio, its_cases), known in by_dataset.items():
        gain = _gain(known, math.inf if cpu_s is None else cpu_s)
        if gain is not None:
            distance = math.hypot(
                math.log(ratio / its_ratio, _FACTOR), math.log(max(1, num_cases) / its_cases, _FACTOR_OF_CASES)
            )
            compared.append((distance, name, gain))
    if not compared:
        return Expected(gain=None)
    compared.sort()
    nearest = compared[0][0] ** 2  # has weight 1 at any distance
    weights = [math.exp((nearest - distance**2) / 2) for distance, _, _ in compared]
    gains = [gain for _, _, gain in compared]
    return Expected(
        gain=float(np.average(gains, weights=weights)), datasets=tuple(dict.fromkeys(name for _, name, _ in compared))
    )


def _gain(rows: Sequence[Row], cpu_s: float) -> float | None:
    """Return the Dice of slices minus that of volumes in a time, for one dataset; None unless it has both."""
    dice = []
    for configuration in ("2d", "3d"):
        by_time: dict[float, list[tuple[float, int]]] = {}
        for row in rows:
            if row.configuration == configuration:
                by_time.setdefault(row.cpu_s, []).append((row.dice, row.num_seeds))
        if not by_time:
            return None
        times = sorted(by_time)
        means = [np.average([d for d, _ in by_time[t]], weights=[n for _, n in by_time[t]]) for t in times]
        dice.append(float(np.interp(math.log(min(cpu_s, times[-1])), np.log(times), means)))
    return dice[0] - dice[1]
