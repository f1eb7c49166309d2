"""Measure how well the Dice of a prediction is estimated without a reference; print one JSON line per dataset.

Every third patient is held out; a run is trained on the others within a budget, with ``--groups`` if the file names
identify the patients. Its estimates for the held-out cases are compared with their true Dice: rank correlation
(Spearman), mean error, and the fraction of the failures (a Dice below 0.7 times the median) that are in the tenth of
the cases with the lowest estimates. ``CANDY_MONAI_DATA`` names the folder of the datasets.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from candy_monai import Evaluator, NNUNetDataset
from candy_monai.data.datasets.patients import patients_by_name
from candy_monai.inference.inputs import CaseFiles
from candy_monai.inference.prediction import Prediction
from candy_monai.inference.quality import FAILED_SHARE
from candy_monai.recipes.predict import load_experiments
from candy_monai.recipes.train import train_dataset

DATA = Path(os.environ.get("CANDY_MONAI_DATA", Path(__file__).parents[2] / "shared" / "data"))
DATASETS = ("Dataset004_Hippocampus", "Dataset123_SunnybrookPNG", "Dataset131_EMIDECMini", "Dataset027_ACDC")
HELD_OUT = 3


def divided(dataset: NNUNetDataset, folder: Path) -> tuple[set[str], str | None]:
    """Link all but every third patient of a dataset into a folder.

    Returns:
        The held-out cases, and the expression that finds a patient.
    """
    names = patients_by_name(dataset.case_ids)
    patient_of = {case_id: case_id if names is None else names.patient_of[case_id] for case_id in dataset.case_ids}
    apart = set(sorted(set(patient_of.values()))[1::HELD_OUT])
    held_out = {case_id for case_id, patient in patient_of.items() if patient in apart}
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case in dataset.cases:
        if case.case_id not in held_out and case.label is not None:
            for file in (*case.images, case.label):
                (folder / file.parent.name / file.name).symlink_to(file.resolve())
    described = json.loads((dataset.folder / "dataset.json").read_text())
    described["numTraining"] = len(dataset.case_ids) - len(held_out)
    (folder / "dataset.json").write_text(json.dumps(described))
    return held_out, None if names is None else names.groups


def measured(
    dataset: NNUNetDataset, held_out: set[str], experiments: Sequence[Path], *, mirror: bool
) -> dict[str, object]:
    """Return how well the Dice of the held-out cases is estimated."""
    predictor = load_experiments(experiments, mirror=mirror, on_progress=lambda _: None)
    estimates: dict[str, float] = {}

    def note(case_id: str, prediction: Prediction) -> None:
        if prediction.quality is None or prediction.quality.estimated_dice is None:
            raise SystemExit(f"{case_id}: too few validation cases were scored for estimates; give a longer --budget")
        estimates[case_id] = prediction.quality.estimated_dice

    cases = [case for case in dataset.cases if case.case_id in held_out]
    images = {case.case_id: CaseFiles(case.images) for case in cases}
    result = Evaluator("dice").predict_and_evaluate(
        images, {case.case_id: case.label for case in cases}, predictor, on_prediction=note
    )
    found = [(estimates[case.case_id], case.metrics["dice"]) for case in result]
    estimated, true = np.array([pair for pair in found if not math.isnan(pair[1])]).T
    worst = np.argsort(estimated, kind="stable")[: max(1, round(len(true) / 10))]
    failed = true < FAILED_SHARE * np.median(true)
    return {
        "cases": len(true),
        "median_dice": round(float(np.median(true)), 3),
        "rank_correlation": round(float(spearmanr(estimated, true).statistic), 3),
        "mean_error": round(float(np.abs(estimated - true).mean()), 3),
        "mean_bias": round(float((estimated - true).mean()), 3),
        "failures": int(failed.sum()),
        "worst_tenth": len(worst),
        "failures_in_worst_tenth": int(failed[worst].sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("datasets", nargs="*", default=DATASETS, help=f"by default {', '.join(DATASETS)}")
    parser.add_argument("--budget", type=float, default=90.0, metavar="S", help="seconds of each run (default: 90)")
    parser.add_argument("--folds", type=int, default=1, help="folds of the ensemble (default: 1)")
    parser.add_argument("--mirror", action="store_true", help="average over mirror images")
    parser.add_argument("--keep", type=Path, help="where to keep datasets and runs; by default nothing is kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.datasets:
            folder = (arguments.keep or Path(scratch)) / name
            dataset = NNUNetDataset(DATA / name)
            held_out, groups = divided(dataset, folder / name)
            experiments = [
                train_dataset(
                    folder / name,
                    out=folder / "runs",
                    fold=fold,
                    groups=groups,
                    budget_s=arguments.budget,
                    device="cpu",
                    on_progress=lambda _: None,
                )
                for fold in range(arguments.folds)
            ]
            line = measured(dataset, held_out, experiments, mirror=arguments.mirror)
            how = {"folds": arguments.folds, "mirror": arguments.mirror, "budget_s": arguments.budget}
            print(json.dumps({"benchmark": "dice_estimates", "dataset": name, **how, **line}), flush=True)


if __name__ == "__main__":
    main()
