"""Read and write plans: one given by a user, and those made for earlier states of a dataset."""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from candy_monai.aliases import PathLike
from candy_monai.data.planning.entries import as_text
from candy_monai.data.planning.plan import ENTRIES, SETTABLE, Plan, as_applied, parsed_overrides
from candy_monai.data.values import join_names
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.files import atomic_write_text
from candy_monai.text import read_json

_DESCRIPTION = "experiment.json"

_MADE_FOR = ("num_dims", "channel_names", "class_names", "ignore_label", "regions", "num_previous")
"""Entries that must agree with a dataset for a plan to fit it."""

_NOT_COMPARED = ("dataset_name", "median_shape", "chosen")
_MOST_SHOWN = 60


def read_plan(path: PathLike) -> Plan:
    """Read a plan.

    Args:
        path: An experiment folder, or a file that is a plan or contains one under ``plan``: ``experiment.json``,
            ``inspection.json``, or one in a store.

    Raises:
        BadInputError: If there is none, it is not of this version, or has an invalid value.
    """
    file = Path(path) / _DESCRIPTION if Path(path).is_dir() else Path(path)
    give = f"give the folder of an experiment, or a file that holds a plan, such as its {_DESCRIPTION}"
    try:
        content = read_json(file)
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError)
        found = "there is no such file" if is_missing else f"cannot be read ({error.strerror})"
        raise BadInputError(f"{file}: {found}; {give}") from error
    except ValueError as error:
        raise BadInputError(f"{file}: holds no plan, found text that is not JSON ({error}); {give}") from error
    values = content.get("plan", content) if isinstance(content, dict) else content
    names = {field.name for field in dataclasses.fields(Plan)}
    if not isinstance(values, dict) or len(names & values.keys()) < len(names) / 2:
        keys = join_names([str(key) for key in values], limit=5) if isinstance(values, dict) and values else ""
        found = f"the entries {keys}" if keys else repr(values)[:_MOST_SHOWN]
        raise BadInputError(f"{file}: holds no plan, found {found}; {give}")
    return plan_of(values, file)


def plan_of(values: Mapping[str, object], where: PathLike) -> Plan:
    """Return the plan from the result of `Plan.to_dict`.

    Raises:
        BadInputError: If it is not a plan of this version, or has an invalid value.
    """
    try:
        return Plan.from_dict(values)
    except (BadInputError, AttributeError) as error:
        raise BadInputError(f"{where}: {error}") from error


def adopted_plan(given: Plan, made: Plan, overrides: Mapping[str, object], *, path: PathLike) -> Plan:
    """Return a plan given by a user, with some entries changed, for a dataset with another plan of its own.

    Raises:
        BadInputError: If the plan does not fit the dataset.
        SettingsError: If an override changes an entry on which others depend.
    """
    for name in _MADE_FOR:
        if getattr(given, name) != getattr(made, name):
            raise BadInputError(
                f"{path}: the plan is not for this dataset: its {name} is {_shown(getattr(given, name))}, the "
                f"dataset's {_shown(getattr(made, name))}; leave out --plan to plan anew"
            )
    fixed = dict(parsed_overrides(overrides))
    for name in sorted(fixed):
        entry, kept = ENTRIES[name], getattr(given, name)
        if not entry.decides_others:
            continue
        asked = fixed.pop(name)
        if name == "normalization" and len(asked) == 1:  # one scheme for all channels
            asked *= len(kept)
        if as_text(asked) != entry.shown(kept):
            raise SettingsError(
                f"--set {name}={as_text(asked)}: the plan of {path} has {entry.shown(kept)}, on which its other "
                "entries depend; leave out --set to keep it, or --plan to plan anew"
            )
    chosen = {*given.chosen, *overrides, *(name for name in SETTABLE if not ENTRIES[name].is_length)}
    changes: dict[str, Any] = {**fixed, "dataset_name": made.dataset_name, "chosen": tuple(sorted(chosen))}
    if given.resampling == "none" and (made.resampling, made.pixdim) != ("none", given.pixdim):
        changes.setdefault("resampling", "extent")  # the shape of some cases of this dataset changes
    return dataclasses.replace(given, **changes)


def plan_changes(old: Plan, new: Plan) -> list[str]:
    """Return the changes of a plan that affect preprocessing or training, as ``entry old -> new``."""
    old, new = as_applied(old), as_applied(new)
    texts = []
    for name in (field.name for field in dataclasses.fields(Plan) if field.name not in _NOT_COMPARED):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            texts.append(name if name == "normalization" else f"{name} {_shown(before)} -> {_shown(after)}")
    return texts


def keep_plan(folder: PathLike, plan: Plan, *, digest: str, wishes: Sequence[object]) -> tuple[list[str], Path] | None:
    """Write the plan for a dataset's current state, and compare it with that for the previous state.

    Args:
        folder: The folder of derived data; created if missing.
        plan: The plan.
        digest: The digest of the dataset.
        wishes: What the plan depends on besides the dataset: only plans with equal wishes are compared.

    Returns:
        The changes since the previous state, and the file of the previous plan; None if nothing changed, or this state
        has been planned before.
    """
    wish = hashlib.blake2b(repr(wishes).encode(), digest_size=4).hexdigest()
    stem = f"{quote(plan.dataset_name, safe=' ')}.plan-{wish}"
    path = Path(folder) / f"{stem}-{digest}.json"
    is_known = path.exists()
    earlier = sorted(
        set(Path(folder).glob(f"{glob.escape(stem)}-*.json")) - {path}, key=lambda file: file.stat().st_mtime
    )
    Path(folder).mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps({"plan": plan.to_dict()}, indent=1), durable=False)
    if is_known or not earlier:
        return None
    try:
        changes = plan_changes(read_plan(earlier[-1]), plan)
    except BadInputError:  # damaged, or of another version
        return None
    return (changes, earlier[-1]) if changes else None


def _shown(value: object) -> str:
    text = as_text(value)
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."
