"""Train groups of runs, and store their curves: the five folds of a configuration, and sweeps of twelve trials.

The settings of a configuration are drawn as in `make_curves`, but its runs are short, and trained on all samples that
are not held out, up to 64, like cross-validations and sweeps. The folds of a group differ only in the samples and the
seed; the trials of a sweep have the same samples, length and score, and differ in network, loss, optimizer, learning
rate, schedule, weight decay and augmentation. A curve is stored as ``groups/<group>-<number>.csv``, and
``groups/index.json`` contains the settings of each. Runs that are in the index are skipped.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from make_curves import PART_OF, Settings, save_curve, settings_of, train
from small_cases import FOLDS, seed_of

HERE = Path(__file__).parent / "groups"
TRIALS = 12
SWEPT = (
    "network",
    "width",
    "loss",
    "optimizer",
    "learning_rate",
    "weight_decay",
    "schedule",
    "augment",
    "seed",
)
LOSSES = ("dice+ce", "dice+ce", "dice", "ce", "focal")


def groups() -> Iterator[tuple[str, list[Settings]]]:
    """Yield the name of each group and the settings of its runs, in the order of training."""
    datasets = list(PART_OF)
    for round_ in range(3):
        for dataset in datasets:
            yield folds_of(dataset, round_)
        for dataset in datasets[round_ % 2 :: 2]:
            yield sweep_of(dataset, round_)


def folds_of(dataset: str, round_: int) -> tuple[str, list[Settings]]:
    name = f"{dataset}-folds{round_}"
    draw = random.Random(seed_of(name))
    shared = {**settings_of(dataset, 1000 + round_), **_length_of(draw), "size": 32}
    return name, [{**shared, "fold": fold, "seed": draw.randrange(2**31)} for fold in range(FOLDS)]


def sweep_of(dataset: str, round_: int) -> tuple[str, list[Settings]]:
    name = f"{dataset}-sweep{round_}"
    draw = random.Random(seed_of(name))
    shared = {**settings_of(dataset, 2000 + round_), **_length_of(draw), "size": 32, "score": "dice"}
    trials = []
    for trial in range(TRIALS):
        other = settings_of(dataset, 10_000 + 100 * round_ + trial)
        trials.append({**shared, **{key: other[key] for key in SWEPT}, "loss": draw.choice(LOSSES)})
    return name, trials


def _length_of(draw: random.Random) -> Settings:
    return {"num_epochs": draw.choice([30, 40, 50]), "num_training": 64, "num_validation": 10, "steps": 6}


def read_index() -> dict[str, Settings]:
    """Return the settings of each existing curve, by name."""
    file = HERE / "index.json"
    index = json.loads(file.read_text()) if file.is_file() else {}
    return {name: entry for name, entry in index.items() if (HERE / f"{name}.csv").is_file()}


def write_index(index: dict[str, Settings]) -> None:
    lines = [f'"{name}": {json.dumps(index[name])}' for name in sorted(index)]
    temporary = HERE / "index.part"
    temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    temporary.rename(HERE / "index.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no run after this time")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "small-cases")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    started = time.monotonic()
    for group, runs in groups():
        for number, settings in enumerate(runs):
            name = f"{group}-{number:02d}"
            if name in read_index() or time.monotonic() - started > 60 * arguments.minutes:
                continue
            begun = time.process_time()
            save_curve(train(settings, arguments.cache), HERE / f"{name}.csv")
            write_index({**read_index(), name: {"part": PART_OF[str(settings["dataset"])], "group": group, **settings}})
            print(f"{name} {time.process_time() - begun:.1f} s", file=sys.stderr, flush=True)
    print(json.dumps({"curves": len(read_index()), "seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
