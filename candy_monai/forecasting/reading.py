"""Read a run's scores from files of training tools: a ``metrics.csv``, nnU-Net's log, or a folder with either."""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from candy_monai.aliases import PathLike
from candy_monai.columns import EPOCH, EPOCH_DURATION, LEARNING_RATE, SCORE, better_of
from candy_monai.errors import BadInputError, did_you_mean
from candy_monai.forecasting.curve import ScoreRange, is_within
from candy_monai.text import decode_text

_NNUNET_SCORE = "Pseudo dice"
_NNUNET_EPOCHS = 1000
"""nnU-Net's default number of epochs."""
_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?: (.*)")
_LARGEST_EPOCH = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ScoreHistory:
    """The scores of a run by epoch, with other data for a forecast.

    Attributes:
        scores: One for each epoch from the first on, higher is better; NaN where there is none.
        name: The name of the score: that of the column, with a minus if the values are negated.
        learning_rates: One for each epoch; empty if unknown.
        durations_s: The seconds of each epoch; empty if unknown.
        horizon: The planned number of epochs; None if unknown.
        first_epoch: The number of the first epoch in the source, 0 or 1.
        score_range: The smallest and the largest possible score, as stored with the run; None if unknown.
        source: The file.
    """

    scores: tuple[float, ...]
    name: str
    learning_rates: tuple[float, ...] = ()
    durations_s: tuple[float, ...] = ()
    horizon: int | None = None
    first_epoch: int = 1
    score_range: ScoreRange | None = None
    source: Path


