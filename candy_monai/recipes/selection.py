"""The choice of `select` for a cross-validation: ``inference.json``, which prediction and export follow.

The file is data: what it names is compared with what `select` can write, and nothing in it is executed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Self

from candy_monai.aliases import PathLike
from candy_monai.data.pipelines.description import (
    Entry,
    filled_holes,
    largest_component,
    without_small_components,
)
from candy_monai.data.values import is_of_kind
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.experiment.checkpoints import BEST
from candy_monai.experiment.description import DESCRIPTION, installed_versions, read_description
from candy_monai.experiment.state import weight_file
from candy_monai.files import atomic_write_json, digest_of_file
from candy_monai.text import read_json

INFERENCE = "inference.json"
FORMAT = 1

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of the experiments that predict together.

    Attributes:
        experiment: Its folder relative to that of the cross-validation, with slashes.
        weights_sha256: The digest of the best weights with which the choice was made.
    """

    experiment: str
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The choice made by out-of-fold predictions, with its reasons.

    Attributes:
        folder: The folder of the cross-validation.
        configurations: The configurations whose models are averaged.
        members: These models.
        thresholds: The probability that each region must exceed; empty for 0.5.
        postprocessing: Steps on the label map, in MONAI's configuration language.
        reasons: The reasons in words, one line each.
        candidates: The scores of each configuration and ensemble: ``name``, ``configurations``, ``num_cases``,
            ``dice``, ``interval_95``, ``std`` over the folds, and ``classes``.
        trials: The effect of every threshold and step that was tried; see `Trial`.
        scores: The scores of the choice, as for a candidate; computed on the cases used for choosing, and so slightly
            too high.
    """

    folder: Path
    configurations: tuple[str, ...]
    members: tuple[Member, ...]
    thresholds: tuple[float, ...] = ()
    postprocessing: tuple[Entry, ...] = ()
    reasons: tuple[str, ...] = ()
    candidates: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    trials: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    scores: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def experiments(self) -> list[Path]:
        """The folders of the members."""
        return [self.folder / member.experiment for member in self.members]

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the folder as plain values, as in the file."""
        return {
            "format": FORMAT,
            "versions": installed_versions("candy-monai", "torch", "monai"),
            "configurations": list(self.configurations),
            "members": [vars(member) for member in self.members],
            "thresholds": list(self.thresholds),
            "postprocessing": [dict(entry) for entry in self.postprocessing],
            "reasons": list(self.reasons),
            "scores": dict(self.scores),
            "candidates": [dict(candidate) for candidate in self.candidates],
            "trials": [dict(trial) for trial in self.trials],
        }

    def save(self) -> Path:
        """Write ``inference.json`` into the folder of the cross-validation, and return it."""
        file = self.folder / INFERENCE
        atomic_write_json(file, self.to_dict())
        return file

    @classmethod
    def read(cls, folder: PathLike) -> Self:
        """Read and check the ``inference.json`` of a cross-validation.

        Raises:
            BadInputError: If it is missing or damaged, names experiments that are outside the folder or missing, or
                contains a step that `select` cannot choose.
        """
        folder = Path(folder)
        file = folder / INFERENCE
        try:
            found = read_json(file)
        except (OSError, ValueError) as error:
            raise BadInputError(f"{file}: cannot be read ({error}); candy-monai select writes it") from error
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise BadInputError(f"{file}: found no choice of format {FORMAT}; run candy-monai select {folder} again")
        read = partial(_entries, found, file)
        members = tuple(_member(entry, folder, file) for entry in read("members", dict, least=1))
        known = _label_ids(folder / members[0].experiment)
        return cls(
            folder=folder,
            configurations=tuple(read("configurations", str)),
            members=members,
            thresholds=tuple(_threshold(entry, file) for entry in read("thresholds", float)),
            postprocessing=tuple(_step(entry, file, known) for entry in read("postprocessing", dict)),
            reasons=tuple(read("reasons", str)),
            candidates=tuple(read("candidates", dict)),
            trials=tuple(read("trials", dict)),
            scores=found["scores"] if isinstance(found.get("scores"), dict) else {},
        )

    def check_weights(self) -> None:
        """Raise ExperimentError if the best weights of a member are not those with which the choice was made."""
        for member, experiment in zip(self.members, self.experiments, strict=True):
            if digest_of_file(weight_file(experiment, BEST)) != member.weights_sha256:
                raise ExperimentError(
                    f"{experiment}: its best weights are not those that {self.folder / INFERENCE} was chosen with: "
                    f"choose again with candy-monai select {self.folder}"
                )


