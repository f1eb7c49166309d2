"""Runs that were never trained, for tests of their pages: a folder, and what the observer of a run is told."""

from __future__ import annotations

import json
import math

import numpy as np
import torch

from candy_monai.columns import EPOCH_DURATION, LEARNING_RATE, LOSS, SCORE
from candy_monai.experiment.description import describe_trainer, write_description
from candy_monai.experiment.events import Validated, ValidatedCase, ViewedCase
from candy_monai.experiment.history import History
from candy_monai.plotting.case.views import case_view
from candy_monai.report.facts import FINDINGS
from candy_monai.report.observer import ReportObserver
from tests.events import epoch_finished, run_started


def made_up_folder(folder, *, class_names=("background", "kidney", "tumour"), note="", settings=None, **entries):
    """Write a run's folder with ``experiment.json``, ``findings.json`` and a log, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "class_names": list(class_names),
        "iterations_per_epoch": 4,
        "patch_shape": [8, 8, 8],
        "spacing_mm": [1, 1, 2],
    }
    dataset = {
        "name": "Made up",
        "digest": "abc",
        "channel_names": ["MRI"],
        "labels": {name: index for index, name in enumerate(class_names)},
        "training": ["a", "b"],
        "validation": [f"case_{i:03}" for i in range(4)],
    }
    more = {"id": folder.name, "bundle": "unet", "plan": plan, "dataset": dataset, "num_classes": len(class_names)}
    all_settings = {"num_epochs": 10, "note": note, "seed": 3, "accumulate": 1, **(settings or {})}
    description = describe_trainer("UNetTrainer", {**more, "settings": all_settings, **entries})
    write_description(folder, description)
    choice = {
        "name": "patch_shape",
        "value": "8,8,8",
        "reason": f"It fits. {note}",
        "remedy": "--set patch_shape=8,8,8",
    }
    findings = {
        "warnings": [f"labelsTr: something is unusual {note}"],
        "facts": [["sizes", "9 x 9 x 9"]],
        "plan": [choice],
    }
    (folder / FINDINGS).write_text(json.dumps(findings))
    (folder / "logs.txt").write_text(f"[2026-01-01 10:00:00] Experiment x in {folder}\n[2026-01-01 10:00:01] {note}\n")
    return folder


def made_up_metrics(num_epochs, class_names, *, seed=0, best=0.9):
    """Return metrics that rise, with a column for each class."""
    rng = np.random.default_rng(seed)
    epochs = np.arange(1, num_epochs + 1)
    rise = best * (1 - np.exp(-4 * epochs / num_epochs))
    noisy = lambda scale: (rise + rng.normal(0, scale, num_epochs)).tolist()  # noqa: E731
    metrics = {LOSS: (1.2 - rise + rng.normal(0, 0.01, num_epochs)).tolist()}
    metrics |= {f"val {LOSS}": (1.3 - rise).tolist(), "val dice": noisy(0.01)}
    reached = rng.uniform(0.3, 1.05, len(class_names))
    for i in range(1, len(class_names)):
        metrics[f"val dice {i}"] = (rise * reached[i] + rng.normal(0, 0.01, num_epochs)).tolist()
    metrics |= {SCORE: noisy(0.01), LEARNING_RATE: np.linspace(1e-2, 1e-5, num_epochs).tolist()}
    return {**metrics, EPOCH_DURATION: (20 + rng.normal(0, 1, num_epochs)).tolist()}


def box_case(shape=(20, 24, 16), *, channels=1, shift=2, seed=0, miss=()):
    """Return image, label and prediction of a noisy case: nested boxes of classes 1 and 2, the prediction shifted."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.zeros(1, *shape, dtype=torch.int64)
    label[(0, *(slice(n // 4, 3 * n // 4) for n in shape))] = 1
    label[(0, *(slice(2 * n // 5, 3 * n // 5) for n in shape))] = 2
    prediction = label.roll(shift, 1)
    for i in miss:
        prediction[prediction == i] = 0
    image = label.float() * 100 + 20 * torch.randn(channels, *shape, generator=generator)
    return image, label, prediction


def validated(num_cases=4, *, case_ids=None, num_classes=3, score=0.8, cases=None):
    """Return a validation with scores of many cases and the images of three."""
    rng = np.random.default_rng(1)
    ids = case_ids or [f"case_{i:03}" for i in range(num_cases)]
    scores = np.clip(score + rng.normal(0, 0.05, len(ids)), 0, 1).tolist()
    scored = [
        ValidatedCase(
            case_id=case_id,
            score=value,
            metrics={"dice": value, LOSS: 1 - value}
            | {f"dice {i}": value * (1 - i / 200) for i in range(1, num_classes)},
        )
        for case_id, value in zip(ids, scores, strict=True)
    ]
    order = np.argsort(scores)
    images = cases or [box_case(seed=i, miss=(2,) if not i else ()) for i in range(3)]
    places = (("worst", order[0]), ("median", order[len(order) // 2]), ("best", order[-1]))
    views = [
        ViewedCase(
            case_id=ids[place],
            score=scores[place],
            role=role,
            rank=int(np.flatnonzero(order == place)[0]) + 1,
            num_cases=len(ids),
            view=case_view(
                *images[i], **({"spacing_mm": (1, 1, 2), "orientation": "RAS"} if images[i][0].ndim == 4 else {})
            ),
        )
        for i, (role, place) in enumerate(places)
    ]
    return Validated(cases=scored, views=views)


def made_up_run(
    folder,
    *,
    num_epochs=10,
    class_names=("background", "kidney", "tumour"),
    event=None,
    seed=0,
    best=0.9,
    total=None,
    **more,
):
    """Write the page of a run that goes on, as its observer does, and return the observer."""
    made_up_folder(folder, class_names=class_names, **more)
    metrics = made_up_metrics(num_epochs, class_names, seed=seed, best=best)
    scores = metrics[SCORE]
    top = max(scores)
    observer = ReportObserver()
    observer.on_run_started(run_started(folder=folder))
    facts = {
        "num_epochs": total or num_epochs + 5,
        "metrics": metrics,
        "score": scores[-1],
        "best_score": top,
        "best_epoch": scores.index(top) + 1,
        "validated": event if event is not None else validated(num_classes=len(class_names)),
        "num_validated": 4,
        "standard_error": 0.01 if math.isfinite(top) else math.nan,
    }
    observer.on_epoch_finished(epoch_finished(num_epochs, **facts))
    history = History()
    for row in zip(*metrics.values(), strict=True):
        history.close_epoch(dict(zip(metrics, row, strict=True)))
    history.save_csv(folder / "metrics.csv")
    return observer
