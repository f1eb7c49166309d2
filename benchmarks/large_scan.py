"""Measure the cost of a whole-body scan in addition to its network; print one JSON line.

A synthetic CT of 512 x 512 x 800 voxels (0.8 x 0.8 x 1.5 mm, ``.nii.gz``) is predicted by ``candy-monai predict
--memory`` with a U-Net for 117 classes at 1.5 mm and windows of 128^3, in a separate process. The network is tiny and
has its initial weights, so that the run ends in minutes. The costs other than its forward passes are the same for any
network with these classes and windows; they are compared with the forward passes of a U-Net of 32 to 320 filters, one
of which is run (``--network-s`` gives its time instead, for another machine or a GPU).

All times are CPU seconds of the process, by part. Peaks are given for anonymous memory and for all resident memory,
which includes pages of the temporary file that the system may drop at any moment. With ``--compare`` the scan is
predicted once more without a limit, and the label maps must be identical; the memory for this is not limited.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional as F

from candy_monai.data.planning.normalization import ChannelNormalization
from candy_monai.data.planning.plan import Plan
from candy_monai.data.planning.topology import filters_of, topology_of

WINDOW = 128
CLASSES = 118
TINY = (4, 4, 4)
SPACING_MM = (0.8, 0.8, 1.5)
PLANNED_MM = 1.5
GB = 1e9


def plan_of(filters: tuple[int, ...], window: int = WINDOW) -> Plan:
    """Return a plan for a CT dataset with 117 foreground classes at 1.5 mm."""
    topology = topology_of((window,) * 3, (PLANNED_MM,) * 3, max_levels=len(filters))
    return Plan(
        dataset_name="Made-up CT",
        num_dims=3,
        orientation=("R", "A", "S"),
        spacing_mm=(PLANNED_MM,) * 3,
        median_shape=(273, 273, 500),
        channel_names=("CT",),
        normalization=(ChannelNormalization(scheme="ct", lower=-1000.0, upper=1000.0, mean=0.0, std=400.0),),
        class_names=("background", *(f"organ {number}" for number in range(1, CLASSES))),
        num_classes=CLASSES,
        ignore_label=None,
        regions=(),
        patch_shape=(window,) * 3,
        batch_size=2,
        filters=filters,
        kernel_sizes=topology.kernel_sizes,
        strides=topology.strides,
        deep_supervision=False,
        mirror_axes=(),
        num_epochs=1,
        iterations_per_epoch=1,
        resampling="extent",
    )


def write_scan(path: Path, shape: tuple[int, int, int]) -> None:
    """Write a CT of smooth shapes with a little noise."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(0.0, 600.0, [max(2, side // 24) for side in shape]).astype(np.float32))
    smooth = F.interpolate(coarse[None, None], size=shape, mode="trilinear")[0, 0].numpy()
    smooth += rng.integers(-8, 9, shape, dtype=np.int16)
    image = nib.Nifti1Image(smooth.astype(np.int16), np.diag([*SPACING_MM, 1.0]))
    nib.openers.Opener.default_compresslevel = 1
    nib.save(image, path)


def write_experiment(folder: Path, window: int) -> Path:
    """Train the tiny network for one step, and return its experiment."""
    from candy_monai_bundles.unet import UNetTrainer

    loader = torch.utils.data.DataLoader([(torch.randn(1, 16, 16, 16), torch.zeros(1, 16, 16, 16, dtype=torch.int64))])
    trainer = UNetTrainer(folder, loader, None, console=False)
    trainer.use_plan(plan_of(TINY, window))
    trainer.train(1, save_preview=False, save_report=False, num_checkpoints=0, seed=0)
    return trainer.experiment_folder()


class Account:
    """CPU seconds of the process by part; the time of a nested part counts only for that part."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = time.process_time()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure the time of a ``with`` block."""
        self._lap()
        self._open.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._lap()
            self._open.pop()

    def _lap(self) -> None:
        now = time.process_time()
        self.spent[self._open[-1] if self._open else "other"] += now - self._since
        self._since = now

    def around(self, owner: Any, method: str, name: str) -> None:
        """Measure the time of every call of a method or function."""
        plain: Callable[..., Any] = getattr(owner, method)

        @functools.wraps(plain)
        def counted(*arguments: Any, **keywords: Any) -> Any:
            with self.part(name):
                return plain(*arguments, **keywords)

        setattr(owner, method, counted)


