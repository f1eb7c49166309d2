"""Measure the speed of a GPU; print one JSON line for each measurement.

``step``: the time of a training step of a planned run on the hippocampus (including clipping, schedule and moving
average), of a bare loop with the same network and loss, and, if `nnunetv2` is installed, of nnU-Net's step: its network
of the same widths, its loss, optimizer and gradient scaling. All are timed alternately, on the same batch in the memory
of the device, each in its default precision. ``loader``: the fraction of an epoch that training waits for its loader,
which reads and augments in as many processes as a run uses. ``windows``: the time for a volume in windows of 96^3 by
`WindowInferer.labels` and by MONAI's ``sliding_window_inference`` with its argmax. ``dice``: the training time until
the validation Dice reaches 0.88 on the hippocampus, by the clock of the run. All times are in seconds.

``--device cpu --quick`` runs everything in a minute on a synthetic dataset, to check that it works; its numbers mean
nothing. ``CANDY_MONAI_DATA`` names the folder of the datasets.
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
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from candy_monai.attachment import map_tensors
from candy_monai.data.planning.plan import Plan
from candy_monai.data.samples.batches import Batch, unpack
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.device import find_device
from candy_monai.errors import BadInputError
from candy_monai.experiment.history import load_metrics
from candy_monai.experiment.settings import TrainSettings
from candy_monai.inference.inferers import WindowInferer
from candy_monai.nn.losses import split_loss
from candy_monai.processes import Processes
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.planned_run import PlannedRun
from candy_monai.recipes.prepare import prepare_dataset
from candy_monai.recipes.train import Parts, train_dataset
from candy_monai.training.rehearsal import Rehearsal
from candy_monai.training.run import TrainingRun
from candy_monai_bundles.unet import UNetTrainer, build_unet

DATA = Path(os.environ.get("CANDY_MONAI_DATA", Path(__file__).parents[2] / "shared" / "data"))
HIPPOCAMPUS = "Dataset004_Hippocampus"
TARGET_DICE = 0.88


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The amount of measurement: everything, or just enough to check that it works."""

    steps: int
    turns: int
    epochs: int
    volume: int
    window: int
    target_dice: float


WHOLE = Sizes(steps=50, turns=3, epochs=100, volume=256, window=96, target_dice=TARGET_DICE)
QUICK = Sizes(steps=2, turns=1, epochs=1, volume=48, window=32, target_dice=0.0)


class GPUBenchmark:
    """The measurements of one device on one dataset."""

    def __init__(self, dataset: Path, scratch: Path, device: torch.device, sizes: Sizes, settings: dict[str, str]):
        self.device, self.sizes, self.dataset = device, sizes, dataset
        self.options = TrainOptions(
            out=scratch / "experiments", store=scratch / "store", device=str(device), overrides=settings
        )
        prepared = prepare_dataset(
            dataset, self.options, device=device, trainer=UNetTrainer, on_progress=lambda _: None
        )
        self.run = PlannedRun(
            prepared=dataclasses.replace(prepared, validation=()),  # scores are not part of a step
            options=self.options,
            trainer_class=UNetTrainer,
            own=Parts.of(self.options).own,
            frontend=None,
            seed=0,
            device=device,
            processes=Processes(),
        )
        self.plan = dataclasses.replace(prepared.plan, iterations_per_epoch=max(4, sizes.steps), num_epochs=1)

    def step(self) -> dict[str, object]:
        """Time training steps alternately."""
        rehearsal = Rehearsal(self.run._trainer(self.plan))
        batch = unpack(next(iter(rehearsal.loaders.training)))
        batch = batch._replace(images=batch.images.to(self.device), labels=batch.labels.to(self.device))
        with rehearsal.begun(TrainSettings(num_epochs=1, seed=0, amp="auto"), batch.images[0].cpu()) as toolbox:
            amp = rehearsal._trainer._current_run().settings.amp
            ways: dict[str, Callable[[], object]] = {
                "ours": lambda: rehearsal.train(batch),
                "bare": bare_step(self.plan, batch, toolbox.criterion, amp, self.device),
            }
            with contextlib.suppress(ImportError):
                ways["nnunet"] = nnunet_step(self.plan, batch, self.device)
            seconds = self._by_turns(ways)
        if "nnunet" not in seconds:
            seconds["nnunet"] = None
        return {"precision": amp or "float32", **{f"{name}_s": value for name, value in seconds.items()}}

    def loader(self) -> dict[str, object]:
        """Measure the fraction of an epoch that is spent waiting for batches."""
        waited: list[float] = []
        untimed = TrainingRun.batches

        def timed(run: TrainingRun) -> Iterator[object]:
            batches = untimed(run)
            for _ in itertools.count():
                started = time.perf_counter()
                batch = next(batches, None)
                waited.append(time.perf_counter() - started)
                if batch is None:
                    return
                yield batch

        trainer = self.run._trainer(self.plan)
        TrainingRun.batches = timed  # type: ignore[method-assign]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                trainer.train(2, seed=0, amp="auto", save_preview=False, save_report=False)
        finally:
            TrainingRun.batches = untimed  # type: ignore[method-assign]
        epoch_s = load_metrics(trainer.experiment_folder() / "metrics.csv")["epoch duration"][-1]
        second = waited[len(waited) // 2 :]  # the first epoch starts the processes
        return {"share": round(sum(second) / epoch_s, 4), "epoch_s": round(epoch_s, 3)}

    def windows(self) -> dict[str, object]:
        """Time a volume in windows, alternately."""
        side, window = self.sizes.volume, (self.sizes.window,) * 3
        model = BasicUNet(3, 1, 8, features=(8, 8, 16, 32, 64, 8)).to(self.device).eval()
        images = torch.randn(1, 1, side, side, side, device=self.device)
        inferer = WindowInferer(window)
        by_monai: dict[str, Any] = {"overlap": 0.5, "mode": "gaussian"}
        with torch.inference_mode():
            seconds = self._by_turns(
                {
                    "ours": lambda: inferer.labels(images, model),
                    "monai": lambda: sliding_window_inference(images, window, 4, model, **by_monai).argmax(1),
                },
                repeats=1,
            )
        return {f"{name}_s": value for name, value in seconds.items()}

    def dice(self) -> dict[str, object]:
        """Train until the validation Dice is reached, for at least one epoch."""
        folder = train_dataset(self.dataset, self.options, num_epochs=self.sizes.epochs, on_progress=_on_stderr)
        metrics = load_metrics(folder / "metrics.csv")
        ends = itertools.accumulate(metrics["epoch duration"])
        reached = [
            end for end, score in zip(ends, metrics["val score"], strict=True) if score >= self.sizes.target_dice
        ]
        return {"target": self.sizes.target_dice, "s": round(reached[0], 1) if reached else None}

    def _by_turns(self, ways: dict[str, Callable[[], object]], repeats: int | None = None) -> dict[str, float | None]:
        """Return the median time of one call of each function, called alternately a few times per turn."""
        repeats = self.sizes.steps if repeats is None else repeats
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(self.sizes.turns + 1):
            for name, way in ways.items():
                self._wait()
                started = time.perf_counter()
                for _ in range(repeats):
                    way()
                self._wait()
                if turn:  # the first one warms up
                    spent[name].append((time.perf_counter() - started) / repeats)
        return {name: round(statistics.median(seconds), 5) for name, seconds in spent.items()}

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def bare_step(
    plan: Plan, batch: Batch, criterion: nn.Module, amp: str | None, device: torch.device
) -> Callable[[], object]:
    """Return a step of a bare loop: forward, loss, backward, optimizer."""
    network = _network(plan).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate, fused=True)
    kind = {None: None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, kind) if kind is not None else contextlib.nullcontext():
            outputs = network(batch.images)
        outputs = map_tensors(Tensor.float, outputs)
        scaler.scale(split_loss(criterion(outputs, batch.labels))[0]).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _network(plan: Plan) -> nn.Module:
    return build_unet(
        num_dims=plan.num_dims,
        in_channels=len(plan.channel_names),
        out_channels=plan.num_classes,
        filters=plan.filters,
        kernel_sizes=plan.kernel_sizes,
        strides=plan.strides,
        deep_supervision=plan.deep_supervision,
    ).train()


