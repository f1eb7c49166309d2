"""Names of metrics, as in the columns of a run's ``metrics.csv``: its own, those of classes, and which are losses."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

EPOCH = "epoch"
SCORE = "val score"
"""The validation score of an epoch."""
LOSS = "combined loss"
"""The mean of the losses returned by ``backward``."""
LEARNING_RATE = "learning rate"
"""The first learning rate of an epoch."""
EPOCH_DURATION = "epoch duration"
"""Seconds of an epoch, including validation."""

VALIDATION = "val "
"""The prefix of the names of validation metrics."""
MOST_CLASSES, NUM_WORST = 12, 5

_LOWER = re.compile("loss|error|hausdorff|distance|hd95|hd100|assd|masd|false[ _]?positives|perplexity")
_HIGHER = re.compile("score|dice|iou|jaccard|accuracy|precision|recall|sensitivity|specificity|auc|f1")


def better_of(name: str) -> Literal["higher", "lower"] | None:
    """Return whether higher or lower values of a metric are better, guessed from its name; None if it does not tell."""
    name = name.lower()
    if _LOWER.search(name):  # "dice loss" is a loss
        return "lower"
    return "higher" if _HIGHER.search(name) else None


def by_class(columns: Iterable[str], class_names: Collection[str] = ()) -> dict[str, dict[str, str]]:
    """Return the columns of one metric for several classes, such as ``val dice kidney`` and ``val dice tumor``.

    Numbers at the end of ``val`` columns count as names of classes, too.

    Returns:
        For each metric with columns of at least two classes, such as ``val dice``, its columns with their classes, in
        order.
    """
    found: dict[str, dict[str, str]] = {}
    for column in columns:
        name = class_at_end(column, class_names)
        metric = column[: -len(name) - 1] if name else ""
        if not name and (numbered := column.rpartition(" "))[0].startswith(VALIDATION) and numbered[2].isdecimal():
            metric, _, name = numbered
        if metric:
            found.setdefault(metric, {})[column] = name
    return {metric: members for metric, members in found.items() if len(members) > 1}


def class_at_end(column: str, class_names: Iterable[str]) -> str:
    """Return the class at the end of a column's name: "left kidney" rather than "kidney"; empty for none."""
    return max((name for name in class_names if name and column.endswith(f" {name}")), key=len, default="")


def worth_listing(metrics: Mapping[str, Sequence[float]], class_names: Collection[str] = ()) -> tuple[list[str], str]:
    """Return the columns to list for some metrics, given over the epochs, and a text about those that are omitted.

    For a metric of more than 12 classes, these are the five with the lowest last values.
    """
    hidden: set[str] = set()
    said = []
    for metric, members in by_class(metrics, class_names).items():
        if len(members) > MOST_CLASSES:
            measured = [column for column in members if not math.isnan(metrics[column][-1])]
            worst = sorted(measured, key=lambda column: metrics[column][-1])[:NUM_WORST]
            hidden.update(set(members) - set(worst))
            said.append(f"the {NUM_WORST} lowest of {len(members)} classes of {metric}")
    return [name for name in metrics if name not in hidden], ", ".join(said)
