"""The metrics of a run: averaged over each epoch, and written to ``metrics.csv``."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from candy_monai.aliases import Scalar
from candy_monai.columns import EPOCH, EPOCH_DURATION, LEARNING_RATE, LOSS, SCORE, worth_listing
from candy_monai.errors import BadInputError
from candy_monai.files import atomic_write_text
from candy_monai.metrics.interval import mean_of_known

_COLUMNS_OF_A_RUN = (EPOCH, EPOCH_DURATION, LEARNING_RATE, SCORE)
_BESIDE = " (metric)"


class History:
    """Metrics by epoch. ``close_epoch`` averages the values recorded by ``record`` since the last epoch.

    Tensors are copied on their device and read once per epoch, so recording never waits for a GPU. NaN means "not
    measured" and is left out of the averages.
    """

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []
        self._names: dict[str, None] = {}
        self._pending: dict[str, list[Scalar]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def record(self, name: str, value: Scalar) -> None:
        """Add one value of the metric to the current epoch.

        Raises:
            BadInputError: If it is not one number.
        """
        if (found := why_no_number(value)) is not None:
            raise BadInputError(f"metric {name!r} must be one number, got {found}")
        # A copy, since the owner of a tensor or an array may change it later.
        copied = value.detach().clone() if isinstance(value, Tensor) else as_float(value)
        self._pending.setdefault(str(name), []).append(copied)

    def close_epoch(self, columns: Mapping[str, float] | None = None) -> dict[str, float]:
        """End the epoch: average each metric over its recorded values, keep the averages and return them.

        The run itself adds further columns.
        """
        row = {name: mean_of_known(values) for name, values in self.pending().items()}
        if LOSS not in row:  # a training loop of the user's own records its loss itself
            row = {LOSS if name == column_beside(LOSS) else name: mean for name, mean in row.items()}
        row.update(columns or {})
        self._rows.append(row)
        self._names.update(dict.fromkeys(row))
        self._pending = {}
        return row

    def metrics(self) -> dict[str, list[float]]:
        """Return every metric as one list over the epochs; NaN where an epoch has no value."""
        return {name: self.column(name) for name in self._names}

    def column(self, name: str) -> list[float]:
        """Return one metric over the epochs; NaN where an epoch has no value."""
        return [row.get(name, math.nan) for row in self._rows]

    def save_csv(self, path: Path) -> None:
        """Write one row per epoch, counted from 1; a missing or NaN value is an empty cell."""
        metrics = self.metrics()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([EPOCH, *metrics])
        for index in range(len(self._rows)):
            cells = (values[index] for values in metrics.values())
            writer.writerow([index + 1, *("" if math.isnan(cell) else repr(cell) for cell in cells)])
        atomic_write_text(path, text.getvalue(), durable=False)

    def pending(self) -> dict[str, list[float]]:
        """Return the values of each metric in the current epoch so far."""
        values = read_numbers([value for column in self._pending.values() for value in column])
        return {name: list(itertools.islice(values, len(column))) for name, column in self._pending.items()}

    def absorb(self, parts: Sequence[Mapping[str, list[float]]]) -> None:
        """Replace the values of the current epoch by those of all processes together."""
        names = dict.fromkeys(name for part in parts for name in part)
        self._pending = {name: [value for part in parts for value in part.get(name, ())] for name in names}

    def mark(self) -> dict[str, int]:
        """Return the number of values of each metric in the current epoch, for `rollback`."""
        return {name: len(values) for name, values in self._pending.items()}

    def rollback(self, mark: Mapping[str, int]) -> None:
        """Remove the values recorded since `mark`."""
        self._pending = {name: self._pending[name][:count] for name, count in mark.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the closed epochs, and the values of the current epoch so far."""
        return {"rows": [dict(row) for row in self._rows], "pending": self.pending()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace everything by a state from `state_dict`."""
        self._rows = [dict(row) for row in state["rows"]]
        self._names = dict.fromkeys(name for row in self._rows for name in row)
        self._pending = {name: list(column) for name, column in state["pending"].items()}


def column_beside(name: str) -> str:
    """Return the column of a metric of the user's own: its name, or ``name (metric)`` if the run has such a column.

    Those are ``epoch``, ``epoch duration``, ``learning rate``, ``val score`` and ``combined loss``; the last one is the
    user's own in a training loop that records none.
    """
    return name + _BESIDE if name in (*_COLUMNS_OF_A_RUN, LOSS) else name


def why_no_number(value: object) -> str | None:
    """Return what a value is if it is not one number; None for a number, or a tensor or array with one element."""
    if isinstance(value, Tensor | np.ndarray):
        size = value.numel() if isinstance(value, Tensor) else value.size
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        if size != 1:
            return f"{kind} of shape {tuple(value.shape)}"
        return None if _is_real(value) else f"{kind} of type {value.dtype}"
    if isinstance(value, str | bytes) or not isinstance(value, SupportsFloat | SupportsIndex):
        return f"{value!r}" if value is None or isinstance(value, str) else f"a {type(value).__name__}"
    if isinstance(value, np.generic) and not _is_real(value):  # NumPy would cut a complex number to its real part
        return f"a {type(value).__name__}"
    try:
        float(value)
    except OverflowError:
        return "a number too large for a float"
    return None


def load_metrics(path: Path) -> dict[str, list[float]]:
    """Read a ``metrics.csv``: every column except ``epoch`` as a list, with NaN for empty cells."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in (rows[0] if rows else {}) if name != EPOCH]
    return {name: [float(row[name]) if row[name] else math.nan for row in rows] for name in names}


def last_epoch_as_text(metrics: Mapping[str, Sequence[float]], *, class_names: Collection[str] = ()) -> str:
    """Return the last values of the metrics in one line, for the log; for many classes only the worst."""
    listed, left_out = worth_listing(metrics, class_names)
    text = ", ".join(f"{name} {metrics[name][-1]:.5g}" for name in listed if not math.isnan(metrics[name][-1]))
    return f"{text} ({left_out})" if left_out else text


def _is_real(value: Tensor | np.ndarray[Any, Any] | np.generic) -> bool:
    return not value.is_complex() if isinstance(value, Tensor) else value.dtype.kind in "biuf"


def as_float(value: Any) -> float:
    """Return as a float what `why_no_number` calls a number; a masked one is NaN, which is "not measured"."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.getmaskarray(value).any():
        return math.nan
    return float(value.item() if isinstance(value, np.ndarray) else value)


def read_numbers(values: Sequence[Scalar]) -> Iterator[float]:
    """Yield the values as numbers, in order, with one transfer from each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for value in values:
        if isinstance(value, Tensor):
            # Counts above 2^24 are not exact in single precision; Apple's GPUs have no other.
            exact = value.float() if value.device.type == "mps" else value.double()
            by_device.setdefault(value.device, []).append(exact.reshape(()))
    numbers = {device: iter(torch.stack(tensors).tolist()) for device, tensors in by_device.items()}
    for value in values:
        yield next(numbers[value.device]) if isinstance(value, Tensor) else float(value)
