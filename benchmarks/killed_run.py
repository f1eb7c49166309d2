"""Define the small run that `kills` kills: train or continue it, and compare two results bit by bit."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.transforms import Compose, RandFlipd, RandGaussianNoised
from torch import Tensor, nn
from torch.utils.data import DataLoader

from candy_monai import DatasetFromMemory, JointTransform, SeededSampler, SegmentationTrainer
from candy_monai.experiment.state import load_state
from candy_monai.training.options import SegmentationOptions

SETTINGS = {
    "seed": 5,
    "early_stop_tolerance": None,
    "save_preview": False,
    "val_score_prediction": False,
    "save_every": 1,
}


class KilledTrainer(SegmentationTrainer):
    """Two convolutions and dropout."""

    options = SegmentationOptions(learning_rate=0.02)

    def build_network(self, example_shape: tuple[int, ...]) -> nn.Module:
        """Build a network that draws random numbers in every step."""
        channels = example_shape[0]
        layers = nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 1, 3, padding=1)
        return nn.Sequential(*layers)


def make_trainer(out: Path, num_workers: int) -> KilledTrainer:
    """Return a trainer for noisy squares, augmented by random flips and noise."""
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


def train(out: Path, experiment: Path | None, num_epochs: int, num_workers: int) -> None:
    """Train a new run, or continue the given one."""
    trainer = make_trainer(out, num_workers)
    if experiment is None:
        trainer.train(num_epochs, **SETTINGS)
    else:
        trainer.resume(experiment)


def experiment_in(out: Path) -> Path | None:
    """Return the published experiment; None if there is none yet."""
    found = [path for path in (out / "KilledTrainer").glob("*") if not path.name.startswith(".")]
    return found[0] if found else None


def result_of(folder: Path) -> dict[str, object]:
    """Return all results of a run that do not depend on a clock."""
    state = load_state(folder).to_dict()
    for row in state["history"]["rows"]:
        row.pop("epoch duration")
    state["progress"].pop("total_s")
    files = {path.name: path.read_bytes() for path in folder.glob("checkpoint*")}
    rows = [line.rpartition(",")[0] for line in (folder / "metrics.csv").read_text().splitlines()]
    leftovers = [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return {"state": state, "files": files, "rows": rows, "leftovers": leftovers}


def same(first: object, second: object) -> bool:
    """Compare nested values bit by bit."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
        )
    if isinstance(first, list | tuple):
        return isinstance(second, list | tuple) and len(first) == len(second) and all(map(same, first, second))
    return bool(first == second or (first != first and second != second))
