"""Compare ``candy-monai train --budget`` with plain training loops; print one JSON line per dataset and budget.

For every dataset with two or more labelled cases, a fifth of the patients are the test set. On the others three models
are trained, each in the same time on the same machine, one after the other: ours from the command line, a plain 2-D
loop and a plain 3-D loop. A plain loop is what a user of MONAI would write in an afternoon: DynUNet with 16 to 128
filters, AdamW at 3e-3 with a polynomial decay over the time, a moving average of the weights, flips and noise, and
crops of which half are centred on the foreground. All three are scored on the test set by the mean Dice of the
foreground classes, in the geometry of the images; a class that is in neither the reference nor the prediction of a case
does not count.

With ``--cpu-time`` the time is CPU time of one thread, in seconds of two idle cores (see ``cpu_clock.py``). It does not
depend on other work on the machine, so that the Dice can be compared on a machine in use.

``CANDY_MONAI_DATA`` names the folder of the datasets.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cpu_clock
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet

import candy_monai
from candy_monai.data.datasets.patients import patients_by_name
from candy_monai.data.images.names import image_suffix

DATA = Path(os.environ.get("CANDY_MONAI_DATA", Path(__file__).parents[2] / "shared" / "data"))
FILTERS = (16, 32, 64, 128)
VOXELS_PER_STEP = 400_000
SIDE = {2: 160, 3: 96}
AVERAGE = 0.99


def held_out(case_ids: list[str], seed: int) -> list[str]:
    """Return the cases of a fifth of the patients, and of at least one."""
    names = patients_by_name(case_ids)
    patient_of = {case_id: case_id for case_id in case_ids} if names is None else dict(names.patient_of)
    patients = sorted(set(patient_of.values()))
    chosen = set(random.Random(seed).sample(patients, max(1, round(len(patients) / 5))))
    return [case_id for case_id in case_ids if patient_of[case_id] in chosen]


def split(source: Path, target: Path, seed: int) -> list[str]:
    """Link the cases into ``target``, a fifth of the patients as its test set, and return the ids of the test set."""
    dataset = candy_monai.NNUNetDataset(source)
    tested = held_out([case.case_id for case in dataset.cases], seed)
    for folder in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (target / folder).mkdir(parents=True)
    for case in dataset.cases:
        part = "Ts" if case.case_id in tested else "Tr"
        for file in (*case.images, case.label):
            for path in (file, file.with_suffix(".json")):  # a TIFF's spacing
                if path.exists():
                    (target / (path.parent.name[:-2] + part) / path.name).symlink_to(path)
    description = json.loads((source / "dataset.json").read_text())
    description["numTraining"] = len(dataset) - len(tested)
    (target / "dataset.json").write_text(json.dumps(description))
    return tested


def ours(dataset: Path, scratch: Path, predictions: Path, budget_s: float, seed: int, *, cpu_time: bool) -> float:
    """Train and predict from the command line; return the duration of training in seconds of wall-clock time."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "candy_monai"]
    options = ["--budget", f"{budget_s:.0f}s", "--fold", "all", "--seed", str(seed), "--out", str(scratch / "ours")]
    timed = command
    if cpu_time:  # in one process: the CPU time of others would not be counted
        timed = [sys.executable, str(Path(__file__).with_name("cpu_clock.py"))]
        options += ["--device", "cpu", "--jobs", "1"]
    subprocess.run([*timed, "train", str(dataset), *options], check=True, stdout=sys.stderr)
    seconds = time.perf_counter() - started
    (experiment,) = (path.parent for path in (scratch / "ours").glob("*/*/experiment.json"))
    images = str(dataset / "imagesTs")
    subprocess.run([*command, "predict", str(experiment), images, str(predictions)], check=True, stdout=sys.stderr)
    return seconds