def predict(arguments: list[str]) -> None:
    """Run the command line in this process, and print the time of its parts."""
    from candy_monai.cli.main import main as command
    from candy_monai.data.pipelines.preprocessing import Preprocessor
    from candy_monai.inference import outputs
    from candy_monai.inference.inputs import InputCase
    from candy_monai.inference.network_predictor import NetworkPredictor
    from candy_monai.transforms.painting import LabelPainter

    account = Account()
    account.around(InputCase, "load", "reading")
    account.around(NetworkPredictor, "prepare", "preprocessing")
    account.around(LabelPainter, "add", "painting")
    account.around(Preprocessor, "painted_labels", "painting")
    account.around(outputs, "save_image", "writing")
    plain_run = NetworkPredictor.run

    def run(self: NetworkPredictor, *given: Any, **keywords: Any) -> Any:
        if not hasattr(self, "is_counted"):
            account.around(self.model, "forward", "network")
            self.is_counted = True  # type: ignore[attr-defined]
        with account.part("blending"):
            return plain_run(self, *given, **keywords)

    NetworkPredictor.run = run  # type: ignore[method-assign]
    account.spent.clear()
    with peak_of_anonymous_memory() as peak:
        code = command(["predict", *arguments])
    print(
        json.dumps(
            {
                "code": code,
                "cpu_s": {name: round(seconds, 1) for name, seconds in account.spent.items()},
                "windows": account.calls["network"],
                "peak_anonymous_gb": round(peak[0] / GB, 2),
                "peak_resident_gb": round(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GB, 2),
            }
        )
    )


@contextlib.contextmanager
def peak_of_anonymous_memory() -> Iterator[list[int]]:
    """Yield a list of one number, the highest anonymous memory above the start so far, in bytes."""
    start, peak, is_done = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not is_done.wait(0.02):
            peak[0] = max(peak[0], anonymous_bytes() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        is_done.set()
        watcher.join()


def anonymous_bytes() -> int:
    """Return the anonymous memory of this process."""
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("RssAnon"))


def in_a_process(*arguments: str) -> dict[str, Any]:
    """Predict in a separate process and return the last line that it printed."""
    command = [sys.executable, __file__, "--predict", *arguments]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    result: dict[str, Any] = json.loads(lines[-1])
    if result["code"]:
        raise SystemExit(f"candy-monai predict ended with {result['code']}")
    return result


def network_s(window: int) -> float:
    """Return the CPU seconds of one forward pass of a U-Net with the width of nnU-Net's."""
    from candy_monai_bundles.unet import build_unet

    plan = plan_of(filters_of(6, base=32, limit=320))
    network = build_unet(
        num_dims=3,
        in_channels=1,
        out_channels=CLASSES,
        filters=plan.filters,
        kernel_sizes=plan.kernel_sizes,
        strides=plan.strides,
    ).eval()
    with torch.inference_mode():
        network(torch.zeros(1, 1, *(64,) * 3))  # the smallest with two voxels an axis at the coarsest level
        started = time.process_time()
        network(torch.randn(1, 1, *(window,) * 3))
    return time.process_time() - started


def main() -> None:
    if sys.argv[1:2] == ["--predict"]:
        predict(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(512, 512, 800))
    parser.add_argument("--memory", default="4G")
    parser.add_argument("--window", type=int, default=WINDOW, help="side of a window")
    parser.add_argument("--compare", action="store_true", help="also predict without a memory limit")
    parser.add_argument("--network-s", type=float, help="CPU seconds of one window in the real network")
    parser.add_argument("--scratch", type=Path, help="a folder for scan, experiment and temporary files")
    arguments = parser.parse_args()
    one = network_s(arguments.window) if arguments.network_s is None else arguments.network_s
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        (folder / "images").mkdir()
        write_scan(folder / "images" / "scan_0000.nii.gz", tuple(arguments.shape))
        experiment = str(write_experiment(folder / "experiments", arguments.window))
        os.environ["TMPDIR"] = scratch
        bounded = in_a_process(
            experiment, str(folder / "images"), str(folder / "bounded"), "--memory", arguments.memory
        )
        result: dict[str, Any] = {
            "benchmark": "large_scan",
            "shape": tuple(arguments.shape),
            "memory": arguments.memory,
        }
        result |= {name: value for name, value in bounded.items() if name != "code"}
        if arguments.compare:
            free = in_a_process(experiment, str(folder / "images"), str(folder / "unbounded"))
            labels = [nib.load(folder / name / "scan.nii.gz").get_fdata() for name in ("bounded", "unbounded")]
            result["differing_voxels"] = int((labels[0] != labels[1]).sum())
            result["unbounded"] = {name: value for name, value in free.items() if name != "code"}
        beside = sum(seconds for name, seconds in bounded["cpu_s"].items() if name != "network")
        result["network_s_a_window"] = round(one, 2)
        result["share_beside_the_network"] = round(beside / (one * bounded["windows"]), 3)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
