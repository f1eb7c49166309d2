"""Check that time and memory of each stage grow at most linearly with the number of cases; print one JSON line.

Generates datasets of small uncompressed volumes in nnU-Net's format, with 22 voxels along each axis: more than
inspection samples of a case. Each stage below is run on them in a separate process. For each stage, the CPU seconds
without imports and the peak memory of the process (``ru_maxrss``) are given. ``growth`` is the cost of an additional
case between the smallest and the largest dataset, divided by the cost of a case in the smallest: 1 or less is linear.
``more_mib`` is the growth of the peak between them.

The stages: listing; digest; inspect (the checks of the dataset and the fingerprint); inspect_again (from stored
results); preprocess; folds; sampler (an epoch that draws as many patches as there are cases); epoch (of 1000 patches);
validation (of 200 cases); predict (a network of one convolution); evaluate (Dice and IoU); page (of the evaluation).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SIZE = 22
PATCHES, VALIDATED = 1000, 200
OUTPUT = "output"
"""The folder of a dataset's results, beside the dataset."""


def write_dataset(folder: Path, num_cases: int) -> None:
    """Write a dataset of random volumes with three classes."""
    import nibabel
    import numpy as np

    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    rng, affine = np.random.default_rng(0), np.diag([1.0, 1.0, 1.5, 1.0])
    for number in range(num_cases):
        label = np.zeros((SIZE,) * 3, np.uint8)
        for class_id in (1, 2):
            start = rng.integers(0, SIZE // 2, 3)
            label[tuple(slice(begin, begin + SIZE // 2) for begin in start)] = class_id
        image = (rng.normal(100, 20, label.shape) + 30 * label).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / f"imagesTr/case_{number:06d}_0000.nii")
        nibabel.save(nibabel.Nifti1Image(label, affine), folder / f"labelsTr/case_{number:06d}.nii")
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "a": 1, "b": 2},
        "numTraining": num_cases,
        "file_ending": ".nii",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def listing(folder: Path) -> Callable[[], object]:
    from candy_monai.data.datasets.nnunet import NNUNetDataset

    return lambda: NNUNetDataset(folder)


def digest(folder: Path) -> Callable[[], object]:
    from candy_monai.data.datasets.nnunet import NNUNetDataset
    from candy_monai.data.inspection.digest import dataset_digests

    dataset = NNUNetDataset(folder)
    return lambda: dataset_digests(dataset)


def inspect(folder: Path) -> Callable[[], object]:
    from candy_monai.data.inspection.checks import visit_dataset

    def work() -> None:
        checked = visit_dataset(folder, store=folder / OUTPUT, num_workers=1)
        assert checked.fingerprint is not None, checked.report.problems
        checked.fingerprint.save(folder / OUTPUT / "fingerprint.json")

    return work


def preprocess(folder: Path) -> Callable[[], object]:
    from candy_monai.data.datasets.nnunet import NNUNetDataset
    from candy_monai.data.inspection.fingerprint import Fingerprint
    from candy_monai.data.planning.rules import plan
    from candy_monai.data.samples.store import CaseStore

    def work() -> None:
        made = plan(Fingerprint.load(folder / OUTPUT / "fingerprint.json"), overrides={"patch_shape": (8, 8, 8)})
        (folder / OUTPUT / "plan.json").write_text(json.dumps(made.to_dict()))
        CaseStore.build(NNUNetDataset(folder), made, folder / OUTPUT, num_workers=1)

    return work


def folds(folder: Path) -> Callable[[], object]:
    from candy_monai.data.datasets.folds import choose_folds, read_splits, write_splits
    from candy_monai.data.datasets.nnunet import NNUNetDataset

    case_ids = NNUNetDataset(folder).case_ids

    def work() -> None:
        write_splits(folder / OUTPUT / "splits_final.json", choose_folds(case_ids))
        read_splits(folder / OUTPUT / "splits_final.json", case_ids=case_ids)

    return work


def _stored(folder: Path):  # type: ignore[no-untyped-def]  # only the stages import its types
    from candy_monai.data.planning.files import plan_of
    from candy_monai.data.samples.store import CaseStore

    (store,) = (folder / OUTPUT).glob("*/store-*.json")
    file = folder / OUTPUT / "plan.json"
    return CaseStore(store.parent), plan_of(json.loads(file.read_text()), file)


def sampler(folder: Path) -> Callable[[], object]:
    from candy_monai.data.samples.patches import EpochSampler, PatchDataset

    store, made = _stored(folder)

    def work() -> None:
        patches = PatchDataset(store, store.case_ids, made, seed=0)
        for index in EpochSampler(len(store.case_ids)):
            patches.draw(index)

    return work


def epoch(folder: Path) -> Callable[[], object]:
    from candy_monai.data.samples.patches import PatchDataset

    store, made = _stored(folder)

    def work() -> None:
        patches = PatchDataset(store, store.case_ids, made, seed=0)
        for index in range(PATCHES):
            patches[index]

    return work


def validation(folder: Path) -> Callable[[], object]:
    from candy_monai.data.datasets.folds import read_splits
    from candy_monai.data.samples.patches import StoredCases
    from candy_monai.recipes.prepare import evenly_spaced

    store, _ = _stored(folder)

    def work() -> None:
        held_back = read_splits(folder / OUTPUT / "splits_final.json", case_ids=store.case_ids)[0].validation
        cases = StoredCases(store, evenly_spaced(held_back, VALIDATED))
        for index in range(len(cases)):
            cases[index]

    return work


def predict(folder: Path) -> Callable[[], object]:
    import torch
    from torch.utils.data import DataLoader

    from candy_monai import DatasetFromMemory, Predictor, SegmentationTrainer

    class Trainer(SegmentationTrainer):
        num_classes = 3

        def build_network(self, example_shape):  # type: ignore[no-untyped-def]
            return torch.nn.Conv3d(1, 3, 3, padding=1)

    torch.manual_seed(0)
    images = [torch.rand(1, SIZE, SIZE, SIZE) for _ in range(2)]
    loader = DataLoader(DatasetFromMemory(images, [(image > 0.5).long() for image in images]))
    trainer = Trainer(folder / OUTPUT / "experiments", loader, loader, console=False)
    trainer.train(1, save_preview=False)
    predictor = Predictor(trainer.experiment_folder(), network=torch.nn.Conv3d(1, 3, 3, padding=1))
    return lambda: predictor.predict_to_files(folder / "imagesTr", folder / OUTPUT / "predictions")


def evaluate(folder: Path) -> Callable[[], object]:
    from candy_monai import Evaluator

    def work() -> None:
        result = Evaluator("dice", "iou", num_classes=3).evaluate(
            folder / OUTPUT / "predictions", folder / "labelsTr", jobs=1
        )
        result.save(folder / OUTPUT / "summary.json")

    return work


def page(folder: Path) -> Callable[[], object]:
    from candy_monai.report.evaluation import write_evaluation

    def work() -> None:
        summary = json.loads((folder / OUTPUT / "summary.json").read_text())
        write_evaluation(summary, folder / OUTPUT / "page.html", title="many cases", names={1: "a", 2: "b"})

    return work


STAGES: dict[str, Callable[[Path], Callable[[], object]]] = {
    "listing": listing,
    "digest": digest,
    "inspect": inspect,
    "inspect_again": inspect,
    "preprocess": preprocess,
    "folds": folds,
    "sampler": sampler,
    "epoch": epoch,
    "validation": validation,
    "predict": predict,
    "evaluate": evaluate,
    "page": page,
}


def run_stage(name: str, folder: Path) -> None:
    """Run a stage in this process, and print its CPU seconds."""
    import torch

    torch.set_num_threads(1)
    work = STAGES[name](folder)
    started = time.process_time()
    work()
    print(json.dumps(time.process_time() - started))


def measured(name: str, folder: Path) -> tuple[float, float]:
    """Return the CPU seconds of a stage, and the peak of its process's memory in MiB."""
    command = [sys.executable, __file__, "--stage", name, "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        told = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"the stage {name} failed")
    return float(json.loads(told.splitlines()[-1])), usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=[1000, 4000, 20000])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="each needs those before")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage is not None:
        run_stage(arguments.stage, arguments.folder)
        return
    numbers = sorted(arguments.cases)
    line: dict[str, object] = {"benchmark": "many_cases", "cases": numbers}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in arguments.stages}
    for number in numbers:
        folder = Path(tempfile.mkdtemp(prefix="many_cases-"))
        try:
            write_dataset(folder, number)
            (folder / OUTPUT).mkdir()
            for name in arguments.stages:
                found[name].append(measured(name, folder))
                print(f"{number} {name}: {found[name][-1][0]:.2f} s, {found[name][-1][1]:.0f} MiB", file=sys.stderr)
        finally:
            shutil.rmtree(folder)
    for name, costs in found.items():
        seconds, peaks = zip(*costs, strict=True)
        line[name] = {"cpu_s": [round(value, 2) for value in seconds], "peak_mib": [round(value) for value in peaks]}
        if len(numbers) > 1:
            one_more = (seconds[-1] - seconds[0]) / (numbers[-1] - numbers[0])
            line[name] |= {  # type: ignore[operator]
                "growth": round(one_more / (seconds[0] / numbers[0]), 2),
                "more_mib": round(peaks[-1] - peaks[0]),
            }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