class Plain:
    """A plain loop over whole cases in memory; ``num_dims`` is 2 for slices across the coarsest axis, or 3."""

    def __init__(self, dataset: Path, num_dims: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.rng = np.random.default_rng(seed)
        self.folder, self.num_dims = dataset, num_dims
        training = candy_monai.NNUNetDataset(dataset)
        self.num_classes = training.description.num_classes
        self.suffix = training.description.file_ending
        cases = [training[index] for index in range(len(training))]
        self.axis = int(np.argmax(cases[0][0].pixdim))  # the coarsest
        self.cases = [(self.scaled(image), np.asarray(label[0])) for image, label in cases]
        shapes = np.array([label.shape for _, label in self.cases])
        typical = np.median(shapes, axis=0)
        strides = np.ones((len(FILTERS), len(typical)), dtype=int)
        for level in range(1, len(FILTERS)):  # halve long axes, but not the axis of slices
            strides[level] = np.where(typical / strides[:level].prod(0) >= 8, 2, 1)
        if num_dims == 2 and len(typical) == 3:
            typical[self.axis], strides[:, self.axis] = 1, 1
        divisor = strides.prod(0)
        self.patch = (
            np.maximum(1, np.minimum(np.ceil(typical / divisor), SIDE[num_dims] // divisor)).astype(int) * divisor
        )
        self.batch_size = int(np.clip(VOXELS_PER_STEP // self.patch.prod(), 2, 16))
        axes = [axis for axis in range(len(typical)) if num_dims == 3 or len(typical) == 2 or axis != self.axis]
        self.network = DynUNet(
            spatial_dims=len(axes),
            in_channels=len(self.cases[0][0]),
            out_channels=self.num_classes,
            kernel_size=[3] * len(FILTERS),
            strides=[tuple(int(step[axis]) for axis in axes) for step in strides],
            upsample_kernel_size=[tuple(int(step[axis]) for axis in axes) for step in strides[1:]],
            filters=FILTERS,
        )
        self.squeezed = len(typical) == 3 and num_dims == 2

    def scaled(self, image: torch.Tensor) -> np.ndarray:
        """Return an image with mean 0 and standard deviation 1 in each channel."""
        array = np.asarray(image, dtype=np.float32)
        axes = tuple(range(1, array.ndim))
        return (array - array.mean(axes, keepdims=True)) / (array.std(axes, keepdims=True) + 1e-6)

    def sample(self) -> tuple[np.ndarray, np.ndarray]:
        """Return a random crop of a random case, flipped and with noise: ``(C, *patch)`` and label ``(*patch)``."""
        image, label = self.cases[self.rng.integers(len(self.cases))]
        widths = [(0, max(0, size - have)) for size, have in zip(self.patch, label.shape, strict=True)]
        image, label = np.pad(image, [(0, 0), *widths]), np.pad(label, widths)
        room = np.array(label.shape) - self.patch
        start = np.array([self.rng.integers(most + 1) for most in room])
        inside = np.argwhere(label) if self.rng.random() < 0.5 else ()
        if len(inside):
            start = np.clip(inside[self.rng.integers(len(inside))] - self.patch // 2, 0, room)
        where = tuple(slice(begin, begin + size) for begin, size in zip(start, self.patch, strict=True))
        image, label = image[(slice(None), *where)], label[where]
        for axis in range(label.ndim):
            if self.rng.random() < 0.5:
                image, label = np.flip(image, axis + 1), np.flip(label, axis)
        noise = self.rng.normal(0, 0.1 * self.rng.random(), image.shape)
        return (image * self.rng.uniform(0.8, 1.2) + noise).astype(np.float32), label.copy()

    def train(self, budget_s: float, clock: Callable[[], float]) -> None:
        """Train until the time is up."""
        started = clock()
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=3e-3, weight_decay=1e-2)
        criterion = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
        average = copy.deepcopy(self.network)
        while (share := (clock() - started) / budget_s) < 1:
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * (1 - share) ** 0.9
            pairs = [self.sample() for _ in range(self.batch_size)]
            images = torch.from_numpy(np.stack([image for image, _ in pairs]))
            labels = torch.from_numpy(np.stack([label for _, label in pairs]))[:, None]
            if self.squeezed:
                images, labels = images.squeeze(2 + self.axis), labels.squeeze(2 + self.axis)
            optimizer.zero_grad()
            criterion(self.network(images), labels).backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12.0)
            optimizer.step()
            with torch.no_grad():
                for kept, new in zip(average.parameters(), self.network.parameters(), strict=True):
                    kept.lerp_(new, 1 - AVERAGE)
        self.network = average.eval()

    @torch.inference_mode()
    def predict(self, predictions: Path) -> None:
        """Write the label maps of the test set."""
        test = candy_monai.NNUNetDataset(self.folder, split="Ts")
        for case, (image, _) in zip(test.cases, test, strict=True):
            scores = sliding_window_inference(
                torch.from_numpy(self.scaled(image))[None],
                tuple(map(int, self.patch)),
                8,
                self._slices,
                0.5,
                "gaussian",
            )
            label_map = scores[0].argmax(0, keepdim=True)
            candy_monai.save_image(label_map, predictions / (case.case_id + self.suffix), like=case.images[0])

    def _slices(self, windows: torch.Tensor) -> torch.Tensor:
        if not self.squeezed:
            return self.network(windows)
        return self.network(windows.squeeze(2 + self.axis)).unsqueeze(2 + self.axis)


def plain(dataset: Path, predictions: Path, num_dims: int, budget_s: float, seed: int, *, cpu_time: bool) -> float:
    """Train and predict with a plain loop; return the wall-clock seconds of training, including reading."""
    clock = cpu_clock.clock if cpu_time else time.perf_counter
    if cpu_time:
        torch.set_num_threads(1)
    started, since = time.perf_counter(), clock()
    loop = Plain(dataset, num_dims, seed)
    loop.train(budget_s - (clock() - since), clock)
    seconds = time.perf_counter() - started
    loop.predict(predictions)
    return seconds


def score(predictions: Path, labels: Path, case_ids: list[str], num_classes: int) -> float:
    """Return the mean Dice of the test set."""
    (suffix,) = {image_suffix(path) for path in labels.iterdir() if path.suffix != ".json"}
    names = {case_id: case_id + suffix for case_id in case_ids}
    files = {case_id: predictions / name for case_id, name in names.items()}
    references = {case_id: labels / name for case_id, name in names.items()}
    result = candy_monai.Evaluator("dice", num_classes=num_classes).evaluate(files, references)
    return float(result.mean_metrics["dice"])


def compared(name: str, budget_s: float, seed: int, *, cpu_time: bool) -> dict[str, object]:
    """Return the Dice and the training times of ours and of the plain loops on one dataset."""
    with tempfile.TemporaryDirectory() as folder:
        scratch, dataset = Path(folder), Path(folder) / name
        tested = split(DATA / name, dataset, seed)
        training = candy_monai.NNUNetDataset(dataset)
        line: dict[str, object] = {
            "benchmark": "plain_loops",
            "dataset": name,
            "budget_s": budget_s,
            "cpu_time": cpu_time,
        }
        line["num_tested"] = len(tested)
        for way in ("ours", "plain_2d", "plain_3d")[: training[0][1].ndim - 1]:  # no 3-D loop for 2-D images
            if way == "ours":
                seconds = ours(dataset, scratch, scratch / way, budget_s, seed, cpu_time=cpu_time)
            else:
                seconds = plain(dataset, scratch / way, int(way[-2]), budget_s, seed, cpu_time=cpu_time)
            dice = score(scratch / way, dataset / "labelsTs", tested, training.description.num_classes)
            line |= {way: round(dice, 4), f"{way}_s": round(seconds, 1)}
        return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", help="names of dataset folders; all by default")
    parser.add_argument("--budgets", default="180,600", metavar="SECONDS[,SECONDS...]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time instead of wall-clock time")
    arguments = parser.parse_args()
    for name in arguments.datasets or sorted(path.name for path in DATA.glob("Dataset*")):
        if len(candy_monai.NNUNetDataset(DATA / name)) > 1:
            for budget_s in map(float, arguments.budgets.split(",")):
                print(json.dumps(compared(name, budget_s, arguments.seed, cpu_time=arguments.cpu_time)), flush=True)


if __name__ == "__main__":
    main()
