"""Is a killed run continued to the very same result? Prints one JSON line.

A small run with augmentation, a moving average and saves within epochs is killed (SIGKILL) at each of its file
operations (opening, flushing, linking, renaming, removing), or at random moments; every killed run is continued, and
weights, state and metrics are compared with those of a run that was never interrupted.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from torch import Tensor, nn
from torch.utils.data import DataLoader

from candy_monai import DatasetFromMemory, JointTransform, SeededSampler, SegmentationTrainer
from candy_monai.errors import ExperimentError
from candy_monai.experiment.state import load_state

EVENTS = {"open", "os.rename", "os.remove", "os.link", "os.truncate"}
SETTINGS = {"seed": 5, "early_stop_tolerance": None, "save_preview": False, "save_every": 1}


class KilledTrainer(SegmentationTrainer):
    """Two convolutions and dropout."""

    learning_rate = 0.02

    def build_network(self, example_shape: tuple[int, ...]) -> nn.Module:
        """Build a network that draws random numbers in every step."""
        channels = example_shape[0]
        layers = nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 1, 3, padding=1)
        return nn.Sequential(*layers)


def make_trainer(out: Path, num_workers: int) -> KilledTrainer:
    """Return a trainer over noisy squares that are flipped and made noisier at random."""
    generator = torch.Generator().manual_seed(0)
    labels = [torch.zeros(1, 16, 16, dtype=torch.int64) for _ in range(6)]
    for index, label in enumerate(labels):
        label[:, 3 + index % 3 : 12, 3:12] = 1
    images = [label.float() + 0.3 * torch.randn(label.shape, generator=generator) for label in labels]
    change = Compose([RandFlipd(["image", "label"], prob=0.5), RandGaussianNoised("image", prob=0.5)])
    training = DatasetFromMemory(images, labels, transform=JointTransform(change))
    loader = DataLoader(training, batch_size=2, sampler=SeededSampler(training, seed=3), num_workers=num_workers)
    validation = DatasetFromMemory(images[:3], labels[:3])
    return KilledTrainer(out, loader, DataLoader(validation), console=False)


def train(out: Path, num_epochs: int, num_workers: int) -> None:
    """Train a new run, or go on with the one that is there."""
    trainer = make_trainer(out, num_workers)
    experiment = experiment_in(out)
    if experiment is None:
        trainer.train(num_epochs, **SETTINGS)
    else:
        trainer.recover_from(experiment).continue_training()


def experiment_in(out: Path) -> Path | None:
    """Return the published experiment; None before there is one."""
    found = [path for path in (out / "KilledTrainer").glob("*") if not path.name.startswith(".")]
    return found[0] if found else None


def killed_at(count: int | None) -> Callable[[], int]:
    """Kill this process at its file operation of this number, below the experiments; return what counts them."""
    counter = itertools.count(1)
    done = 0

    def meet(path: object) -> None:
        nonlocal done
        if "KilledTrainer" in str(path) and not str(path).endswith(".png"):
            done = next(counter)
            if done == count:
                os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in EVENTS:
            meet(arguments[0])

    flush = os.fsync

    def fsync(handle: int) -> None:
        meet(os.readlink(f"/proc/self/fd/{handle}"))
        flush(handle)

    sys.addaudithook(audit)
    os.fsync = fsync
    return lambda: done


def in_a_child(work: Callable[[], None], *, kill_after_s: float | None = None) -> int:
    """Run in a forked process, which has everything imported, and return its exit code; negative for a signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        finally:
            os._exit(code)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def result_of(folder: Path) -> dict[str, object]:
    """Return everything of a run that no clock decides."""
    state = load_state(folder)
    for row in state["history"]["rows"]:
        row.pop("epoch duration")
    state["progress"].pop("total_s")
    files = {path.name: path.read_bytes() for path in folder.glob("checkpoint*")}
    rows = [line.rpartition(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()]
    leftovers = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return {"state": state, "files": files, "rows": rows, "leftovers": leftovers}


def same(first: object, second: object) -> bool:
    """Compare nested values to the bit."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
        )
    if isinstance(first, list | tuple):
        return isinstance(second, list | tuple) and len(first) == len(second) and all(map(same, first, second))
    return bool(first == second or (first != first and second != second))


def main() -> None:
    """Kill, continue, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="kill at each so many file operations")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="also kill at so many random moments")
    parser.add_argument("--workers", type=int, default=0, help="processes that load the batches")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)

        def run(name: str, *, count: int | None = None, seconds: float | None = None) -> int:
            def work() -> None:
                seen = killed_at(count)
                train(folder / name, arguments.epochs, arguments.workers)
                (folder / f"{name}.count").write_text(str(seen()))

            return in_a_child(work, kill_after_s=seconds)

        started = time.monotonic()
        assert run("whole") == 0
        whole_s = time.monotonic() - started
        whole_folder = experiment_in(folder / "whole")
        assert whole_folder is not None
        expected = result_of(whole_folder)
        total = int((folder / "whole.count").read_text())
        kills: list[tuple[str, dict[str, float]]] = [
            (f"operation {count}", {"count": count}) for count in range(1, total + 1, arguments.every)
        ]
        generator = random.Random(0)
        kills += [(f"moment {i}", {"seconds": generator.uniform(0, whole_s)}) for i in range(arguments.random)]
        different, unreadable = [], []
        for name, kill in kills:
            run(name, **kill)  # type: ignore[arg-type]
            code = run(name)
            experiment = experiment_in(folder / name)
            try:
                if code or experiment is None:
                    unreadable.append(name)
                elif not same(result_of(experiment), expected):
                    different.append(name)
            except ExperimentError:
                unreadable.append(name)
    result = {"benchmark": "kills", "operations": total, "kills": len(kills), "workers": arguments.workers}
    print(json.dumps({**result, "different": different, "unreadable": unreadable}))


if __name__ == "__main__":
    main()