def read_scores(path: PathLike, *, column: str | None = None) -> ScoreHistory:
    """Read the scores of a run.

    Args:
        path: A ``metrics.csv`` (of candy_monai or Lightning), a ``training_log_*.txt`` of nnU-Net, or the folder with
            them. All logs in a folder of nnU-Net are one run, since it starts a new file when it resumes.
        column: The score's column in a CSV; by default ``val score``. A column whose name implies that lower is better,
            such as ``val_loss``, is negated. In a log of nnU-Net: ``Pseudo dice`` (the mean over the classes) or
            ``val_loss``.

    Raises:
        BadInputError: If there is no such file, or it contains no scores.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        metrics = path / "metrics.csv"
        files = [metrics] if metrics.is_file() else sorted(path.glob("training_log_*.txt"))
        if not files:
            raise BadInputError(f"{path}: holds neither a metrics.csv nor a training_log_*.txt; name the file itself")
    if not files[0].is_file():
        raise BadInputError(f"{path}: no such file or folder")
    is_csv = files[0].suffix.lower() == ".csv"
    history = _read_csv(files[0], column) if is_csv else _read_nnunet(files, column)
    if better_of(history.name) != "lower":
        return history
    return replace(history, scores=tuple(-score for score in history.scores), name=f"-{history.name}")


def _read_csv(path: Path, column: str | None) -> ScoreHistory:
    rows = list(csv.DictReader(io.StringIO(_text_of(path), newline="")))
    names = [name for name in (rows[0] if rows else ()) if name]
    if not rows:
        raise BadInputError(f"{path}: holds no epoch yet")
    name = column or SCORE
    if name not in names:
        others = [other for other in names if other not in (EPOCH, "step")]
        hint = did_you_mean(name, others) if column else " Choose one with --column (column= in Python)."
        raise BadInputError(f"{path}: has no column {name!r}, only {', '.join(map(repr, others))}.{hint}")
    epochs = list(map(float, range(1, len(rows) + 1)))
    if EPOCH in names:
        epochs = [_number(path, EPOCH, row[EPOCH]) for row in rows]
    if not any(map(math.isfinite, epochs)):
        raise BadInputError(f"{path}: the column 'epoch' holds no number")
    first = 0 if min(epoch for epoch in epochs if math.isfinite(epoch)) < 1 else 1

    def read(wanted: str) -> tuple[float, ...]:
        if wanted not in names:
            return ()
        return _by_epoch(path, zip(epochs, (_number(path, wanted, row[wanted]) for row in rows), strict=True), first)

    scores, rates, durations = map(read, (name, LEARNING_RATE, EPOCH_DURATION))
    run = _json(path.parent / "experiment.json")
    settings = run.get("settings")
    horizon = settings.get("num_epochs") if isinstance(settings, Mapping) else None
    return ScoreHistory(
        scores=scores,
        name=name,
        learning_rates=rates,
        durations_s=durations,
        horizon=horizon if isinstance(horizon, int) else None,
        first_epoch=first,
        score_range=_range_of(run, scores) if name == SCORE else None,
        source=path,
    )


def _text_of(path: Path) -> str:
    """Return the text of a file, decoded by its byte order mark; bytes of other encodings are replaced."""
    content = path.read_bytes()
    try:
        return decode_text(content)
    except UnicodeDecodeError:
        return content.decode("utf-8-sig", errors="replace")


def _read_nnunet(paths: Sequence[Path], column: str | None) -> ScoreHistory:
    name = column or _NNUNET_SCORE
    if name not in (_NNUNET_SCORE, "val_loss"):
        raise BadInputError(f"{paths[0]}: a log of nnU-Net has the scores 'Pseudo dice' and 'val_loss', not {name!r}")
    found: dict[str, dict[float, float]] = {name: {}, "Current learning rate:": {}, "Epoch time:": {}}
    epoch = math.nan
    for path in paths:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            match = _LINE.match(line)
            text = match[1].strip() if match else ""
            if re.fullmatch(r"Epoch \d+", text):
                epoch = float(text.split()[1])
            for key, values in found.items():
                if text.startswith(f"{key} ") and math.isfinite(epoch):
                    values[epoch] = _nnunet_number(text[len(key) :].strip())
    if not found[name]:
        raise BadInputError(f"{paths[-1]}: holds no line '{name} ...' of nnU-Net; is it its training_log?")
    last = max(found[name])
    scores, rates, durations = (
        _by_epoch(paths[-1], [*((e, v) for e, v in values.items() if e <= last), (last, values.get(last, math.nan))], 0)
        for values in found.values()
    )
    planned = str(_json(paths[-1].parent / "debug.json").get("num_epochs", ""))
    return ScoreHistory(
        scores=scores,
        name=name,
        learning_rates=rates,
        durations_s=durations,
        horizon=max(len(scores), int(planned) if planned.isdigit() else _NNUNET_EPOCHS),
        first_epoch=0,
        source=paths[-1],
    )


def _by_epoch(path: Path, values: Iterable[tuple[float, float]], first: int) -> tuple[float, ...]:
    """Arrange values by epoch; of several for one epoch the last is used, and empty ones are skipped."""
    known: dict[int, float] = {}
    for epoch, value in values:
        if not math.isfinite(epoch):
            continue
        if not 0 <= epoch <= _LARGEST_EPOCH or epoch % 1:
            raise BadInputError(f"{path}: {epoch:g} is not an epoch number")
        if math.isfinite(value) or int(epoch) not in known:
            known[int(epoch)] = value
    return tuple(known.get(epoch, math.nan) for epoch in range(first, max(known) + 1))


def _number(path: Path, name: str, cell: str | None) -> float:
    if cell is None or not cell.strip():
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise BadInputError(f"{path}: the column {name!r} holds {cell!r}, which is not a number") from None


def _nnunet_number(text: str) -> float:
    """Parse a number, the mean of a list of numbers, or a time; newer versions write ``np.float32(0.9)``."""
    plain = re.sub(r"np\.float\d+\(([^)]*)\)", r"\1", text).removesuffix(" s").replace("nan", "None")
    try:
        value = ast.literal_eval(plain)
    except (ValueError, SyntaxError):  # a line truncated by a crash
        return math.nan
    numbers = [float(v) for v in (value if isinstance(value, list) else [value]) if isinstance(v, int | float)]
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def _range_of(run: Mapping[str, object], scores: Sequence[float]) -> ScoreRange | None:
    """Return the range of scores stored with a run, unless its scores are outside."""
    match run.get("score_range"):
        case [(int() | float() | None) as least, (int() | float() | None) as largest]:
            return (least, largest) if is_within(scores, (least, largest)) else None
    return None


def _json(path: Path) -> Mapping[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, Mapping) else {}
