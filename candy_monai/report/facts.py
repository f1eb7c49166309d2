"""The parts of a run's page other than scores: data, plan, settings, environment, log and further commands."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from candy_monai.data.planning.entries import as_text
from candy_monai.data.values import frozen, join_names
from candy_monai.errors import BadInputError
from candy_monai.experiment.description import CUSTOM, ExperimentDescription
from candy_monai.experiment.folder import LOGS
from candy_monai.experiment.runs import resuming_call
from candy_monai.experiment.settings import TrainSettings

if TYPE_CHECKING:
    from candy_monai.data.inspection.fingerprint import Fingerprint

FINDINGS = "findings.json"
"""The file in the folder of a planned run with the findings of the dataset check and the plan with its reasons."""
MOST_LINES = 400
_MOST_BYTES = 120_000
_LONGEST_LINE = 2_000

Rows = list[list[Any]]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command to copy."""

    title: str
    command: str  # one line for a shell, or of Python


def findings_as_text(warnings: Sequence[str], choices: Sequence[Any], facts: Sequence[tuple[str, str]]) -> str:
    """Return the content of ``findings.json``."""
    content = {
        "warnings": list(warnings),
        "facts": [list(fact) for fact in facts],
        "plan": [dataclasses.asdict(choice) for choice in choices],
    }
    return json.dumps(content, indent=2) + "\n"


def facts_of_data(fingerprint: Fingerprint) -> list[tuple[str, str]]:
    """Return the entries of a page about the sizes, spacings and intensities of a dataset's cases."""
    cases = fingerprint.cases
    facts = [("sizes", _range(sorted((case.shape for case in cases), key=math.prod)))]
    spacings = sorted(case.spacing_mm for case in cases if case.spacing_mm)
    if spacings:
        facts.append(("spacings in mm", _range(spacings)))
    facts += [
        (f"intensities of {channel.name}", f"{about.mean:.4g} ± {about.std:.4g} in the foreground")
        for channel in fingerprint.channels
        if (about := channel.foreground) is not None
    ]
    return facts


