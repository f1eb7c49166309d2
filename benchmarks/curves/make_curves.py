"""Train many small networks, and store their training curves for the back-test of the forecast.

The settings of a run are drawn from a random generator that is seeded by its name (dataset and number): network, loss,
optimizer, learning rate, schedule, number of training and validation samples, augmentation, moving average, score and
length. A curve is stored as ``<dataset>-<number>.csv`` in the format of ``metrics.csv``. ``index.json`` contains the
settings of each, and which datasets were used in developing the forecast (tuning) and which were not (reporting). Runs
that are in the index are skipped, so that the work can be done in parts; the settings of numbers 00 and 01 have lower
learning rates and fewer steps than the others.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from monai.losses import DiceLoss, FocalLoss
from monai.networks.nets import BasicUNet, SegResNet, UNet
from small_cases import SmallCases, divided, folded, load_small_cases, seed_of
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from typing_extensions import override

from candy_monai import AbsoluteLinearLR, DatasetFromMemory, DiceCELossWithLogits, PolyLRScheduler, SegmentationTrainer
from candy_monai.experiment.history import load_metrics
from candy_monai.observers.pictures import CurvesObserver
from candy_monai.seeding import set_seed
from candy_monai.training.options import SegmentationOptions
from candy_monai_bundles.unet import build_unet

HERE = Path(__file__).parent
DATA = Path(os.environ.get("CANDY_MONAI_DATA", HERE.parents[2] / "shared" / "data"))
PART_OF = {
    "Dataset004_Hippocampus": "tuning",
    "Dataset121_DRIVE": "tuning",
    "Dataset123_SunnybrookPNG": "tuning",
    "Dataset134_MSDLungPatches2D": "tuning",
    "Dataset063_SCTSpinalCord": "tuning",
    "Dataset027_ACDC": "reporting",
    "Dataset056_PICAI2ch": "reporting",
    "Dataset060_TotalSegCTExample": "reporting",
    "Dataset068_AtlasCh2AAL": "reporting",
    "Dataset127_BUSIMini": "reporting",
    "Dataset131_EMIDECMini": "reporting",
}
"""Whether a dataset's curves were looked at while the forecast was made, or only to say how good it is."""
VOLUMES = ("Dataset004_Hippocampus", "Dataset027_ACDC", "Dataset056_PICAI2ch")
COLUMNS = ("val score", "val dice", "val combined loss", "combined loss", "learning rate")

Settings = dict[str, str | int | float | bool]


def settings_of(dataset: str, number: int) -> Settings:
    """Draw the settings of a run, seeded by its name."""
    draw = random.Random(seed_of(f"{dataset}-{number}"))
    optimizer = draw.choice(["adamw", "adamw", "adam", "sgd"])
    rates = {"adamw": (5e-4, 3e-2), "adam": (5e-4, 2e-2), "sgd": (1e-2, 3e-1)}[optimizer]
    return {
        "dataset": dataset,
        "number": number,
        "num_dims": draw.choice([2, 2, 2, 3]) if dataset in VOLUMES else 2,
        "size": draw.choice([32, 32, 48]),
        "network": draw.choice(["dynunet", "dynunet", "basicunet", "resunet", "segresnet", "plain"]),
        "width": draw.choice([4, 8]),
        "loss": draw.choice(["dice+ce"] * 7 + ["ce", "dice", "focal"]),
        "optimizer": optimizer,
        "learning_rate": round(math.exp(draw.uniform(*map(math.log, rates))), 6),
        "weight_decay": draw.choice([0.0, 1e-4, 1e-2]),
        "schedule": draw.choice(["linear", "linear", "poly", "poly", "constant", "cosine", "warm-up cosine", "steps"]),
        "num_training": draw.choice([2, 4, 8, 16, 32, 64]),
        "num_validation": draw.choice([3, 6, 10]),
        "batch_size": draw.choice([2, 4, 4]),
        "steps": draw.choice([3, 6, 10]),
        "augment": draw.random() < 0.4,
        "ema": draw.random() < 0.5,
        "score": draw.choice(["dice", "dice", "dice", "negative loss"]),
        "num_epochs": draw.choice([30, 30, 40, 40, 50, 50, 60, 80, 100]),
        "seed": draw.randrange(2**31),
    }


