"""The names of the columns of a run's ``metrics.csv``: those that the run itself writes, and those of classes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

EPOCH = "epoch"
SCORE = "val score"
"""An epoch's validation score."""
LOSS = "combined loss"
"""The mean of the losses that ``backward`` returned."""
LEARNING_RATE = "learning rate"
"""The first learning rate of an epoch."""
EPOCH_DURATION = "epoch duration"
"""The seconds of an epoch, validation included."""

VALIDATION = "val "
"""What the names of a validation's metrics begin with."""
MOST_CLASSES, NUM_WORST = 12, 5


def by_class(columns: Iterable[str], class_names: Collection[str] = ()) -> dict[str, dict[str, str]]:
    """Return the columns that say the same of several classes, such as ``val dice kidney`` and ``val dice tumor``.

    Args:
        columns: Names of columns.
        class_names: Names of the classes. Numbers at the end of ``val`` columns count as names of classes, too.

    Returns:
        For each metric that has columns of at least two classes, such as ``val dice``, its columns in their order with
        the name of the class of each.
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
    """Return the class that a column's name ends with: of "left kidney" and "kidney" the former; empty for none."""
    return max((name for name in class_names if name and column.endswith(f" {name}")), key=len, default="")


def worth_listing(metrics: Mapping[str, Sequence[float]], class_names: Collection[str] = ()) -> tuple[list[str], str]:
    """Return the columns that a list of metrics names, and in words what it leaves out.

    Of a metric of more than 12 classes those are the five with the lowest last values.

    Args:
        metrics: Each column's values over the epochs.
        class_names: Names of the classes.
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
