"""Compare the speed of loading augmented patches with nnU-Net's loader; print one JSON line.

Both read preprocessed cases of Dataset004_Hippocampus from disk (nnU-Net from blosc2, ours from plain arrays), extract
patches of 40 x 56 x 40 in batches of 9, and apply the same kinds of augmentation with the same probabilities: rotation,
scaling, noise, blur, brightness, contrast, low resolution, gamma, mirroring. They are timed alternately, in one process
and with two workers, with one thread per process; in one process also in CPU time, which does not depend on other work
on the machine. nnU-Net (nnunetv2, batchgeneratorsv2) is run by the Python of another environment, given by
``--nnunet-python``; without it only candy-monai is timed, and the line says so. ``CANDY_MONAI_DATA`` names the folder
of the datasets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch.utils.data import DataLoader

from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.planning.plan import Plan
from candy_monai.data.planning.rules import plan
from candy_monai.data.samples.patches import EpochSampler, PatchDataset
from candy_monai.data.samples.store import CaseStore

DATA = Path(os.environ.get("CANDY_MONAI_DATA", Path(__file__).parents[2] / "shared" / "data"))
DATASET = DATA / "Dataset004_Hippocampus"
BATCH = 9
PATCH = (40, 56, 40)
WARM_UP_BATCHES = 23  # one pass over the 200 cases, so that each has been opened once
WORKERS = (0, 2)
NNUNET = Path(__file__).with_name("augmentation_nnunet.py")


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Patches per second of wall-clock time, and per second of CPU time of the main process."""

    by_clock: float
    by_cpu: float


def rate_of(batches: Iterable[object], count: int) -> Rate:
    """Return the rate of a loader after its first batches."""
    iterator = iter(batches)
    for _ in range(WARM_UP_BATCHES):
        next(iterator)
    started, started_cpu = time.perf_counter(), time.process_time()
    for _ in itertools.islice(iterator, count):
        pass
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    return Rate(by_clock=BATCH * count / seconds, by_cpu=BATCH * count / cpu_s)


def candy_monai(store: CaseStore, made: Plan, *, num_workers: int, count: int) -> Rate:
    """Measure the rate of our loader."""
    loader = DataLoader(
        PatchDataset(store, store.case_ids, made, seed=0),
        batch_size=BATCH,
        sampler=EpochSampler((count + WARM_UP_BATCHES) * BATCH),
        num_workers=num_workers,
    )
    return rate_of(loader, count)


def nnunet(python: str, folder: Path, *, num_workers: int, count: int) -> Rate:
    """Measure the rate of nnU-Net's loader in a separate process."""
    command = [python, NNUNET, folder, DATASET, num_workers, BATCH, count, WARM_UP_BATCHES, *PATCH]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([str(part) for part in command], env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"nnU-Net's loader failed:\n{done.stderr[-2000:]}")
    by_clock, by_cpu = map(float, done.stdout.split()[-2:])
    return Rate(by_clock=by_clock, by_cpu=by_cpu)


def rates_in_line(ours: Sequence[Rate], theirs: Sequence[Rate], name: str, *, by_cpu: bool) -> dict[str, float]:
    """Return the medians of both rates and the ratio of ours to nnU-Net's."""
    sides = {"candy_monai": ours, "nnunet": theirs}
    rates = {
        side: median(rate.by_cpu if by_cpu else rate.by_clock for rate in found)
        for side, found in sides.items()
        if found
    }
    line: dict[str, float] = {f"{side}_{name}": round(rate) for side, rate in rates.items()}
    return line | ({f"times_{name}": round(rates["candy_monai"] / rates["nnunet"], 2)} if theirs else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nnunet-python", metavar="FILE", help="the Python of an environment with nnunetv2")
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    line: dict[str, object] = {"benchmark": "augmentation", "patch": PATCH, "batch": BATCH}
    with tempfile.TemporaryDirectory() as scratch:
        dataset = NNUNetDataset(DATASET)
        made = plan(inspect(dataset), overrides={"patch_shape": PATCH, "batch_size": BATCH})
        store = CaseStore.build(dataset, made, scratch)
        for workers in WORKERS:
            ours, theirs = [], []
            for _ in range(arguments.turns):
                ours.append(candy_monai(store, made, num_workers=workers, count=arguments.batches))
                if arguments.nnunet_python is not None:
                    folder = Path(scratch) / "nnunet"
                    theirs.append(nnunet(arguments.nnunet_python, folder, num_workers=workers, count=arguments.batches))
            name = "one_process" if workers == 0 else f"{workers}_workers"
            line |= rates_in_line(ours, theirs, name, by_cpu=False)
            if workers == 0:
                line |= rates_in_line(ours, theirs, "a_cpu_second", by_cpu=True)
    if arguments.nnunet_python is None:
        line["skipped"] = "nnU-Net was not timed: name its Python by --nnunet-python"
    print(json.dumps(line), file=sys.stdout)


if __name__ == "__main__":
    main()