def selection_in(folders: Sequence[PathLike]) -> Selection | None:
    """Return the selection in the folders to predict with; None if none of them holds one.

    Raises:
        BadInputError: If one of several does, or as `Selection.read`.
    """
    chosen = [Path(folder) for folder in folders if (Path(folder) / INFERENCE).is_file()]
    if not chosen:
        return None
    if len(folders) > 1:
        raise BadInputError(
            f"{chosen[0]}: holds {INFERENCE}, a choice of models with their postprocessing, which cannot be combined "
            "with others: give only this folder, or the experiments to average"
        )
    return Selection.read(chosen[0])


def _entries(content: Mapping[str, Any], file: Path, name: str, kind: type, *, least: int = 0) -> list[Any]:
    found = content.get(name)
    if not isinstance(found, list) or len(found) < least or not all(is_of_kind(entry, kind) for entry in found):
        what = {str: "texts", float: "numbers", dict: "objects"}[kind]
        raise BadInputError(
            f"{file}: {name} is {str(found)[:60]}, expected a list of {what}; candy-monai select writes it anew"
        )
    return found


def _member(entry: Mapping[str, Any], folder: Path, file: Path) -> Member:
    place, digest = entry.get("experiment"), entry.get("weights_sha256")
    if set(entry) != {"experiment", "weights_sha256"} or not isinstance(place, str) or not isinstance(digest, str):
        raise BadInputError(
            f"{file}: the member {str(entry)[:100]} is not valid, expected experiment and weights_sha256"
        )
    path = PurePosixPath(place)
    is_inside = not path.is_absolute() and ".." not in path.parts and "\\" not in place and ":" not in place
    if not is_inside or not (folder / place).resolve().is_relative_to(folder.resolve()):
        raise BadInputError(
            f"{file}: the member {place!r} lies outside the cross-validation, expected a path inside it"
        )
    if not _DIGEST.fullmatch(digest):
        raise BadInputError(f"{file}: {digest[:80]!r} is not a SHA-256 digest (of the weights of {place})")
    if not (folder / place / DESCRIPTION).is_file():
        raise BadInputError(
            f"{file}: the member {place} is not an experiment (it has no {DESCRIPTION}); choose again with "
            f"candy-monai select {folder}"
        )
    return Member(experiment=place, weights_sha256=digest)


def _threshold(value: float, file: Path) -> float:
    if not 0 < value < 1:
        raise BadInputError(f"{file}: the threshold is {value}, expected a probability between 0 and 1")
    return float(value)


def _label_ids(experiment: Path) -> set[int]:
    """Return the ids of the foreground that an experiment was trained on."""
    dataset = read_description(experiment).dataset
    labels: Mapping[str, Any] = (dataset and dataset.labels) or {}
    return {each for ids in labels.values() for each in (ids if isinstance(ids, list | tuple) else [ids])} - {0}


def _step(entry: Entry, file: Path, label_ids: set[int]) -> Entry:
    """Return a postprocessing step after checking that `select` can choose it."""
    ids, least = entry.get("applied_labels"), entry.get("min_size")
    known: list[Entry] = []
    if isinstance(ids, list) and ids and all(is_of_kind(each, int) and each in label_ids for each in ids):
        known = [largest_component(ids), filled_holes(ids[0])]
        if is_of_kind(least, float) and isinstance(least, int | float) and least > 0:
            known.append(without_small_components(ids, least))
    if entry not in known:
        raise BadInputError(
            f"{file}: the step {str(entry)[:200]} is unknown, expected one that candy-monai select chooses from: the "
            f"largest component, removal of small components, or filling of holes, of ids among {sorted(label_ids)}"
        )
    return entry
