"""What users type: trainers written from scratch and the ready-made ones, as they stand in the user's description."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import nn, optim
from torch.utils.data import DataLoader
from typing_extensions import override

from candy_monai import (
    AbsoluteLinearLR,
    DiceBCELossWithLogits,
    Frontend,
    NNUNetDataset,
    Pad2d,
    Params,
    SegmentationTrainer,
    SlidingSegmentationTrainer,
    SlidingTrainer,
    SWMetadata,
    Trainer,
    TrainerToolbox,
    write_phantom_dataset,
)
from tests.toys import Squares, loaders


class SimpleUNet(nn.Module):
    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(in_channels, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()
        )
        self.decoder = nn.Conv2d(16, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


class FromScratch(Trainer):
    """Every method by hand, with floats and ``.item()`` as people write them."""

    num_classes: int = 1

    @override
    def build_network(self, example_shape: tuple[int, ...]) -> nn.Module:
        return SimpleUNet(example_shape[0], self.num_classes)

    @override
    def build_optimizer(self, params: Params) -> optim.Optimizer:
        return optim.AdamW(params, lr=1e-3)

    @override
    def build_scheduler(self, optimizer: optim.Optimizer, num_epochs: int) -> optim.lr_scheduler.LRScheduler:
        return AbsoluteLinearLR(optimizer, -8e-6 / len(self._dataloader), 1e-2)

    @override
    def build_criterion(self) -> nn.Module:
        return DiceBCELossWithLogits(self.num_classes)

    @override
    def backward(
        self, images: torch.Tensor, labels: torch.Tensor, toolbox: TrainerToolbox
    ) -> tuple[float, dict[str, float]]:
        predictions = toolbox.model(images)
        loss, metrics = toolbox.criterion(predictions, labels)
        loss.backward()
        return loss.item(), metrics

    @override
    def validate_case(
        self, image: torch.Tensor, label: torch.Tensor, toolbox: TrainerToolbox
    ) -> tuple[float, dict[str, float], torch.Tensor]:
        image, label = image.unsqueeze(0), label.unsqueeze(0)
        with torch.no_grad():
            prediction = (toolbox.ema if toolbox.ema else toolbox.model)(image)
            loss, metrics = toolbox.criterion(prediction, label)
        return -loss.item(), metrics, prediction.squeeze(0)


def test_a_trainer_written_from_scratch_trains_with_every_keyword(tmp_path):
    trainer = FromScratch(tmp_path, *loaders(), device="cpu")
    trainer.train(
        num_epochs=3,
        note="Experiment description",
        num_checkpoints=10,
        ema=True,
        seed=42,
        early_stop_tolerance=10,
        val_score_prediction=True,
        val_score_prediction_degree=5,
        save_preview=True,
        preview_quality=0.75,
    )
    assert {"combined loss", "soft dice", "bce loss", "val score"} <= trainer.metrics().keys()
    settings = json.loads((trainer.experiment_folder() / "experiment.json").read_text())["settings"]
    assert settings["note"] == "Experiment description"


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("amp", [None, "bf16"])
def test_it_trains_on_padded_images_with_and_without_an_average_in_both_precisions(tmp_path, ema, amp):
    class Padded(FromScratch):
        @override
        def build_padding_module(self) -> nn.Module | None:
            return Pad2d(32)

    trainer = Padded(tmp_path, *loaders(Squares(size=(20, 40))), console=False)
    trainer.train(1, ema=ema, amp=amp)
    assert len(trainer.metrics()["val score"]) == 1


def test_the_best_checkpoint_scores_what_was_recorded_when_loaded_into_the_user_s_own_network(tmp_path):
    training, validation = loaders()
    trainer = FromScratch(tmp_path, training, validation, console=False)
    trainer.train(4, seed=0)
    network = SimpleUNet(1, 1)
    network.load_state_dict(torch.load(trainer.experiment_folder() / "checkpoint_best.pth", weights_only=True))
    criterion, scores = DiceBCELossWithLogits(1), []
    with torch.no_grad():
        for image, label in validation:
            scores.append(-criterion(network.eval()(image), label)[0].item())
    assert sum(scores) / len(scores) == max(trainer.metrics()["val score"])


@pytest.mark.usefixtures("curves")
def test_a_segmentation_trainer_needs_nothing_but_its_network_and_a_folder_of_images(tmp_path):
    class OnlyANetwork(SegmentationTrainer):
        num_classes: int = 3

        @override
        def build_network(self, example_shape: tuple[int, ...]) -> nn.Module:
            return SimpleUNet(example_shape[0], self.num_classes)

    folder = write_phantom_dataset(tmp_path / "phantom", num_cases=5, num_dims=2, shape=(48, 48))
    dataset, val_dataset = NNUNetDataset(folder).fold()
    trainer = OnlyANetwork(
        tmp_path / "experiments",
        DataLoader(dataset, batch_size=2, shuffle=True),
        DataLoader(val_dataset, batch_size=1, shuffle=False),
        device="cpu",
    )
    trainer.train(1, note="from a folder")
    names = {path.name for path in trainer.experiment_folder().iterdir()}
    assert {"expected (preview).png", "actual (preview).png", "input (preview).png", "progress.png"} <= names


def test_the_ready_made_u_net_is_configured_by_attribute(tmp_path):
    from candy_monai_bundles.unet import UNetTrainer

    trainer = UNetTrainer(tmp_path, *loaders(Squares(num_classes=3)), device="cpu", console=False)
    trainer.num_classes = 3
    trainer.num_dims = 2
    trainer.train(1)
    assert re.fullmatch(r"\d{8}-\d{2}-[0-9a-f]{4}", trainer.experiment_folder().name)
    assert trainer.experiment_folder().parent.name == "UNetTrainer"


@pytest.mark.parametrize(("variant", "num_classes"), [("s", 1), ("l", 2)])
def test_the_ready_made_cmunext_is_configured_by_attribute(tmp_path, variant, num_classes):
    from candy_monai_bundles.cmunext import CMUNeXtTrainer

    folder = write_phantom_dataset(tmp_path / "phantom", num_cases=5, num_dims=2, num_classes=2, shape=(32, 32))
    dataset, val_dataset = NNUNetDataset(folder).fold()
    train_loader = DataLoader(dataset, batch_size=4, shuffle=True)
    val_loader = DataLoader(val_dataset, batch_size=1, shuffle=False)

    trainer = CMUNeXtTrainer(tmp_path / "liver_seg", train_loader, val_loader, device="cpu")
    trainer.num_classes = num_classes
    trainer.variant = variant
    trainer.train(1, note="Liver segmentation with CMUNeXt")
    arguments = json.loads((trainer.experiment_folder() / "experiment.json").read_text())["network"]["arguments"]
    assert arguments == {
        "num_dims": 2,
        "in_channels": 1,
        "out_channels": num_classes,
        "variant": variant,
        "normalization": "batch",
    }


def test_logging_and_recording_from_inside_a_step(tmp_path):
    class Talkative(FromScratch):
        @override
        def backward(self, images, labels, toolbox):
            self.log("Custom message")
            self.log("Internal message", on_screen=False)
            self.record("my loss", 0.5)
            self.record_all({"dice": 0.85, "iou": 0.78})
            return super().backward(images, labels, toolbox)

    trainer = Talkative(tmp_path, *loaders(), console=False)
    trainer.train(1)
    assert trainer.metrics()["iou"] == [0.78]
    assert (trainer.experiment_folder() / "logs.txt").read_text().count("Internal message") == 2


def test_a_frontend_needs_only_the_callbacks_it_cares_for(tmp_path):
    heard = []

    class Quiet(Frontend):
        @override
        def on_experiment_completed(self, experiment_id: str) -> None:
            heard.append(experiment_id)

    trainer = FromScratch(tmp_path, *loaders(), console=False)
    trainer.set_frontend(Quiet)
    trainer.train(1)
    assert heard == [trainer.experiment_folder().name]


class MySlidingTrainer(SlidingTrainer):
    def get_window_shape(self) -> tuple[int, int] | tuple[int, int, int]:
        return (16, 16)

    build_network = FromScratch.build_network
    build_optimizer = FromScratch.build_optimizer
    build_scheduler = FromScratch.build_scheduler
    build_criterion = FromScratch.build_criterion
    num_classes = 1

    @override
    def backward_windowed(
        self, images: torch.Tensor, labels: torch.Tensor, toolbox: TrainerToolbox, metadata: SWMetadata
    ) -> tuple[float, dict[str, float]]:
        predictions = toolbox.model(images)
        loss, metrics = toolbox.criterion(predictions, labels)
        loss.backward()
        return loss.item(), metrics

    @override
    def validate_case_windowed(
        self, images: torch.Tensor, labels: torch.Tensor, toolbox: TrainerToolbox, metadata: SWMetadata
    ) -> tuple[float, dict[str, float], torch.Tensor]:
        with torch.no_grad():
            predictions = (toolbox.ema if toolbox.ema else toolbox.model)(images)
            loss, metrics = toolbox.criterion(predictions, labels)
        return -loss.item(), metrics, predictions


def test_a_sliding_trainer_needs_only_its_windowed_methods(tmp_path):
    trainer = MySlidingTrainer(tmp_path, *loaders(Squares(size=(40, 24))), console=False)
    trainer.train(2)
    assert {"combined loss", "val soft dice", "val score"} <= trainer.metrics().keys()


def test_a_sliding_segmentation_trainer_on_a_folder_of_images_needs_a_network_and_a_window(tmp_path):
    class MyTrainer(SlidingSegmentationTrainer):
        num_classes = 3
        sliding_window_shape: tuple[int, int] = (32, 32)

        @override
        def build_network(self, example_shape: tuple[int, ...]) -> nn.Module:
            assert example_shape == (1, 32, 32)
            return SimpleUNet(example_shape[0], self.num_classes)

    folder = write_phantom_dataset(tmp_path / "phantom", num_cases=5, num_dims=2, shape=(48, 40))
    dataset, val_dataset = NNUNetDataset(folder).fold()
    train_loader = DataLoader(dataset, batch_size=2, shuffle=True)
    val_loader = DataLoader(val_dataset, batch_size=1, shuffle=False)
    trainer = MyTrainer(tmp_path / "experiments", train_loader, val_loader, device="cpu")
    trainer.train(1, note="Large volume segmentation with sliding windows")
    assert len(trainer.metrics()["val dice"]) == 1