def nnunet_step(plan: Plan, batch: Batch, device: torch.device) -> Callable[[], object]:
    """Return a step of nnU-Net v2's trainer, with its own network and loss.

    Raises:
        ImportError: If nnU-Net is not installed.
    """
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    levels, flat = len(plan.filters), plan.num_dims == 2
    network = PlainConvUNet(
        input_channels=len(plan.channel_names),
        n_stages=levels,
        features_per_stage=plan.filters,
        conv_op=nn.Conv2d if flat else nn.Conv3d,
        kernel_sizes=plan.kernel_sizes,
        strides=plan.strides,
        n_conv_per_stage=2,
        num_classes=plan.num_classes,
        n_conv_per_stage_decoder=2,
        conv_bias=True,
        norm_op=nn.InstanceNorm2d if flat else nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=True,
    ).to(device)
    weights = [0.5**level for level in range(levels - 1)]
    weights[-1] = 0.0  # as in nnU-Net
    dice: dict[str, Any] = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    plain = DC_and_CE_loss(dice, {}, weight_ce=1, weight_dice=1, dice_class=MemoryEfficientSoftDiceLoss)
    loss = DeepSupervisionWrapper(plain, [weight / sum(weights) for weight in weights])
    optimizer = torch.optim.SGD(network.parameters(), 1e-2, weight_decay=3e-5, momentum=0.99, nesterov=True)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type) if device.type == "cuda" else contextlib.nullcontext():
            outputs = network(batch.images)
            targets = [_at_size_of(output, batch.labels) for output in outputs]
            total = loss(outputs, targets)
        scaler.scale(total).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        scaler.step(optimizer)
        scaler.update()

    return step


def _at_size_of(output: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.interpolate(labels.float(), size=output.shape[2:], mode="nearest")


def _on_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="where to measure (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="check that it works, on a synthetic dataset")
    parser.add_argument("--only", action="append", choices=("step", "loader", "windows", "dice"), help="only these")
    arguments = parser.parse_args()
    try:
        device = find_device(arguments.device)
    except BadInputError as error:
        print(f"benchmarks/gpu.py: {error}. Nothing was measured; --device cpu --quick shows that it works.")
        return 2
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    with tempfile.TemporaryDirectory() as folder:
        scratch, sizes, dataset, settings = Path(folder), WHOLE, DATA / HIPPOCAMPUS, {}
        if arguments.quick:
            dataset = write_phantom_dataset(scratch / "phantom", num_cases=5, num_test_cases=0, shape=(24, 24, 16))
            sizes, settings = QUICK, {"filters": "4,8,8", "patch_shape": "16,16,16", "iterations_per_epoch": "2"}
        with contextlib.redirect_stdout(sys.stderr):
            benchmark = GPUBenchmark(dataset, scratch, device, sizes, settings)
        for figure in arguments.only or ("step", "loader", "windows", "dice"):
            with contextlib.redirect_stdout(sys.stderr):
                result = getattr(benchmark, figure)()
            print(json.dumps({"benchmark": "gpu", "figure": figure, "device": name, **result}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