def plain_network(channels: int, num_classes: int, num_dims: int, width: int) -> nn.Module:
    """Return four convolutions without pooling: a network with a small receptive field."""
    convolution = nn.Conv2d if num_dims == 2 else nn.Conv3d
    sizes = [channels, width, 2 * width, width]
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [convolution(inputs, outputs, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, convolution(width, num_classes, 1))


class CurveTrainer(SegmentationTrainer):
    """A segmentation trainer that is built from the settings."""

    settings: Settings

    @override
    def build_network(self, example_shape: tuple[int, ...]) -> nn.Module:
        kind, dims, width = str(self.settings["network"]), int(self.settings["num_dims"]), int(self.settings["width"])
        channels, classes = example_shape[0], self.num_classes
        if kind == "plain":
            return plain_network(channels, classes, dims, width)
        if kind == "basicunet":
            features = (width, width, 2 * width, 2 * width, 4 * width, width)
            return BasicUNet(dims, channels, classes, features=features, norm="batch")
        if kind == "resunet":
            return UNet(dims, channels, classes, (width, 2 * width, 4 * width), (2, 2), num_res_units=1, norm="batch")
        if kind == "segresnet":
            return SegResNet(dims, 8, channels, classes, blocks_down=(1, 1, 1), blocks_up=(1, 1))
        return build_unet(
            num_dims=dims,
            in_channels=channels,
            out_channels=classes,
            filters=[width, 2 * width, 4 * width],
            kernel_sizes=[(3,) * dims] * 3,
            strides=[(1,) * dims, (2,) * dims, (2,) * dims],
        )

    @override
    def build_optimizer(self, params: object) -> optim.Optimizer:
        rate, decay = float(self.settings["learning_rate"]), float(self.settings["weight_decay"])
        if self.settings["optimizer"] == "sgd":
            return optim.SGD(params, lr=rate, momentum=0.9, nesterov=True, weight_decay=decay)
        return {"adamw": optim.AdamW, "adam": optim.Adam}[self.settings["optimizer"]](
            params, lr=rate, weight_decay=decay
        )

    @override
    def build_scheduler(self, optimizer: optim.Optimizer, num_epochs: int) -> LRScheduler:
        rate, total = float(self.settings["learning_rate"]), num_epochs * len(self._dataloader)
        match self.settings["schedule"]:
            case "linear":
                return AbsoluteLinearLR(optimizer, -rate / total, rate)
            case "poly":
                return PolyLRScheduler(optimizer, rate, total)
            case "cosine":
                return LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(1, step / total))))
            case "warm-up cosine":
                return LambdaLR(
                    optimizer,
                    lambda step: (
                        min(1.0, 10 * (step + 1) / total) * 0.5 * (1 + math.cos(math.pi * min(1, step / total)))
                    ),
                )
            case "steps":
                return LambdaLR(optimizer, lambda step: 0.1 ** ((step > 0.5 * total) + (step > 0.8 * total)))
            case _:
                return LambdaLR(optimizer, lambda step: 1.0)

    @override
    def build_criterion(self) -> nn.Module:
        match self.settings["loss"]:
            case "dice":
                return DiceLoss(to_onehot_y=True, softmax=True)
            case "focal":
                return FocalLoss(to_onehot_y=True, use_softmax=True)
            case "ce":
                return DiceCELossWithLogits(self.num_classes, lambda_soft_dice=0.0)
            case _:
                return DiceCELossWithLogits(self.num_classes)


