"""Compare saving an epoch with a plain ``torch.save`` of the same tensors; print one JSON line.

A U-Net with about 30 million parameters, AdamW and a moving average is saved in different ways, one after the other and
in a new order each time: by `torch.save` of the weights, their average and the state of the optimizer over one existing
file (``plain``); into a new file that is flushed to the disk and then replaces the old one, which is necessary to
survive a crash (``plain_safe``); and as a run saves an epoch with the best score so far, and another epoch. For the
saves of a run, the time for which training is delayed and the time until everything is on disk are measured; for all,
the CPU time. The results are medians in seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from candy_monai.experiment.description import ExperimentDescription
from candy_monai.experiment.experiment import Experiment
from candy_monai.experiment.settings import TrainSettings
from candy_monai.experiment.state import RunWeights, TrainerState
from candy_monai.nn.ema import ExponentialMovingAverage
from candy_monai.seeding import GeneratorStates
from candy_monai_bundles.unet import UNetTrainer


class Large(UNetTrainer):
    """A U-Net of a size that is usual on a GPU."""

    num_dims = 3
    num_classes = 3
    filters = (40, 80, 160, 320, 512, 512)


class Subject:
    """The objects to save: a network after a step of AdamW, its moving average, the optimizer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = Large("", None, None).build_network((1, 64, 64, 64))  # type: ignore[arg-type]
        self.ema = ExponentialMovingAverage(self.network)
        self.optimizer = torch.optim.AdamW(self.network.parameters())
        for parameter in self.network.parameters():
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.ema.update_parameters(self.network)

    @property
    def num_bytes(self) -> int:
        """Return the size of weights, average and optimizer."""
        of_optimizer = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.network.parameters(), *self.ema.module.parameters(), *of_optimizer]
        return sum(tensor.nbytes for tensor in tensors)

    def content(self) -> dict[str, object]:
        """Return everything that a single plain file holds."""
        weights = {"raw": self.network.state_dict(), "ema": self.ema.module.state_dict()}
        return {**weights, "optimizer": self.optimizer.state_dict()}

    def weights(self) -> RunWeights:
        """Return the weights as a run passes them on."""
        return RunWeights(raw=dict(self.network.state_dict()), scored=dict(self.ema.module.state_dict()), kind="ema")

    def state(self) -> TrainerState:
        """Return what a run saves in addition to the weights."""
        own = [{"generators": GeneratorStates.capture().state_dict(), "epoch_generators": None, "pending": {}}]
        return TrainerState(optimizer=self.optimizer.state_dict(), processes=own)


def measure(save: Callable[[], Callable[[], None]]) -> dict[str, float]:
    """Return the seconds until ``save`` and the remaining work that it returns are done, and the CPU time of both."""
    processor, started = time.process_time(), time.perf_counter()
    rest = save()
    held_up = time.perf_counter() - started
    rest()
    whole = time.perf_counter() - started
    return {"held_up_s": held_up, "whole_s": whole, "processor_s": time.process_time() - processor}


def main() -> None:
    """Save alternately."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--folder", help="where to write; by default a temporary folder")
    arguments = parser.parse_args()
    subject = Subject()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        settings = TrainSettings(num_epochs=10**6, seed=0, num_checkpoints=0, early_stop_tolerance=None)
        settings = TrainSettings(**{**settings.as_dict(), "val_score_prediction": False})
        folder = Experiment.publish(
            Path(scratch), settings, ExperimentDescription(), subject.weights(), subject.state()
        )
        run = Experiment(folder, settings)

        path = Path(scratch) / "plain.pth"

        def plain() -> Callable[[], None]:
            torch.save(subject.content(), path)
            return lambda: None

        def plain_safe() -> Callable[[], None]:
            new = path.with_suffix(".new")
            with new.open("wb") as file:
                torch.save(subject.content(), file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path.with_suffix(".safe"))
            return lambda: None

        def epoch(*, is_best: bool) -> Callable[[], None]:
            run.history.record("combined loss", 0.5)
            run.finish_epoch(0.5)
            run.save_epoch(subject.weights(), subject.state(), score=0.5, is_best=is_best)
            return run.wait_until_saved

        ways: dict[str, Callable[[], Callable[[], None]]] = {
            "plain": plain,
            "plain_safe": plain_safe,
            "best_epoch": lambda: epoch(is_best=True),
            "other_epoch": lambda: epoch(is_best=False),
        }
        generator = random.Random(0)
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for turn in range(arguments.turns + 1):
            for name in generator.sample(list(ways), len(ways)):  # each finds the memory as the previous one left it
                seconds = measure(ways[name])
                if turn:  # the first turn creates the files
                    measured[name].append(seconds)
        run.close()
    medians = {
        name: {what: round(statistics.median(one[what] for one in turns), 3) for what in turns[0]}
        for name, turns in measured.items()
    }
    ratios = {
        f"{name} {what} / {plainly}": round(medians[name][f"{what}_s"] / medians[plainly]["whole_s"], 2)
        for plainly in ("plain", "plain_safe")
        for name in ("best_epoch", "other_epoch")
        for what in ("held_up", "whole")
    }
    size = {"parameters": sum(p.numel() for p in subject.network.parameters()), "bytes": subject.num_bytes}
    print(json.dumps({"benchmark": "saving", **size, **medians, "ratios": ratios}))


if __name__ == "__main__":
    main()
