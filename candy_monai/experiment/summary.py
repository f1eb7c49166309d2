"""Files with the scores of cases: the summary of an evaluation or of nnU-Net, and a run's ``validation.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from candy_monai.data.images.names import stem_of
from candy_monai.errors import BadInputError
from candy_monai.text import read_json

COUNTS = ("TP", "FP", "FN", "TN", "n_pred", "n_ref")
"""Voxels of a class, beside its metrics."""


@dataclass(frozen=True, kw_only=True)
class SummaryCase:
    """The scores of one case.

    Attributes:
        case_id: Its id, or the name of its reference without suffix.
        classes: Class, as the file names it, to its metrics; NaN where there is no value.
        voxels: Class to the voxels of the reference, where the file says.
        values: Metrics of the whole case.
    """

    case_id: str
    classes: Mapping[str, Mapping[str, float]]
    voxels: Mapping[str, float]
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The content of a summary.

    Attributes:
        cases: Its cases, at least one.
        class_names: Class to name.
        definitions: The definitions of the metrics; empty if the file has none.
        content: All of it.
    """

    cases: tuple[SummaryCase, ...]
    class_names: Mapping[str, str]
    definitions: Mapping[str, str]
    content: Mapping[str, Any] = field(repr=False)

    @property
    def dice(self) -> float | None:
        """The mean Dice over the foreground classes; None where there is none."""
        means = self.content.get("foreground_mean")
        found = means.get("Dice") if isinstance(means, Mapping) else None
        return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def read_summary(path: Path) -> Summary:
    """Read a summary from its file.

    Raises:
        BadInputError: If it cannot be read, or is no summary.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise BadInputError(f"{path}: holds a {type(content).__name__}, expected the summary of an evaluation")
    return summary_of(content, source=str(path))


def summary_of(content: Mapping[str, Any], *, source: str) -> Summary:
    """Return the summary given by plain values.

    Raises:
        BadInputError: If it is not a summary, has no case, or names a case twice.
    """
    cases: dict[str, SummaryCase] = {}
    try:
        for entry in content["metric_per_case"]:
            case = _case(entry)
            if case.case_id in cases:
                raise BadInputError(f"{source}: the case {case.case_id} is listed twice")
            cases[case.case_id] = case
        definitions = {str(name): str(text) for name, text in (content.get("definitions") or {}).items()}
        names = {str(index): str(name) for index, name in (content.get("class_names") or {}).items()}
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, BadInputError):
            raise
        raise BadInputError(
            f"{source}: no summary of an evaluation ({type(error).__name__}: {error}); expected what candy-monai "
            "evaluate --summary or nnU-Net writes, with metric_per_case"
        ) from error
    if not cases:
        raise BadInputError(f"{source}: has no cases under metric_per_case")
    return Summary(cases=tuple(cases.values()), class_names=names, definitions=definitions, content=content)


def _case(entry: Mapping[str, Any]) -> SummaryCase:
    classes: dict[str, dict[str, float]] = {}
    voxels: dict[str, float] = {}
    for index, values in entry["metrics"].items():
        numbers = {str(name): _number(value) for name, value in values.items()}
        voxels |= {str(index): numbers["n_ref"]} if "n_ref" in numbers else {}
        classes[str(index)] = {name: value for name, value in numbers.items() if name not in COUNTS}
    own = {str(name): _number(value) for name, value in (entry.get("values") or {}).items()}
    case_id = entry.get("case")
    if not case_id:
        file = str(entry.get("reference_file") or entry["prediction_file"])
        case_id = stem_of(file.replace("\\", "/"))  # Windows may have written it
    return SummaryCase(case_id=str(case_id), classes=classes, voxels=voxels, values=own)


def _number(value: object) -> float:
    return math.nan if value is None else float(value)  # type: ignore[arg-type]  # "inf" is a text in JSON