def loaders(cases: SmallCases, settings: Settings) -> tuple[DataLoader, DataLoader]:
    counts = int(settings["num_training"]), int(settings["num_validation"])
    if "fold" in settings:
        training, validation = folded(cases, *counts, int(settings["fold"]))
    else:
        training, validation = divided(cases, *counts)
    generator = torch.Generator().manual_seed(int(settings["seed"]))

    def augmented(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        axes = [axis for axis in range(1, image.ndim) if torch.rand(1, generator=generator) < 0.5]
        noise = 0.2 * torch.randn(image.shape, generator=generator)
        return (image.flip(axes) + noise), label.flip(axes)

    dataset = DatasetFromMemory(
        [cases.images[i] for i in training],
        [cases.labels[i] for i in training],
        transform=augmented if settings["augment"] else None,
    )
    size = int(settings["batch_size"])
    sampler = torch.utils.data.RandomSampler(
        dataset, replacement=True, num_samples=size * int(settings["steps"]), generator=generator
    )
    held_out = DatasetFromMemory([cases.images[i] for i in validation], [cases.labels[i] for i in validation])
    return DataLoader(dataset, batch_size=size, sampler=sampler), DataLoader(held_out)


def train(settings: Settings, cache: Path) -> dict[str, list[float]]:
    """Run the training that the settings describe and return its history."""
    size = (16, 20, 16) if settings["num_dims"] == 3 else (int(settings["size"]),) * 2
    cases = load_small_cases(DATA / str(settings["dataset"]), size, cache)
    set_seed(int(settings["seed"]))
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(CurvesObserver, "draw"):  # they are not used
        trainer = CurveTrainer(folder, *loaders(cases, settings), console=False)
        trainer.settings, trainer.num_classes = settings, cases.num_classes
        trainer.options = SegmentationOptions(score=settings["score"])
        trainer.train(
            int(settings["num_epochs"]),
            ema=bool(settings["ema"]),
            seed=int(settings["seed"]),
            early_stop_tolerance=None,
            num_checkpoints=0,
            val_score_prediction=False,
            save_preview=False,
            non_finite="skip",
        )
        return load_metrics(trainer.experiment_folder() / "metrics.csv")


def save_curve(metrics: dict[str, list[float]], file: Path) -> None:
    temporary = file.with_suffix(".part")
    with temporary.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["epoch", *COLUMNS])
        for epoch, values in enumerate(zip(*(metrics[name] for name in COLUMNS), strict=True), start=1):
            writer.writerow([epoch, *("" if math.isnan(value) else f"{value:.6g}" for value in values)])
    temporary.rename(file)


def read_index() -> dict[str, Settings]:
    """Return the settings of each existing curve, by name."""
    file = HERE / "index.json"
    index = json.loads(file.read_text()) if file.is_file() else {}
    return {name: entry for name, entry in index.items() if (HERE / f"{name}.csv").is_file()}


def write_index(index: dict[str, Settings]) -> None:
    lines = [f'"{name}": {json.dumps(index[name])}' for name in sorted(index)]
    (HERE / "index.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=int, default=22, help="runs for each dataset")
    parser.add_argument("--reverse", action="store_true", help="from the last run to the first: for a second process")
    parser.add_argument("--minutes", type=float, default=10.0, help="begin no run after this time")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "small-cases")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    runs = list(itertools.product(range(arguments.curves), PART_OF))
    for number, dataset in reversed(runs) if arguments.reverse else runs:
        name = f"{dataset}-{number:02d}"
        if name in read_index() or time.monotonic() - started > 60 * arguments.minutes:
            continue
        begun, settings = time.monotonic(), settings_of(dataset, number)
        save_curve(train(settings, arguments.cache), HERE / f"{name}.csv")
        write_index({**read_index(), name: {"part": PART_OF[dataset], **settings}})
        print(f"{name} {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
    print(json.dumps({"curves": len(read_index()), "seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
