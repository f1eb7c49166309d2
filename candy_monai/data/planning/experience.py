"""What runs on real datasets have taught about slices and volumes: a table, and how it decides for a new dataset.

The table is ``experience.json`` beside this file, whose header says how its rows were made. Where the rows of a dataset
know both configurations, they say by how much Dice slices were better than volumes in a given time. What is expected
of a new dataset is the mean of these gains, of thick slices over datasets of thick slices and of others over others,
weighted by how near each dataset is: in anisotropy and number of cases. Slices are trained on where the expected gain
is above 0, and volumes where it is not, or where no row knows both.

The decision follows from dataset, time and table alone. No measurement takes part, so that it is the same each time.
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
"""A dataset that is so many times as anisotropic as another counts exp(-1/2) as much as one like it ..."""

_FACTOR_OF_CASES = 4.0
"""... and one of so many times as many cases, too."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Runs of one configuration on one dataset in one time.

    Attributes:
        dataset: The dataset.
        configuration: ``2d``, a 2-D network on slices, or ``3d``.
        anisotropy: The longest of the planned spacings by the second longest.
        median_shape: Of the cases, in the plan's axes.
        num_cases: Cases that were trained on.
        num_classes: Background included.
        cpu_s: The budget in CPU-seconds.
        num_steps: Optimizer steps in this time; None if that was not written down.
        dice: Mean Dice of the foreground classes on unseen cases, a mean over the seeds.
        num_unseen: Unseen cases.
        num_seeds: Runs that the Dice is the mean of.
        seed: Of the run; None of several, or where it was not written down.
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
    """What the table says about a dataset.

    Attributes:
        gain: The Dice that slices are expected to gain over volumes; None where no row says.
        datasets: The datasets that it rests on, the nearest first.
    """

    gain: float | None
    datasets: tuple[str, ...] = ()

    @property
    def configuration(self) -> Literal["2d", "3d"]:
        """What is to be trained."""
        return "2d" if self.gain is not None and self.gain > 0 else "3d"

    def __str__(self) -> str:
        if self.gain is None:
            return "no run on a dataset like it has compared slices with volumes"
        better, other = ("slices", "volumes") if self.gain > 0 else ("volumes", "slices")
        where = ", ".join(self.datasets[:3])
        return f"in runs on {where} {better} reached a Dice {abs(self.gain):.3f} above that of {other}"


@functools.cache
def experience() -> tuple[Row, ...]:
    """Read the table that is shipped."""
    text = resources.files("candy_monai.data.planning").joinpath(TABLE).read_text("utf-8")
    return tuple(Row(**{**row, "median_shape": tuple(row["median_shape"])}) for row in json.loads(text)["rows"])


def anisotropy(spacing_mm: Sequence[float]) -> float:
    """Return how many times as long voxels are along their longest axis as along the second longest."""
    *_, second, longest = sorted(spacing_mm)
    return longest / second


def expected(
    spacing_mm: Sequence[float], num_cases: int, *, cpu_s: float | None = None, rows: Sequence[Row] | None = None
) -> Expected:
    """Return what is to be expected of slices and of volumes.

    Args:
        spacing_mm: The planned spacing of a dataset of volumes.
        num_cases: Its cases.
        cpu_s: CPU-seconds that there are for training; None for a run that is not bound by time, of which the longest
            runs of the table say most. Between two times of a dataset Dice is interpolated over their logarithms; it is
            taken to stay as it is before the first and after the last.
        rows: The table; None for the one that is shipped.
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
    nearest = compared[0][0] ** 2  # counts 1 however far it is
    weights = [math.exp((nearest - distance**2) / 2) for distance, _, _ in compared]
    gains = [gain for _, _, gain in compared]
    return Expected(
        gain=float(np.average(gains, weights=weights)), datasets=tuple(dict.fromkeys(name for _, name, _ in compared))
    )


def _gain(rows: Sequence[Row], cpu_s: float) -> float | None:
    """Return the Dice of slices less that of volumes in a time, of one dataset; None unless it knows both."""
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
