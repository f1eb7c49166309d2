"""Measure the memory of a training step of a plan; print one JSON line per plan.

Each plan is made for the memory of a kind of GPU, of which it uses 70 %. Its step is run on PyTorch's meta device by
the real `Trainer`: this allocates what a step allocates, but computes nothing. ``error`` is that of the plan's own
estimate, relative to the peak of the allocated bytes. ``cpu`` instead of a number of gigabytes is the plan without a
GPU: its step is also run on this CPU, where ``saved_gb`` is the peak of what autograd keeps for the backward pass
(`torch.autograd.graph.saved_tensors_hooks`), and ``resident_gb`` that of the anonymous memory of the process.

``--write`` updates the table in ``docs/data.md``. ``CANDY_MONAI_DATA`` names the folder of the datasets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from pathlib import Path

import torch
from large_scan import peak_of_anonymous_memory
from torch.utils.data import DataLoader
from zoo import bytes_kept

from candy_monai.allocation import give_back_freed_memory
from candy_monai.data.inspection.fingerprint import Fingerprint
from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.planning.plan import Plan
from candy_monai.data.planning.rules import plan
from candy_monai.data.samples.batches import Batch
from candy_monai.experiment.settings import TrainSettings
from candy_monai.live_bytes import LiveBytes
from candy_monai.recipes.prepare import USABLE_SHARE
from candy_monai.training.rehearsal import Rehearsal
from candy_monai_bundles.unet import UNetTrainer

DATA = Path(os.environ.get("CANDY_MONAI_DATA", Path(__file__).parents[2] / "shared" / "data"))
DATASETS = ("Dataset004_Hippocampus", "Dataset068_AtlasCh2AAL", "Dataset121_DRIVE")
MEMORIES_GB = (8, 16, 24, 40, 80)
PAGE = Path(__file__).parents[1] / "docs" / "data.md"
BEGIN, END = "<!-- made by benchmarks/training_memory.py -->", "<!-- until here -->"
GIB = 1 << 30


def rehearsal_of(made: Plan, device: str, folder: str) -> tuple[Rehearsal, Batch]:
    """Return a rehearsal of a plan's steps, and a batch of zeros."""
    image = torch.zeros(len(made.channel_names), *made.patch_shape)
    label = torch.zeros(1, *made.patch_shape, dtype=torch.uint8)
    trainer = UNetTrainer(folder, DataLoader([(image, label)]), None, console=False, device=device)
    trainer.use_plan(made)
    stacked = (each[None].expand(made.batch_size, *each.shape) for each in (image, label))
    return Rehearsal(trainer), Batch(*stacked, case_ids=())


def live_bytes(made: Plan) -> int:
    """Return the peak of the bytes allocated in a step, on the meta device."""
    with tempfile.TemporaryDirectory() as folder:
        rehearsal, batch = rehearsal_of(made, "meta", folder)
        with LiveBytes("meta") as live, rehearsal.begun(TrainSettings(num_epochs=1, seed=0), batch.images[0]):
            for _ in range(2):
                rehearsal.train(batch)
    return live.most


def on_this_cpu(made: Plan) -> dict[str, float]:
    """Run steps on the CPU and return the peaks of what autograd keeps and of the memory of the process."""
    give_back_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        rehearsal, batch = rehearsal_of(made, "cpu", folder)
        with (
            peak_of_anonymous_memory() as peak,
            rehearsal.begun(TrainSettings(num_epochs=1, seed=0), batch.images[0]) as toolbox,
        ):
            rehearsal.train(batch)
            saved = bytes_kept(toolbox.model, lambda: rehearsal.train(batch))
    return {"saved_gb": round(saved / GIB, 3), "resident_gb": round(peak[0] / GIB, 3)}


def measured(fingerprint: Fingerprint, gigabytes: int | None) -> tuple[Plan, dict[str, object]]:
    """Plan for a GPU with so many gigabytes, or for none, and compare the plan's estimate with a step."""
    made = plan(fingerprint, memory_bytes=None if gigabytes is None else int(USABLE_SHARE * gigabytes * GIB))
    live = live_bytes(made)
    return made, {
        "benchmark": "training_memory",
        "dataset": fingerprint.dataset_name,
        "memory": gigabytes or "cpu",
        "patch": made.patch_shape,
        "batch": made.batch_size,
        "filters": made.filters,
        "planned_gb": round(made.step_bytes / GIB, 3),
        "live_gb": round(live / GIB, 3),
        "error": round(made.step_bytes / live - 1, 4),
        **(on_this_cpu(made) if gigabytes is None else {}),
    }


def rows_of(plans: dict[int, Plan]) -> list[str]:
    """Return the rows of a dataset's plans by gigabytes, with one row for identical plans."""
    rows = []
    for made, same in itertools.groupby(plans, key=plans.__getitem__):
        gigabytes = list(same)
        memory = f"{gigabytes[0]} GB" if len(gigabytes) == 1 else f"{gigabytes[0]} to {gigabytes[-1]} GB"
        patch, widths = " x ".join(map(str, made.patch_shape)), ", ".join(map(str, made.filters))
        size = f"{made.step_bytes / GIB:.1f} GiB"
        rows.append(f"| {made.dataset_name} | {memory} | {patch} | {made.batch_size} | {widths} | {size} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", default=DATASETS, help="names of dataset folders")
    parser.add_argument("--write", action="store_true", help="update the table in docs/data.md")
    parser.add_argument("--no-cpu", action="store_true", help="leave out the plan without a GPU")
    arguments = parser.parse_args()
    rows = ["| dataset | memory | patch | batch | filters | a step takes |", "|---|---|---|--:|---|--:|"]
    for name in arguments.datasets:
        fingerprint, plans = inspect(DATA / name), dict[int, Plan]()
        for gigabytes in (*MEMORIES_GB, *([] if arguments.no_cpu else [None])):
            made, line = measured(fingerprint, gigabytes)
            print(json.dumps(line), flush=True)
            if gigabytes is not None:
                plans[gigabytes] = made
        rows += rows_of(plans)
    if arguments.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text("\n".join([before + BEGIN, *rows, END + after]), encoding="utf-8")


if __name__ == "__main__":
    main()
