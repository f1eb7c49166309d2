"""Compare the speed of ``candy-monai preprocess`` with nnU-Net's planning and preprocessing; print a JSON line per job.

Both are run alternately from the command line, from raw files to stored cases, each time with an empty store. CPU
seconds are given in addition to wall-clock time, which depends on other work on the machine. The jobs are the 200 cases
of Dataset004_Hippocampus and a synthetic CT dataset of few large volumes with thick slices. nnU-Net is run by the
Python of another environment, given by ``--nnunet-python``; without it only candy-monai is timed, and the line says so.
``CANDY_MONAI_DATA`` names the folder of the datasets.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter

DATA = Path(os.environ.get("CANDY_MONAI_DATA", Path(__file__).parents[2] / "shared" / "data"))
HIPPOCAMPUS = "Dataset004_Hippocampus"
ANISOTROPIC = "Dataset999_ThickSlices"
SHAPE = (512, 512, 60)
SPACINGS_MM = ((0.7, 0.7, 5.0), (0.85, 0.85, 5.0), (0.6, 0.6, 4.0), (0.75, 0.75, 5.0))
NUM_PROCESSES = 2
NNUNET = """
from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry
plan_and_preprocess_entry()
"""


def write_thick_slices(folder: Path, *, num_cases: int = len(SPACINGS_MM)) -> Path:
    """Write volumes of smooth noise around a few ellipsoids, of the size of a CT with thick slices."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in SHAPE), indexing="ij"))
    for case in range(num_cases):
        image = gaussian_filter(rng.normal(0, 400, SHAPE).astype(np.float32), (2, 2, 0.5)) - 80
        label = np.zeros(SHAPE, np.uint8)
        for class_id in (1, 2, 3):
            centre, radii = rng.uniform(-0.5, 0.5, 3), rng.uniform(0.15, 0.4, 3)
            inside = sum(
                ((axis - middle) / radius) ** 2 for axis, middle, radius in zip(grid, centre, radii, strict=True)
            )
            label[inside < 1] = class_id
        image += 60.0 * label
        affine = np.diag([*SPACINGS_MM[case % len(SPACINGS_MM)], 1.0])
        image_file, label_file = folder / f"imagesTr/case_{case}_0000.nii.gz", folder / f"labelsTr/case_{case}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image.astype(np.int16), affine), image_file)
        nibabel.save(nibabel.Nifti1Image(label, affine), label_file)
    description = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "a": 1, "b": 2, "c": 3},
        "numTraining": num_cases,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a command: wall-clock seconds, CPU seconds, and the peak memory of its largest process."""

    seconds: float
    cpu_s: float
    peak_mib: float


def candy_monai(dataset: Path, scratch: Path) -> Cost:
    """Run our command with an empty store."""
    with tempfile.TemporaryDirectory(dir=scratch) as store:
        return timed([sys.executable, "-m", "candy_monai", "preprocess", str(dataset), "--store", store], os.environ)


def nnunet(python: str, dataset: Path, scratch: Path) -> Cost:
    """Run nnU-Net's command with empty folders."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        environment = {
            **os.environ,
            "nnUNet_raw": str(dataset.parent),
            "nnUNet_preprocessed": folder,
            "nnUNet_results": folder,
        }
        environment.pop("PYTHONPATH", None)
        number = dataset.name.removeprefix("Dataset").partition("_")[0]
        options = ["-d", number, "-c", "3d_fullres", "-np", str(NUM_PROCESSES), "-npfp", str(NUM_PROCESSES)]
        return timed([python, "-c", NNUNET, *options], environment)


def timed(command: list[str], environment: Mapping[str, str]) -> Cost:
    """Run a command without output, and return its cost."""
    started = time.perf_counter()
    child = subprocess.Popen(command, env=dict(environment), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr is not None
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{command[:4]} failed:\n{errors.decode()[-2000:]}")
    return Cost(
        seconds=time.perf_counter() - started,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mib=usage.ru_maxrss / 1024,
    )


def compare(job: str, dataset: Path, python: str | None, turns: int, scratch: Path) -> dict[str, object]:
    """Run both alternately and return the line of a job."""
    ours, theirs = [], []
    for _ in range(turns):
        ours.append(candy_monai(dataset, scratch))
        if python is not None:
            theirs.append(nnunet(python, dataset, scratch))
    line: dict[str, object] = {"benchmark": "preprocess", "job": job, "turns": turns, **summary("candy_monai", ours)}
    if not theirs:
        return line | {"skipped": "nnU-Net was not timed: name its Python by --nnunet-python"}
    return {
        **line,
        **summary("nnunet", theirs),
        "times_as_fast": round(typical(theirs).seconds / typical(ours).seconds, 1),
        "times_less_work": round(typical(theirs).cpu_s / typical(ours).cpu_s, 1),
    }


def typical(costs: Sequence[Cost]) -> Cost:
    """Return the medians of the times and the largest peak."""
    return Cost(
        seconds=median(cost.seconds for cost in costs),
        cpu_s=median(cost.cpu_s for cost in costs),
        peak_mib=max(cost.peak_mib for cost in costs),
    )


def summary(name: str, costs: Sequence[Cost]) -> dict[str, float]:
    cost = typical(costs)
    return {
        f"{name}_s": round(cost.seconds, 1),
        f"{name}_cpu_s": round(cost.cpu_s, 1),
        f"{name}_peak_mib": round(cost.peak_mib),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", choices=("hippocampus", "anisotropic", "both"), default="both")
    parser.add_argument("--nnunet-python", metavar="FILE", help="the Python of an environment with nnunetv2")
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        jobs = {}
        if arguments.job != "anisotropic":
            jobs["hippocampus"] = DATA / HIPPOCAMPUS
        if arguments.job != "hippocampus":
            jobs["anisotropic"] = write_thick_slices(Path(scratch) / "raw" / ANISOTROPIC)
        for job, dataset in jobs.items():
            print(
                json.dumps(compare(job, dataset, arguments.nnunet_python, arguments.turns, Path(scratch))), flush=True
            )


if __name__ == "__main__":
    main()
