"""Measure the share of each part of a training step of a planned run; print one JSON line per dataset.

A dataset is planned and preprocessed as by ``candy-monai train``, and the real `Trainer`, with timers between the parts
of `backward` and `step`, trains on it for a few dozen steps. ``network`` is forward and backward together. The other
parts are: ``data`` (reading and augmenting the patches), ``loss`` (its forward pass; its backward pass is in
``backward``), ``clip``, ``optimizer``, ``schedule``, ``average`` (of the weights) and ``bookkeeping``, which is
everything else. Times are CPU seconds of the process, which do not depend on other work on the machine, unless
``--wall`` is given; for each part the lower quartile over the steps is used.

``CANDY_MONAI_DATA`` names the folder of the datasets.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from candy_monai.nn.losses import split_loss
from candy_monai.processes import Processes
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.planned_run import PlannedRun
from candy_monai.recipes.prepare import prepare_dataset
from candy_monai.recipes.train import Parts
from candy_monai.training.gradients import optimized_parameters
from candy_monai.training.run import TrainingRun
from candy_monai.training.schedule import step_after_batches
from candy_monai_bundles.unet import UNetTrainer

DATA = Path(os.environ.get("CANDY_MONAI_DATA", Path(__file__).parents[2] / "shared" / "data"))
DATASETS = ("Dataset004_Hippocampus", "Dataset027_ACDC", "Dataset121_DRIVE")
NETWORK = ("forward", "backward")

clock = time.process_time
parts: defaultdict[str, list[float]] = defaultdict(list)


class Laps:
    """Adds the time since the previous lap to a part."""

    def __init__(self) -> None:
        self.last = clock()

    def lap(self, part: str) -> None:  # noqa: D102
        now = clock()
        parts[part].append(now - self.last)
        self.last = now


class Timed(UNetTrainer):
    """The trainer of the U-Net, with timers between the parts of `backward` and `step`."""

    def backward(self, images: Tensor, labels: Tensor, toolbox: Any) -> Any:  # noqa: D102
        laps = Laps()
        outputs = toolbox.model(images)
        laps.lap("forward")
        loss, metrics = split_loss(toolbox.criterion(outputs, labels))
        laps.lap("loss")
        loss.backward()
        laps.lap("backward")
        return loss.detach(), metrics

    def step(self, toolbox: Any, *, num_batches: int = 1) -> None:  # noqa: D102
        laps = Laps()
        nn.utils.clip_grad_norm_(optimized_parameters(toolbox.optimizer), self.max_grad_norm)
        laps.lap("clip")
        toolbox.optimizer.step()
        laps.lap("optimizer")
        step_after_batches(toolbox.scheduler, num_batches)
        laps.lap("schedule")
        toolbox.ema.update_parameters(toolbox.model)
        laps.lap("average")


def timed_batches(self: TrainingRun) -> Iterator[object]:
    """Yield the batches of a run, and measure the times of each batch and of the steps between them."""
    batches, whole = untimed_batches(self), Laps()
    for _ in itertools.count():
        laps = Laps()
        try:
            batch = next(batches)
        except StopIteration:
            return
        laps.lap("data")
        yield batch
        whole.lap("step")


untimed_batches = TrainingRun.batches


def measured(dataset: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Return the duration of a step of the dataset's planned run, and the share of each part."""
    parts.clear()
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(out=folder, store=arguments.store or Path(folder) / "store", overrides=arguments.set)
        prepared = prepare_dataset(dataset, options, device=device, trainer=Timed, on_progress=lambda _: None)
        plan = dataclasses.replace(prepared.plan, iterations_per_epoch=arguments.steps, num_epochs=1)
        run = PlannedRun(
            prepared=dataclasses.replace(prepared, validation=()),  # scores do not belong to a step
            options=options,
            trainer_class=Timed,
            own=Parts.of(options).own,
            frontend=None,
            seed=0,
            device=device,
            processes=Processes(),
        )
        trainer = run._trainer(plan)
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train(1, seed=0, amp=arguments.amp, time_limit_s=1e6, save_preview=False)
    typical = {name: lower_quartile(values[3:]) for name, values in parts.items()}
    step_s = typical.pop("step")
    typical["bookkeeping"] = max(0.0, step_s - sum(typical.values()))
    return {
        "benchmark": "step",
        "dataset": dataset.name,
        "configuration": plan.configuration,
        "amp": arguments.amp,
        "step_s": round(step_s, 4),
        **{f"{name}_share": round(seconds / step_s, 4) for name, seconds in typical.items()},
        "besides_network_share": round(1 - sum(typical[name] for name in NETWORK) / step_s, 4),
    }


def lower_quartile(values: list[float]) -> float:
    return statistics.quantiles(values, n=4)[0]


def main() -> None:
    global clock
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", default=DATASETS, help="names of dataset folders")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--amp", choices=("bf16", "none"), default="bf16")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an entry of the plan")
    parser.add_argument("--store", type=Path, help="a folder of preprocessed cases to reuse")
    parser.add_argument("--wall", action="store_true", help="use wall-clock time")
    arguments = parser.parse_args()
    arguments.amp = None if arguments.amp == "none" else arguments.amp
    arguments.set = dict(item.split("=", 1) for item in arguments.set)
    clock = time.perf_counter if arguments.wall else time.process_time
    TrainingRun.batches = timed_batches
    for name in arguments.datasets:
        print(json.dumps(measured(DATA / name, arguments)), flush=True)


if __name__ == "__main__":
    main()
