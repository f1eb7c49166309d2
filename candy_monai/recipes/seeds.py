"""Repeat a training with several seeds, to measure the variation of its scores."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from candy_monai.aliases import PathLike
from candy_monai.errors import SettingsError
from candy_monai.evaluation.results import aligned_rows
from candy_monai.evaluation.statistics import Statistics, as_json_number, statistics_of
from candy_monai.experiment.folder import VALIDATION_SCORES
from candy_monai.files import atomic_write_json
from candy_monai.launched import name_as_torchrun, refuse_several
from candy_monai.metrics.interval import interval_as_text, number_as_text
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.prepare import store_of
from candy_monai.recipes.train import train_dataset
from candy_monai.text import read_json

SEEDS = "seeds.json"
FOREGROUND = "foreground_mean"


@dataclass(frozen=True, kw_only=True)
class SeedSpread:
    """The Dice of runs that differ only in their seeds.

    Attributes:
        folder: The folder with the runs and ``seeds.json``.
        experiments: The experiment folder of each seed.
        dice: Seed to the mean Dice of the validation cases: of each class, and under ``foreground_mean`` over the
            classes; NaN where there is none.
        class_names: Names of classes.
    """

    folder: Path
    experiments: Mapping[int, Path]
    dice: Mapping[int, Mapping[str, float]]
    class_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def statistics(self) -> dict[str, Statistics]:
        """Mean with 95 % confidence interval, standard deviation and range over the seeds, for each entry of `dice`."""
        first = next(iter(self.dice.values()), {})
        return {
            name: statistics_of([scores[name] for scores in self.dice.values()], bounds=(0.0, 1.0)) for name in first
        }

    def to_dict(self) -> dict[str, Any]:
        """Return it as values that JSON can hold."""
        return {
            "runs": [
                {
                    "seed": seed,
                    "experiment": str(self.experiments[seed]),
                    "dice": {name: as_json_number(value) for name, value in scores.items()},
                }
                for seed, scores in self.dice.items()
            ],
            "statistics": {name: found.to_dict() for name, found in self.statistics.items()},
            "class_names": dict(self.class_names),
        }

    def table(self) -> str:
        """Return a line for each seed, then mean, standard deviation and the interval of the mean."""
        statistics = self.statistics
        names = [self.class_names.get(name, f"class {name}") for name in statistics if name != FOREGROUND]
        rows = [
            ["seed", "Dice", *names],
            *([str(seed), *map(number_as_text, scores.values())] for seed, scores in self.dice.items()),
            ["mean", *(number_as_text(found.mean) for found in statistics.values())],
            ["standard deviation", *(number_as_text(found.std) for found in statistics.values())],
            ["95 % interval", *(interval_as_text(found.interval) for found in statistics.values())],
        ]
        return "\n".join(aligned_rows(rows))


def repeat_seeds(
    dataset: PathLike,
    options: TrainOptions | None = None,
    *,
    num_seeds: int,
    elapsed_s: float = 0.0,
    on_progress: Callable[[str], None] = print,
    **keywords: Any,
) -> SeedSpread:
    """Train on the same fold with several seeds, one run after the other, and summarise their validation scores.

    Each run is in ``<out>/seeds-<dataset>/seed_<n>/``; ``seeds.json`` next to them is written after each run.

    Args:
        dataset: As for `train_dataset`.
        options: As for `train_dataset`; ``seed`` is the first seed (default 0), and a budget is that of one run.
        num_seeds: Number of consecutive seeds.
        elapsed_s: As for `train_dataset`, for the first run.
        on_progress: Called with a line of text for each stage.
        **keywords: Fields of `TrainOptions`, in place of those of ``options``.

    Raises:
        SettingsError: If there are fewer than two seeds, no case to validate on, or several processes.
        BadInputError: As for `train_dataset`, as are the other errors.
    """
    options = TrainOptions.of(options, keywords)
    if num_seeds < 2:
        raise SettingsError(f"the number of seeds must be at least 2, got {num_seeds}: one run has no spread")
    if options.fold == "all":
        raise SettingsError("fold 'all' leaves no case to score: repeat a fold with several seeds")
    name_as_torchrun()
    refuse_several("training with several seeds")
    folder = Path(options.out) / f"seeds-{Path(dataset).resolve().name}"
    first = options.seed or 0
    experiments: dict[int, Path] = {}
    dice: dict[int, dict[str, float]] = {}
    names: dict[str, str] = {}
    scored_on: int | None = None
    for seed in range(first, first + num_seeds):
        on_progress(f"Seed {seed}, {len(dice) + 1} of {num_seeds}")
        own = dataclasses.replace(options, seed=seed, out=folder / f"seed_{seed}", store=store_of(options))
        experiments[seed] = train_dataset(dataset, own, elapsed_s=elapsed_s, on_progress=on_progress)
        elapsed_s = 0.0
        scores = read_json(experiments[seed] / VALIDATION_SCORES)
        if scored_on is not None and scores["num_cases"] != scored_on:
            on_progress(
                f"Warning: seed {seed} was scored on {scores['num_cases']} cases and another on {scored_on}, as many "
                "as fit into the budget: the standard deviation includes this difference"
            )
        scored_on = scores["num_cases"]
        names |= scores.get("class_names", {})
        dice[seed] = {FOREGROUND: _number(scores[FOREGROUND]["Dice"])}
        dice[seed] |= {name: _number(mean["Dice"]) for name, mean in scores["mean"].items()}
        spread = SeedSpread(folder=folder, experiments=experiments, dice=dice, class_names=names)
        atomic_write_json(folder / SEEDS, spread.to_dict())
    return spread


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
