"""Compare the Trainer with a bare training loop; print one JSON line.

Both do the same work: forward, backward, clipping, AdamW, a schedule, EMA, validation of whole cases with the average,
and saving the weights once per epoch. The Trainer also writes its experiment folder, draws its curves and previews and
prints its tables. They run alternately, each turn with a new network; the results are seconds per epoch, including the
set-up.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from candy_monai.nn.ema import ExponentialMovingAverage
from candy_monai.nn.losses import DiceCELossWithLogits
from candy_monai.nn.schedules import AbsoluteLinearLR
from candy_monai_bundles.unet import UNetTrainer

NUM_CLASSES = 3


class Volumes(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Noise volumes with boxes, generated once."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._cases = []
        for index in range(count):
            label = torch.zeros(1, 32, 48, 32, dtype=torch.int64)
            label[:, 6:20, 8 + index % 8 : 30, 8:24] = 1
            label[:, 10:14, 14:20, 12:18] = 2
            self._cases.append((label + 0.5 * torch.randn(label.shape, generator=generator), label))

    def __len__(self) -> int:
        return len(self._cases)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._cases[index]


class Small(UNetTrainer):
    """A U-Net that can be trained on a CPU in seconds."""

    num_dims = 3
    num_classes = NUM_CLASSES
    filters = (16, 32, 64)


def loaders() -> tuple[DataLoader[tuple[torch.Tensor, torch.Tensor]], DataLoader[tuple[torch.Tensor, torch.Tensor]]]:
    return DataLoader(Volumes(16), batch_size=2, shuffle=True), DataLoader(Volumes(4), batch_size=1)


def run_bare(folder: Path, num_epochs: int) -> float:
    """Train with a plain loop and return the seconds per epoch."""
    started = time.perf_counter()
    training, validation = loaders()
    network = Small(folder, training, None).build_network((1, 32, 48, 32))
    ema = ExponentialMovingAverage(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    num_steps = num_epochs * len(training)
    scheduler = AbsoluteLinearLR(optimizer, -1e-3 / num_steps, 1e-3)
    criterion = DiceCELossWithLogits(NUM_CLASSES)
    for _ in range(num_epochs):
        network.train()
        for images, labels in training:
            optimizer.zero_grad()
            loss, _ = criterion(network(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 12.0)
            optimizer.step()
            scheduler.step()
            ema.update_parameters(network)
        ema.eval()
        with torch.no_grad():
            for images, labels in validation:
                criterion(ema(images), labels)
        torch.save(ema.module.state_dict(), folder / "weights.pth")
    return (time.perf_counter() - started) / num_epochs


def run_trainer(folder: Path, num_epochs: int) -> float:
    """Train with the Trainer and return the seconds per epoch."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        Small(folder, *loaders()).train(num_epochs, early_stop_tolerance=None)
    return (time.perf_counter() - started) / num_epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    bare, trainer = [], []
    with tempfile.TemporaryDirectory() as folder:
        run_trainer(Path(folder), 1)  # exclude imports and other first-time costs from both
        for _ in range(arguments.turns):
            bare.append(run_bare(Path(folder), arguments.epochs))
            trainer.append(run_trainer(Path(folder), arguments.epochs))
    extra = [t - b for t, b in zip(trainer, bare, strict=True)]
    print(
        json.dumps(
            {
                "benchmark": "trainer_overhead",
                "bare_epoch_s": round(statistics.median(bare), 3),
                "trainer_epoch_s": round(statistics.median(trainer), 3),
                "ratio": round(statistics.median(trainer) / statistics.median(bare), 3),
                "extra_s": round(statistics.median(extra), 3),
                "allowed_extra_s": round(0.05 * statistics.median(bare) + 0.3, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
