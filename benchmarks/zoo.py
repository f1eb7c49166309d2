"""Compare the bundles: parameters, memory and CPU time of a training step; with ``--dice``, also the Dice.

Memory is the peak of what autograd keeps for the backward pass, which limits the patch size, as a multiple of that of
the U-Net of the same plan. Time is the CPU time of a step as a multiple of the U-Net's; CPU time depends little on
other work on the machine. Sizes that do not follow a plan are compared with the U-Net of 32 filters, which plans use if
memory is sufficient. ``--write`` updates the table in ``docs/zoo.md``.

``--dice`` trains each bundle on real data for the same CPU time and prints one JSON line each: the Dice on the
validation cases of the fold. ``CANDY_MONAI_DATA`` names the folder of the datasets.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from candy_monai.network import num_parameters
from candy_monai.nn.deep_supervision import DeepSupervisionLoss, outputs_as_list
from candy_monai.nn.losses import DiceCELossWithLogits, split_loss
from candy_monai.registry import bundle_names, find_bundle
from candy_monai.training.options import SegmentationOptions

DATA = Path(os.environ.get("CANDY_MONAI_DATA", Path(__file__).parents[2] / "shared" / "data"))
DATASETS = ("Dataset004_Hippocampus", "Dataset027_ACDC", "Dataset121_DRIVE")
PAGE = Path(__file__).parents[1] / "docs" / "zoo.md"
BEGIN, END = "<!-- measured by benchmarks/zoo.py -->", "<!-- until here -->"
PATCH = {2: (96, 96), 3: (64, 32, 32)}
BATCH = {2: 4, 3: 2}
CLASSES = 3
BY_CPU_TIME = (
    "import queue, selectors, subprocess, threading, time, multiprocessing.connection\n"  # these need the real clock
    "time.monotonic = time.perf_counter = time.process_time\n"
    "from candy_monai.cli.main import main\n"
    "raise SystemExit(main())"
)
"""The command line, with budgets that count the process's CPU time."""


def network_of(name: str, size: str | None, num_dims: int, **options: Any) -> nn.Module:
    """Build the network of a bundle for one channel, with deep supervision if it supports it."""
    trainer_class = find_bundle(name).trainer.with_network({**({"size": size} if size else {}), **options})
    loader = torch.utils.data.DataLoader([0] * BATCH[num_dims], batch_size=BATCH[num_dims])
    trainer = trainer_class("unused", loader, None, console=False)
    trainer.num_dims, trainer.num_classes = num_dims, CLASSES
    trainer.options = SegmentationOptions(deep_supervision=trainer.supervises_deeply)
    return trainer.build_network((1, *PATCH[num_dims])).train()


def measured(network: nn.Module, num_dims: int) -> tuple[int, float]:
    """Return the peak of the bytes that autograd keeps in a training step, and the CPU seconds of the step."""
    images = torch.randn(BATCH[num_dims], 1, *PATCH[num_dims])
    labels = torch.randint(CLASSES, images.shape)
    criterion = DeepSupervisionLoss(DiceCELossWithLogits(CLASSES))

    def step() -> None:
        outputs = network(images)
        many = len(outputs_as_list(outputs, num_dims)) > 1
        split_loss((criterion if many else criterion.criterion)(outputs, labels))[0].backward()
        network.zero_grad()

    kept = bytes_kept(network, step)
    started = time.process_time()
    step()
    return kept, time.process_time() - started


def bytes_kept(network: nn.Module, step: Callable[[], None]) -> int:
    """Return the peak of the bytes of the tensors that a step saves for its backward pass, without parameters.

    Each storage counts once, even if several operations keep it.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    held: dict[int, list[int]] = {}
    now = most = 0

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            nonlocal now, most
            self.tensor, self.place = tensor, tensor.untyped_storage().data_ptr()
            if self.place in own:
                return
            entry = held.setdefault(self.place, [0, tensor.untyped_storage().nbytes()])
            if entry[0] == 0:
                now += entry[1]
                most = max(most, now)
            entry[0] += 1

        def __del__(self) -> None:
            nonlocal now
            if self.place in own:
                return
            entry = held[self.place]
            entry[0] -= 1
            if entry[0] == 0:
                now -= entry[1]
                del held[self.place]

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        step()
    return most


def table() -> str:
    """Measure every bundle and size and return the table."""
    rows = [
        "| bundle | size | parameters, 2-D | 3-D | memory, 2-D | 3-D | time of a step, 2-D | 3-D |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    unet = {num_dims: measured(network_of("unet", "B", num_dims), num_dims) for num_dims in PATCH}
    for name in bundle_names():
        if name == "monai":
            continue
        for size in find_bundle(name).trainer.sizes or [None]:
            cells: dict[str, list[str]] = {"parameters": [], "memory": [], "time": []}
            for num_dims in PATCH:
                network = network_of(name, size, num_dims)
                kept, seconds = measured(network, num_dims)
                cells["parameters"].append(f"{num_parameters(network):,}".replace(",", " "))
                cells["memory"].append(f"{kept / unet[num_dims][0]:.2f}")
                cells["time"].append(f"{seconds / unet[num_dims][1]:.2f}")
            columns = [f"`{name}`", size or "", *(cell for column in cells.values() for cell in column)]
            rows.append(f"| {' | '.join(columns)} |")
            print(rows[-1], file=sys.stderr, flush=True)
    return "\n".join(rows)


def dice(name: str, dataset: str, cpu_s: float, options: list[str]) -> dict[str, object]:
    """Train a bundle until it has used so much CPU time, and return the score of its best weights."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-c", BY_CPU_TIME, "train", str(DATA / dataset), "--bundle", name, "--out", out]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command += ["--budget", f"{cpu_s:g}s", "--seed", "0", *options]
        subprocess.run(command, check=True, stdout=sys.stderr, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        (scores,) = Path(out).glob("*/*/validation.json")
        found = json.loads(scores.read_text(encoding="utf-8"))["foreground_mean"]["Dice"]
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"benchmark": "zoo", "dataset": dataset, "bundle": name, "cpu_s": round(used, 1), "dice": round(found, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="update the table in docs/zoo.md")
    parser.add_argument("--dice", action="store_true", help="train each bundle on real data instead")
    parser.add_argument("--seconds", type=float, default=600.0, help="CPU seconds of each training (default: 600)")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), metavar="NAME")
    parser.add_argument("--bundles", nargs="+", default=[n for n in bundle_names() if n != "monai"], metavar="NAME")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for train")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.dice:
        options = [text for item in arguments.set for text in ("--set", item)]
        for dataset in arguments.datasets:
            for name in arguments.bundles:
                print(json.dumps(dice(name, dataset, arguments.seconds, options)), flush=True)
        return
    text = table()
    if arguments.write:
        page = PAGE.read_text(encoding="utf-8")
        before, after = page.partition(BEGIN)[0], page.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
