"""Measure the costs of dashboards: those of the library, and some that hang, fail or are slow; print one JSON line.

The same seeded run is trained without a frontend and with each kind of frontend, alternately. ``seconds`` is the
duration of `Trainer.train`, which requires an idle machine. The other measurements do not: ``cpu_s`` is the CPU time of
the training thread, ``others_s`` that of the other threads of the program, and ``waited`` the fraction of the run that
the training thread spent in calls of its frontend or waiting for it. All are medians; ``grown_mb`` is the largest
growth of the program's memory over the second half of a run, and ``same_weights`` says whether the final weights are
bitwise identical.

    python benchmarks/frontends.py --kinds none,tensorboard,mlflow,wandb --epochs 1000 --cases 2 --turns 1
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from candy_monai.experiment.events import EpochFinished
from candy_monai.frontends.base import Frontend
from candy_monai.frontends.choice import find_frontend
from candy_monai.frontends.delivery import Delivery
from candy_monai.observers.base import Observer
from candy_monai.training.segmentation import SegmentationTrainer


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Noise images with boxes, generated once."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._cases = []
        for index in range(count):
            label = torch.zeros(1, 64, 64, dtype=torch.int64)
            label[:, 10 + index % 9 : 40, 12:44] = 1
            self._cases.append((label + 0.5 * torch.randn(label.shape, generator=generator), label))

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._cases[index]


class Small(SegmentationTrainer):
    """A U-Net that can be trained on a CPU in seconds."""

    @override
    def build_network(self, example_shape: tuple[int, ...]) -> nn.Module:
        network: nn.Module = BasicUNet(spatial_dims=2, in_channels=1, out_channels=1, features=(8, 8, 16, 32, 64, 8))
        return network


class Hanging(Frontend):
    """Never returns from its first callback."""

    @override
    def on_experiment_created(self, *_arguments: object) -> None:
        threading.Event().wait()


class HangingAtTheEnd(Frontend):
    """Never returns from its last callback."""

    @override
    def on_experiment_completed(self, *_arguments: object) -> None:
        threading.Event().wait()


class Raising(Frontend):
    """Fails whenever it is called."""

    @override
    def on_experiment_updated(self, *_arguments: object) -> None:
        raise ConnectionError("no route to host")


class Slow(Frontend):
    """Takes a second for every epoch."""

    @override
    def on_experiment_updated(self, *_arguments: object) -> None:
        time.sleep(1.0)


class Stopwatch:
    """Measures the total time that the calling thread spends in two methods of `Delivery`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in ("receive", "close"):
            setattr(Delivery, name, self._timed(getattr(Delivery, name)))

    def _timed(self, method: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            started = time.perf_counter()
            method(*arguments)
            self.seconds += time.perf_counter() - started

        return call


@dataclass(frozen=True, kw_only=True)
class Run:
    """The costs of one run, and its final weights."""

    seconds: float
    cpu_s: float
    others_s: float
    grown_mb: float
    waited_s: float
    weights: dict[str, Tensor]


class Memory(Observer):
    """Records the program's memory after each epoch."""

    def __init__(self) -> None:
        self.mb: list[float] = []

    @override
    def on_epoch_finished(self, event: EpochFinished) -> None:
        self.mb.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20)

    @property
    def grown_mb(self) -> float:
        """Return the growth over the second half of the run."""
        half = self.mb[len(self.mb) // 2 :]
        return max(half) - half[0]


def trained(
    folder: Path, frontend: type[Frontend] | None, num_epochs: int, stopwatch: Stopwatch, *, num_cases: int = 48
) -> Run:
    data, memory = Pictures(num_cases), Memory()
    trainer = Small(
        folder, DataLoader(data, batch_size=4, shuffle=True), DataLoader(data), console=False, observers=[memory]
    )
    if frontend is not None:
        trainer.set_frontend(frontend)
    started, cpu, all_cpu, waited = time.perf_counter(), time.thread_time(), time.process_time(), stopwatch.seconds
    trainer.train(num_epochs, seed=1, early_stop_tolerance=None, save_preview=False, val_score_prediction=False)
    cpu_s = time.thread_time() - cpu
    return Run(
        seconds=time.perf_counter() - started,
        cpu_s=cpu_s,
        others_s=time.process_time() - all_cpu - cpu_s,
        grown_mb=memory.grown_mb,
        waited_s=stopwatch.seconds - waited,
        weights=torch.load(trainer.experiment_folder() / "checkpoint_latest.pth", weights_only=True),
    )


def summary(runs: list[Run], plain: Run) -> dict[str, object]:
    return {
        "seconds": round(statistics.median(run.seconds for run in runs), 2),
        "cpu_s": round(statistics.median(run.cpu_s for run in runs), 2),
        "others_s": round(statistics.median(run.others_s for run in runs), 2),
        "grown_mb": round(max(run.grown_mb for run in runs), 1),
        "waited": round(statistics.median(run.waited_s / run.seconds for run in runs), 4),
        "same_weights": all(torch.equal(run.weights[key], plain.weights[key]) for run in runs for key in plain.weights),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--kinds", default="none,Hanging,HangingAtTheEnd,Raising,Slow", help="also by name: mlflow")
    args = parser.parse_args()
    os.environ.setdefault("WANDB_MODE", "offline")
    torch.set_num_threads(1)
    stopwatch = Stopwatch()
    own = {kind.__name__: kind for kind in (Hanging, HangingAtTheEnd, Raising, Slow)}
    kinds = {name: None if name == "none" else own.get(name) or find_frontend(name) for name in args.kinds.split(",")}
    runs: dict[str, list[Run]] = {name: [] for name in kinds}
    with tempfile.TemporaryDirectory() as folder:
        trained(Path(folder), None, 1, stopwatch)  # imports and caches
        for _ in range(args.turns):
            for name, kind in kinds.items():
                runs[name].append(trained(Path(folder), kind, args.epochs, stopwatch, num_cases=args.cases))
    plain = next(iter(runs.values()))[0]
    report = {name: summary(of_kind, plain) for name, of_kind in runs.items()}
    print(json.dumps({"benchmark": "frontends", "epochs": args.epochs, **report}))


if __name__ == "__main__":
    main()
