"""Encode cases for the slice viewer of a page, and read them from an existing page."""

from __future__ import annotations

import base64
import functools
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from candy_monai.experiment.events import Validated, ViewedCase
from candy_monai.plotting.case.views import dice_in_view
from candy_monai.report.curves import class_of_metric, hex_color
from candy_monai.report.script import read_script
from candy_monai.report.tables import ScoredCase

KEPT, VIEWS = "page-kept", "page-views"
"""The elements of a page with data that are not in the folder: the cases of the last validation, and the viewed
ones."""
NOTHING: dict[str, Any] = {"epoch": None, "cases": [], "best": None, "lost": False}

_LEVEL = 6


def encoded_case(case: ViewedCase, class_names: Mapping[int, str], *, epoch: int | None) -> dict[str, Any]:
    """Return a case as plain values for a page, with the epoch of its validation, if there was one."""
    view = case.view
    in_label, in_prediction = view.present()
    dice = dice_in_view(view)
    return {
        "id": case.case_id,
        "role": case.role,
        "score": None if math.isnan(case.score) else float(f"{case.score:.5g}"),
        "rank": case.rank,
        "of": case.num_cases,
        "epoch": epoch,
        "size": list(reversed(view.image.shape[1:])),
        "spacing": list(view.spacing_mm),
        "first": list(view.first),
        "factors": list(view.factors),
        "whole": list(view.whole),
        "oriented": view.is_oriented,
        "rgb": view.is_rgb,
        "limits": [list(ends) for ends in view.limits],
        "windows": [list(ends) for ends in view.windows],
        "image": [_as_text(channel, is_image=True) for channel in view.image],
        "label": None if view.label is None else _as_text(view.label),
        "prediction": None if view.prediction is None else _as_text(view.prediction),
        "classes": [
            {
                "id": i,
                "name": class_names.get(i, f"class {i}"),
                "color": hex_color(i),
                "dice": None if i not in dice else round(dice[i], 4),
                "where": "both" if i in in_label and i in in_prediction else "label" if i in in_label else "prediction",
            }
            for i in sorted(in_label | in_prediction)
        ],
    }


def kept_of(validated: Validated, epoch: int) -> dict[str, Any]:
    """Return the data of a validation that a page keeps besides images: its cases with their scores."""
    return {
        "epoch": epoch,
        "cases": [
            {
                "id": case.case_id,
                "score": _finite(case.score),
                "metrics": {name: _finite(value) for name, value in case.metrics.items()},
            }
            for case in validated.cases
        ],
    }


def read_kept(page: Path) -> tuple[dict[str, Any], list[Any]]:
    """Return the data kept in an existing page: the cases of the last validation, and those for viewing.

    Both are empty if there is no page. If it is damaged, ``lost`` is true.
    """
    try:
        text = page.read_text(encoding="utf-8")
        kept, views = read_script(text, KEPT), read_script(text, VIEWS)
        if not (isinstance(kept["cases"], list) and isinstance(views, list)):
            raise ValueError(f"{page}: holds no lists of cases")
        validated_cases(kept, {})  # raises what is wrong with them
        [(view["id"], view["image"]) for view in views]
        more = {"best": kept.get("best"), "lost": bool(kept.get("lost"))}
        return {"epoch": kept["epoch"], "cases": kept["cases"], **more}, views
    except FileNotFoundError:
        return NOTHING, []
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {**NOTHING, "lost": True}, []


def validated_cases(kept: Mapping[str, Any], class_names: Mapping[int, str]) -> list[ScoredCase]:
    """Return the cases that a page keeps, with the metrics of each class under that class."""
    found = []
    classes_of = functools.cache(lambda name: class_of_metric(name, class_names))
    for entry in kept["cases"]:
        metrics: dict[str, float] = {}
        classes: dict[str, dict[int, float]] = {}
        for name, value in entry["metrics"].items():
            number = math.nan if value is None else float(value)
            of_class = classes_of(str(name))
            if of_class is None:
                metrics[str(name)] = number
            else:
                classes.setdefault(of_class[0], {})[of_class[1]] = number
        score = math.nan if entry["score"] is None else float(entry["score"])
        found.append(ScoredCase(case_id=str(entry["id"]), score=score, metrics=metrics, classes=classes))
    return found


def _as_text(array: NDArray[Any], *, is_image: bool = False) -> str:
    """Return an array as base64 of deflated bytes; images are stored as differences along X, which compress better."""
    if is_image:
        array = np.diff(array, axis=-1, prepend=np.uint8(0))
    elif array.max(initial=0) < 256:
        array = array.astype(np.uint8)
    else:
        array = array.astype("<u2")
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), _LEVEL)).decode("ascii")


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
