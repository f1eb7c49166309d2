"""Data that is learned in milliseconds, and a trainer that learns it."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from candy_monai.training.options import SegmentationOptions
from candy_monai.training.segmentation import SegmentationTrainer


class Squares(Dataset):
    """Noisy pictures or volumes of a bright box; the label is the box, with a core of class 2 where there are three."""

    def __init__(self, count=4, *, size=(16, 16), channels=1, num_classes=1):
        generator = torch.Generator().manual_seed(0)
        self.samples = []
        for index in range(count):
            label = torch.zeros(1, *size, dtype=torch.int64)
            label[(slice(None), *(slice(3 + index % 3, extent - 4) for extent in size))] = 1
            if num_classes > 2:
                label[(slice(None), *(slice(6, extent - 6) for extent in size))] = 2
            noise = torch.randn(channels, *size, generator=generator)
            self.samples.append((label.float() + 0.3 * noise, label))

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


class SmallTrainer(SegmentationTrainer):
    """Two convolutions."""

    options = SegmentationOptions(learning_rate=0.02)

    def build_network(self, example_shape):
        conv = nn.Conv2d if len(example_shape) == 3 else nn.Conv3d
        return nn.Sequential(
            conv(example_shape[0], 4, 3, padding=1), nn.ReLU(), conv(4, self.num_classes, 3, padding=1)
        )


def loaders(data=None, *, batch_size=2):
    """Return a shuffled training loader and a loader of single cases over the same data."""
    data = Squares() if data is None else data
    return DataLoader(data, batch_size=batch_size, shuffle=True), DataLoader(data, batch_size=1)


def small_trainer(folder, data=None, *, cls=SmallTrainer, **arguments):
    """Return a quiet trainer of two convolutions on `Squares`."""
    return cls(folder, *loaders(data), **{"console": False, **arguments})


def blob(shape=(12, 14, 10)):
    """Return an off-centre box with three ids and an image that equals it."""
    label = torch.zeros(1, *shape, dtype=torch.int64)
    label[(0, *(slice(2, 6) for _ in shape))] = 4
    label[(0, *(slice(5, 8) for _ in shape))] = 9
    return label.float(), label


class ScriptedTrainer(SmallTrainer):
    """Returns the scores it is told to, and learns nothing."""

    scores = (0.0,)

    def train_epoch(self, toolbox):
        self.record("combined loss", 1.0)

    def validate_case(self, image, label, toolbox):
        score = self.scores[min(self._current().progress.epoch, len(self.scores) - 1)]
        return score, {"dice": 0.5}, torch.zeros_like(image)


def scripted_trainer(folder, scores, **arguments):
    """Return a quiet trainer whose validations have these scores."""
    trainer = small_trainer(folder, cls=ScriptedTrainer, **arguments)
    trainer.scores = scores
    return trainer


def log_of(trainer):
    """Return the text of the last run's log."""
    return (trainer.experiment_folder() / "logs.txt").read_text(encoding="utf-8")
