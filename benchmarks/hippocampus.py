"""Measure the Dice of ``candy-monai train --budget`` on real MRI; print one JSON line.

Trains on the cases of Dataset004_Hippocampus except the last 60 by id, predicts those 60 from the command line, and
measures their Dice. These 60 cases differ from the others: their contours are rougher and their scans noisier, and a
model that was not trained on similar cases has a Dice that is about 0.03 lower on them than on its own validation
cases. Therefore a second training, on fold 0 of all 200 cases, shows what to expect if training and new cases are
similar: the Dice on its 40 validation cases.

The cases are linked, not copied. ``CANDY_MONAI_DATA`` names the folder of the datasets.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np

from candy_monai.evaluation.evaluator import Evaluator

DATA = Path(os.environ.get("CANDY_MONAI_DATA", Path(__file__).parents[2] / "shared" / "data"))
NAME = "Dataset004_Hippocampus"
NUM_HELD_OUT = 60


def split(source: Path, target: Path) -> list[str]:
    """Link the cases into ``target``, the last 60 as its test set, and return their ids."""
    ids = sorted(path.name.removesuffix(".nii.gz") for path in (source / "labelsTr").glob("*.nii.gz"))
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (target / folder).mkdir(parents=True)
    for index, case_id in enumerate(ids):
        held_out = index >= len(ids) - NUM_HELD_OUT
        image, label = f"{case_id}_0000.nii.gz", f"{case_id}.nii.gz"
        (target / ("imagesTs" if held_out else "imagesTr") / image).symlink_to(source / "imagesTr" / image)
        if not held_out:
            (target / "labelsTr" / label).symlink_to(source / "labelsTr" / label)
    description = json.loads((source / "dataset.json").read_text())
    description["numTraining"] = len(ids) - NUM_HELD_OUT
    (target / "dataset.json").write_text(json.dumps(description))
    return ids[-NUM_HELD_OUT:]


def run(*arguments: str | Path) -> float:
    """Run the command line and return its duration in seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "candy_monai", *map(str, arguments)], check=True, stdout=sys.stderr)
    return time.perf_counter() - started


def train(dataset: Path, out: Path, options: list[str]) -> tuple[Path, float, float]:
    """Train from the command line; return the experiment, the duration, and the Dice of its own validation cases."""
    seconds = run("train", dataset, "--out", out, *options)
    (experiment,) = (path.parent for path in out.glob("*/*/experiment.json"))
    own = json.loads((experiment / "validation.json").read_text())["foreground_mean"]["Dice"]
    return experiment, seconds, own


def score(predictions: Path, images: Path, labels: Path, case_ids: list[str]) -> float:
    """Return the mean Dice of predictions, which must have the geometry of their images."""
    for case_id in case_ids:
        file, image = predictions / f"{case_id}.nii.gz", images / f"{case_id}_0000.nii.gz"
        assert nibabel.load(file).shape == nibabel.load(image).shape
        assert np.allclose(nibabel.load(file).affine, nibabel.load(image).affine, atol=1e-5)
    references = {case_id: labels / f"{case_id}.nii.gz" for case_id in case_ids}
    return Evaluator("dice", num_classes=3).evaluate(predictions, references).mean_metrics["dice"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--held-out-only", action="store_true", help="leave out the second training, on a fold of all 200"
    )
    arguments = parser.parse_args()
    options = ["--budget", arguments.budget, "--seed", arguments.seed]
    options += [text for item in arguments.set for text in ("--set", item)]
    source = DATA / NAME
    result: dict[str, object] = {"benchmark": "hippocampus", "budget": arguments.budget}
    with tempfile.TemporaryDirectory() as scratch:
        dataset, predictions = Path(scratch) / NAME, Path(scratch) / "predictions"
        held_out = split(source, dataset)
        experiment, train_s, own = train(dataset, Path(scratch) / "held-out", options)
        predict_s = run("predict", experiment, dataset / "imagesTs", predictions)
        unseen = score(predictions, dataset / "imagesTs", source / "labelsTr", held_out)
        result |= {
            "train_s": round(train_s, 1),
            "predict_60_s": round(predict_s, 1),
            "dice_60_unseen": round(unseen, 4),
            "dice_own_validation": round(own, 4),
        }
        if not arguments.held_out_only:
            _, fold_s, fold = train(source, Path(scratch) / "fold", options)
            result |= {"train_fold_s": round(fold_s, 1), "dice_fold_0_of_200": round(fold, 4)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