def _range(values: Sequence[Sequence[float]]) -> str:
    first, middle, last = (" x ".join(f"{part:.4g}" for part in values[i]) for i in (0, len(values) // 2, -1))
    return first if first == last else f"{first} to {last}, in the middle {middle}"


def read_findings(folder: Path) -> dict[str, Any] | None:
    """Return the findings in a folder; None if there is no such file; raise if it is damaged."""
    path = folder / FINDINGS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        texts = [str(warning) for warning in found["warnings"]]
        facts = [[str(name), str(value)] for name, value in found["facts"]]
        plan = [{name: str(choice[name]) for name in ("name", "value", "reason", "remedy")} for choice in found["plan"]]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BadInputError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error
    return {"warnings": texts, "facts": facts, "plan": plan}


def class_names_of(description: ExperimentDescription) -> dict[int, str]:
    """Return the names of classes by their ids, and of regions by the ids that they paint; empty if unknown."""
    if description.regions:
        return {int(region["paints"]): str(region.get("name", region["paints"])) for region in description.regions}
    names = (description.plan or {}).get("class_names")
    if isinstance(names, list):
        return {index: str(name) for index, name in enumerate(names)}
    labels = description.labels_of_data() if description.dataset is None else description.dataset.labels or {}
    return {value: str(name) for name, value in labels.items() if isinstance(value, int)}


def data_of(description: ExperimentDescription, findings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the entries of a page about the dataset: facts and findings of its check; None if it was not checked."""
    dataset, rows = description.dataset, []
    if dataset is not None:
        classes = [name for name, value in (dataset.labels or {}).items() if value != 0]
        known = [
            ("dataset", dataset.name),
            ("folder", dataset.folder),
            ("cases trained on", len(dataset.training or ()) or None),
            ("cases validated on", len(dataset.validation) if dataset.validation is not None else None),
            ("channels", ", ".join(dataset.channel_names or ())),
            ("classes", f"{len(classes)}: {join_names(classes)}" if classes else None),
            ("files", dataset.file_ending),
            ("content", dataset.digest),
        ]
        rows = [[name, str(value)] for name, value in known if value not in (None, "")]
    elif isinstance(description.data, Mapping):
        for side, about in description.data.items():
            if isinstance(about, Mapping):
                rows.append([f"{side} samples", f"{about.get('samples')} in batches of {about.get('batch_size')}"])
    if findings is not None:
        rows += findings["facts"]
    return {"facts": rows, "findings": None if findings is None else findings["warnings"]}


def plan_of(description: ExperimentDescription, findings: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Return the entries of a plan with their values, reasons and overrides, as far as they are known."""
    if findings is not None and findings["plan"]:
        return list(findings["plan"])
    plan = description.plan or {}
    return [{"name": name, "value": shown(value), "reason": "", "remedy": ""} for name, value in plan.items()]


def settings_of(description: ExperimentDescription) -> Rows:
    """Return the arguments of ``train``: name, value, and whether it is the default."""
    defaults = {entry.name: entry.default for entry in dataclasses.fields(TrainSettings)}
    return [
        [name, shown(value), frozen(defaults.get(name)) == frozen(value)]
        for name, value in (description.settings or {}).items()
    ]


def parts_of(description: ExperimentDescription) -> Rows:
    """Return the parts of the run."""
    parts = description.parts if isinstance(description.parts, Mapping) else {}
    inferer = description.inferer
    rows: Rows = [["trainer", description.trainer or ""], ["bundle", description.bundle or ""]]
    for name, value in parts.items():
        if name not in ("training data", "validation data"):
            rows.append([str(name), shown(value)])
    rows += [[f"network: {name}", shown(value)] for name, value in (description.network.arguments or {}).items()]
    if description.network.example_shape is not None:
        rows.append(["network input", " x ".join(map(str, description.network.example_shape))])
    if inferer is not None and inferer != CUSTOM:
        rows.append(["whole cases", "as the plan says" if isinstance(inferer, str) else shown(inferer)])
    rows.append(["processes", shown(description.processes)])
    return [row for row in rows if row[1] not in ("", "none")]


def environment_of(description: ExperimentDescription) -> Rows:
    """Return the versions of the packages that a run depended on."""
    found = description.environment if isinstance(description.environment, Mapping) else {}
    return [[str(name), shown(value)] for name, value in found.items() if value is not None]


def budget_of(description: ExperimentDescription) -> dict[str, Any] | None:
    """Return the use of a budget: facts and the candidates; None without a budget."""
    budget = description.budget
    if budget is None:
        return None
    facts = (
        [["budget", f"{budget.budget_s:g} s"], ["for training", f"{budget.usable_s:g} s"]]
        if budget.budget_s and budget.usable_s
        else []
    )
    facts.append(["precision", budget.amp or "float32"])
    rows = [
        [
            str(candidate.get("configuration")),
            " x ".join(map(str, candidate.get("patch_shape") or ())),
            candidate.get("batch_size"),
            candidate.get("step_s"),
            candidate.get("num_steps"),
            str(candidate.get("verdict") or ("chosen" if candidate.get("is_chosen") else "")),
        ]
        for candidate in budget.candidates or ()
    ]
    return {"facts": facts, "candidates": rows}


def log_of(folder: Path) -> dict[str, Any]:
    """Return the last lines of a run's log, and whether there are more."""
    lines, is_cut = end_of_log(folder)
    lines = [line[:_LONGEST_LINE] for line in lines if line]
    return {"lines": lines[-MOST_LINES:], "is_cut": is_cut or len(lines) > MOST_LINES}


def end_of_log(folder: Path) -> tuple[list[str], bool]:
    """Return the whole lines at the end of a run's log, none if it cannot be read, and whether there are more."""
    path = folder / LOGS
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - _MOST_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return [], False
    return text.splitlines()[int(size > _MOST_BYTES) :], size > _MOST_BYTES


def commands_of(
    folder: Path, description: ExperimentDescription, *, is_complete: bool, can_go_on: bool = True
) -> list[Command]:
    """Return commands for continuing with a run."""
    run = shlex.quote(os.fspath(folder.resolve()))
    own = (
        "" if description.bundle is not None else " --trainer FILE.py:" + shlex.quote(description.trainer or "Trainer")
    )
    found = []
    is_timed = description.setting("time_limit_s") is not None  # more epochs leave such a run no more time
    if not can_go_on or (is_complete and is_timed):
        pass
    elif description.dataset is not None and description.host is None:
        more = f" --epochs {2 * _epochs(description)} --schedule restart" if is_complete else ""
        title = "Train longer" if is_complete else "Resume the training"
        found.append(Command(title=title, command=f"candy-monai resume {run}{own}{more}"))
    elif not is_complete:
        title = "Resume the training"
        if description.host is not None:
            title += ", in the script that started it"
        found.append(Command(title=title, command=resuming_call(folder, description)))
    if description.num_classes is not None or description.plan is not None:
        found.append(Command(title="Predict new images", command=f"candy-monai predict {run} IMAGES PREDICTIONS{own}"))
        found.append(Command(title="Score predictions", command="candy-monai evaluate PREDICTIONS LABELS"))
        found.append(
            Command(
                title="Export for other software",
                # A MONAI Bundle cannot carry a network of the user's own.
                command=f"candy-monai export {run} {'model.onnx --to onnx' if own else 'OUT --to monai-bundle'}{own}",
            )
        )
    found.append(Command(title="See how far it will get", command=f"candy-monai forecast {run}"))
    found.append(Command(title="Write this page again", command=f"candy-monai report {run}"))
    return found


def _epochs(description: ExperimentDescription) -> int:
    epochs = description.setting("num_epochs")
    return epochs if isinstance(epochs, int) else 100


def shown(value: object) -> str:
    """Return a plain value as a page shows it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {shown(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple) and any(isinstance(entry, Mapping | str) for entry in value):
        return "; ".join(map(shown, value))
    return as_text(frozen(value))
