"""From the scored cases of a run to what its predictions are judged by."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.evaluation.results import EvalCase, EvalResult
from candy_monai.inference.quality import Calibration, CaseQuality
from candy_monai.inference.typical_inputs import TypicalInputs
from candy_monai.recipes.predict import load_experiments
from candy_monai.recipes.quality import calibrated, in_words
from candy_monai.recipes.train import train_dataset

INPUTS = TypicalInputs(spacing_mm=(), shape=(), intensities={}, has_empty_cases=False, classes={})


def _result(**dice):
    cases = (
        EvalCase(case_id=case_id, classes={1: {"dice": value}}, counts={}, values={}) for case_id, value in dice.items()
    )
    return EvalResult(cases=tuple(cases))


def test_cases_without_a_dice_and_without_an_estimate_tell_nothing():
    seen = CaseQuality(estimated_dice=0.8, expected_precision=0.7, expected_recall=0.9, usual_size=1.0)
    failed = dataclasses.replace(seen, estimated_dice=None, expected_precision=math.nan)
    judged = {**dict.fromkeys("abc", seen), "e": failed}
    model = calibrated(INPUTS, judged, _result(a=0.7, b=math.nan, d=0.1, e=0.0))
    assert model.calibration == Calibration.fit([(0.7, 0.9, 1.0)], [0.7])
    assert model.inputs is INPUTS


def test_the_log_says_how_good_estimates_are():
    calibration = Calibration(num_cases=5, typical_error=0.04, rank_correlation=0.5)
    assert in_words(calibration).endswith(
        "are wrong by 0.040 on average and have a rank correlation of 0.50 with the true ones, by 5 validation cases"
    )
    few = in_words(Calibration.fit([(0.7, 0.7, 1.0)] * 4, [0.6] * 4))
    assert few.startswith(
        "Predictions get no estimate of their Dice without a reference: 4 validation cases have a Dice"
    )


@pytest.mark.slow
def test_a_planned_run_leaves_what_its_predictions_are_judged_by(tmp_path, capsys):
    from candy_monai.cli.main import main

    phantom = write_phantom_dataset(tmp_path / "d", num_cases=10, num_test_cases=1, shape=(24, 24, 16))
    experiment = train_dataset(
        phantom,
        out=tmp_path / "out",
        store=tmp_path / "store",
        num_folds=2,
        num_epochs=1,
        overrides={"iterations_per_epoch": "2", "filters": "4,8,16", "patch_shape": "16x16x16"},
        device="cpu",
        no_report=True,
        on_progress=lambda _: None,
    )
    quality = load_experiments([experiment]).quality
    scores = json.loads((experiment / "validation.json").read_text())
    assert quality.calibration.num_cases == scores["num_cases"] == 5
    assert main(["predict", str(experiment), str(phantom / "imagesTs"), str(tmp_path / "predictions")]) == 0
    ((case_id, case),) = json.loads((tmp_path / "predictions" / "manifest.json").read_text())["cases"].items()
    assert 0 <= case["quality"]["estimated_dice"] <= 1
    printed = capsys.readouterr().out
    assert printed.count(f"Warning: {case_id}: ") == len(case["quality"]["warnings"])
    assert "Estimates of a prediction's Dice without a reference" in (experiment / "logs.txt").read_text()
