"""Divide case ids into folds: plain, grouped or stratified, and read and write nnU-Net's split files."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import reprlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from candy_monai.aliases import PathLike
from candy_monai.data.images.formats import READABLE
from candy_monai.data.images.names import composed, image_suffix, split_channel, stem_of
from candy_monai.data.values import join_reprs, repeated
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.files import atomic_write_text
from candy_monai.text import read_json, read_text

DEFAULT_SEED = 12345
DEFAULT_NUM_FOLDS = 5

Grouping = str | os.PathLike[str] | Mapping[str, str]
"""How to determine which cases belong together: see ``resolve_groups``."""

Strata = Mapping[str, Hashable] | Callable[[str], Hashable]
"""The values to balance over the folds: one for each case id, as a mapping or a function."""


@dataclass(frozen=True, kw_only=True)
class Fold:
    """One division of the cases: the sorted ids for training and for validation."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


def kfold(ids: Sequence[str], k: int, *, seed: int = DEFAULT_SEED) -> tuple[Fold, ...]:
    """Divide the sorted ids into ``k`` folds, identical to nnU-Net's for the same ids and seed.

    This is scikit-learn's ``KFold(k, shuffle=True, random_state=seed)``: one shuffle of the positions, then consecutive
    parts, of which the first ``n % k`` have one more id.

    Raises:
        SettingsError: If ``k`` is out of range or an id occurs twice.
    """
    shuffled = _sorted(ids, k, what="cases")
    np.random.RandomState(seed).shuffle(shuffled)
    return _folds(ids, [[shuffled[index] for index in piece] for piece in np.array_split(np.arange(len(ids)), k)])


def grouped_kfold(
    ids: Sequence[str], groups: Mapping[str, str], k: int, *, seed: int = DEFAULT_SEED
) -> tuple[Fold, ...]:
    """Divide the ids into ``k`` folds and keep the cases of a group (a patient, a scanner) together.

    Groups are assigned as a whole, the largest first, each to the fold with the fewest cases; fold sizes are equal as
    far as the groups allow. The seed orders groups of equal size.

    Raises:
        SettingsError: If ``k`` is out of range, an id occurs twice or has no group.
    """
    members = _members(_sorted(ids, None, what="cases"), groups, "group")
    names = _sorted([str(name) for name in members], k, what="groups")
    np.random.RandomState(seed).shuffle(names)
    names.sort(key=lambda name: -len(members[name]))  # stable: the shuffle orders groups of equal size
    pieces: list[list[str]] = [[] for _ in range(k)]
    for name in names:
        min(pieces, key=len).extend(members[name])
    return _folds(ids, pieces)


def stratified_kfold(
    ids: Sequence[str], strata: Mapping[str, Hashable], k: int, *, seed: int = DEFAULT_SEED
) -> tuple[Fold, ...]:
    """Divide the ids into ``k`` folds with equal shares of every stratum (a site, a finding), to within one case.

    Raises:
        SettingsError: If ``k`` is out of range, an id occurs twice or has no stratum.
    """
    members = _members(_sorted(ids, k, what="cases"), strata, "stratum")
    random = np.random.RandomState(seed)
    dealt: list[str] = []
    for stratum in sorted(members, key=repr):
        random.shuffle(members[stratum])
        dealt.extend(members[stratum])  # continues at the fold after the last stratum, so sizes differ by at most one
    return _folds(ids, [dealt[start::k] for start in range(k)])


def choose_folds(
    ids: Sequence[str],
    *,
    k: int | None = None,
    seed: int = DEFAULT_SEED,
    groups: Grouping | None = None,
    stratify_by: Strata | None = None,
) -> tuple[Fold, ...]:
    """Return the folds for the options of `CaseDataset.fold`.

    Without ``k`` there are 5, or as many as cases (groups) if there are fewer. A single case (group) gives one fold
    that uses all cases for training and none for validation.

    Raises:
        SettingsError: If ``k`` exceeds the number of cases (groups) or options contradict each other.
        BadInputError: If there are no cases, or a case has no group or stratum.
    """
    if not ids:
        raise BadInputError("there are no cases to divide into folds")
    if groups is not None and stratify_by is not None:
        raise SettingsError("groups and stratify_by exclude each other: choose one of them")
    group_of = None if groups is None else resolve_groups(groups, ids)
    num_units = len(ids) if group_of is None else len(set(group_of.values()))
    if k is None and num_units == 1:
        return (Fold(train=tuple(sorted(ids)), validation=()),)
    k = min(DEFAULT_NUM_FOLDS, num_units) if k is None else k
    if group_of is not None:
        return grouped_kfold(ids, group_of, k, seed=seed)
    if stratify_by is not None:
        strata = {case_id: stratify_by(case_id) for case_id in ids} if callable(stratify_by) else stratify_by
        return stratified_kfold(ids, strata, k, seed=seed)
    return kfold(ids, k, seed=seed)


def resolve_groups(groups: Grouping, ids: Sequence[str], *, what: str = "groups") -> dict[str, str]:
    r"""Return the group of every case.

    Args:
        groups: A regular expression searched in the id (the group is the first parenthesis, or else the whole match:
            ``r"patient(\d+)"``), a mapping from id to group, or a path to a CSV file whose first two columns are id and
            group. Text that ends in ``.csv`` is such a path.
        ids: The cases.
        what: The option's name, for messages.

    Raises:
        BadInputError: If a case has no group, or the expression or the file cannot be read.
    """
    if isinstance(groups, Mapping):
        found = dict(groups)
    elif isinstance(groups, str) and not groups.lower().endswith(".csv"):
        try:
            pattern = re.compile(groups)
        except re.error as error:
            raise BadInputError(f"{what}: {groups!r} is not a regular expression ({error})") from error
        found = {case_id: match[pattern.groups > 0] for case_id in ids if (match := pattern.search(case_id))}
    else:
        found = _read_group_table(Path(groups))
    by_name = {composed(case_id): group for case_id, group in found.items()}
    missing = [case_id for case_id in ids if not by_name.get(composed(case_id))]
    if missing:
        raise BadInputError(f"{what}: no group for {join_reprs(missing)}; every case needs one")
    return {case_id: by_name[composed(case_id)] for case_id in ids}


def read_splits(path: PathLike, *, case_ids: Sequence[str] | None = None) -> tuple[Fold, ...]:
    """Read a split file in nnU-Net's format: a list of ``{"train": [ids], "val": [ids]}``.

    A single id may be given without a list, and a single fold without the outer list. Ids are numbers or text, with
    accents in any form.

    Args:
        path: The file.
        case_ids: The existing cases. Any other entry refers to the case whose file it names (``labelsTr/a.nii.gz``,
            ``a_0000.nii.gz``), or whose number it is without leading zeros, if there is one.

    Raises:
        BadInputError: If the file is missing or has other content, or a fold has a case on both sides.
    """
    known = _KnownIds(case_ids or ())
    try:
        content = read_json(path)
        entries = [content] if isinstance(content, dict) else content
        if not isinstance(entries, list) or not entries:
            raise ValueError("an empty list" if entries == [] else reprlib.repr(content))
        folds = tuple(_fold_of(entry, number, known) for number, entry in enumerate(entries))
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"{path}: found {error}; expected a list with {{'train': [ids], 'val': [ids]}} for each fold"
        ) from error
    for index, fold in enumerate(folds):
        both = sorted(set(fold.train) & set(fold.validation))
        if both:
            raise BadInputError(f"{path}: fold {index} has {join_reprs(both)} in both training and validation")
    return folds


def _fold_of(entry: object, number: int, known: _KnownIds) -> Fold:
    """Return the fold described by an entry of a split file.

    Raises:
        ValueError: If the entry is invalid; the message says what was found.
    """
    if not isinstance(entry, dict):
        raise ValueError(f"{reprlib.repr(entry)} for fold {number}")
    if missing := [side for side in ("train", "val") if side not in entry]:
        raise ValueError(f"no {missing[0]!r} in fold {number}, which has {join_reprs(list(entry)) or 'nothing'}")
    return Fold(train=known.ids(entry["train"]), validation=known.ids(entry["val"]))


def checked_splits(path: Path, case_ids: Sequence[str]) -> tuple[tuple[Fold, ...], list[str]]:
    """Read a split file as `read_splits` does, and also return its problems, given the existing cases."""
    try:
        folds = read_splits(path, case_ids=case_ids)
    except BadInputError as error:
        return (), [str(error)]
    known, problems = set(case_ids), []
    for index, fold in enumerate(folds):
        where = f"{path.name}: fold {index}"
        if not fold.train:
            problems.append(f'{where} has no training case ("train" is empty); name at least one')
        if not fold.validation and len(known) != 1:  # a single case has no validation
            problems.append(
                f"{where} has no validation case (\"val\" is empty); name at least one, or choose the fold 'all', "
                "which trains on every case"
            )
        named = (*fold.train, *fold.validation)
        if unknown := sorted(set(named) - known):
            problems.append(f"{where} names cases that do not exist: {', '.join(unknown)}")
        if twice := repeated(named):
            problems.append(f"{where} names cases twice: {', '.join(twice)}")
    return folds, problems


class _KnownIds:
    """The existing cases, to find the one to which an entry of a split file refers."""

    def __init__(self, case_ids: Sequence[str]) -> None:
        self._ids = {composed(case_id): case_id for case_id in case_ids}
        self._numbers = defaultdict[int, list[str]](list)
        for case_id in case_ids:
            if case_id.isdecimal():
                self._numbers[int(case_id)].append(case_id)

    def ids(self, entries: object) -> tuple[str, ...]:
        """Return the ids on one side of a fold.

        Raises:
            ValueError: If it contains anything but text and whole numbers.
        """
        given = entries if isinstance(entries, list) else [entries]
        if isinstance(entries, str) and self._found(entries) is None and "," in entries:
            given = [part.strip() for part in entries.split(",")]
        wrong = [entry for entry in given if isinstance(entry, bool) or not isinstance(entry, str | int)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} where a case id was expected")
        return tuple(self._found(str(entry)) or composed(str(entry)) for entry in given)

    def _found(self, entry: str) -> str | None:
        name = PurePosixPath(composed(entry).strip().replace("\\", "/")).name
        stem = stem_of(name) if image_suffix(name) in READABLE else name
        for candidate in (composed(entry), name, stem, split_channel(stem)[0]):
            if candidate in self._ids:
                return self._ids[candidate]
        numbered = self._numbers.get(int(stem), []) if stem.isdecimal() else []
        return numbered[0] if len(numbered) == 1 else None


def write_splits(path: PathLike, folds: Sequence[Fold]) -> None:
    """Write folds in nnU-Net's format; the file is written atomically."""
    atomic_write_text(path, splits_as_text(folds))


def splits_as_text(folds: Sequence[Fold]) -> str:
    """Return the content of a split file in nnU-Net's format."""
    content = [{"train": list(fold.train), "val": list(fold.validation)} for fold in folds]
    return json.dumps(content, indent=4) + "\n"


def pick_fold(folds: Sequence[Fold], fold: int) -> Fold:
    """Return one fold by number.

    Raises:
        SettingsError: If there is no such fold.
    """
    if not isinstance(fold, int):
        raise SettingsError(f"fold must be a number or 'all', got {fold!r}")
    if not 0 <= fold < len(folds):
        raise SettingsError(f"fold {fold} does not exist: expected 0 to {len(folds) - 1}, or 'all'")
    return folds[fold]


def _sorted(ids: Sequence[str], k: int | None, *, what: str) -> list[str]:
    """Return the sorted ids; raise an error unless they are distinct and can be divided into ``k`` folds."""
    ordered = sorted(ids)
    if twice := repeated(ordered):
        raise SettingsError(f"{join_reprs(twice)} occurs more than once among the {what}")
    if k is not None and k < 2:
        raise SettingsError(f"k must be at least 2, got {k}")
    if k is not None and k > len(ordered):
        raise SettingsError(f"{k} folds need at least {k} {what}, there are {len(ordered)}; lower k")
    return ordered


def _members(ids: Sequence[str], key_of: Mapping[str, Hashable], what: str) -> dict[Hashable, list[str]]:
    missing = [case_id for case_id in ids if case_id not in key_of]
    if missing:
        raise SettingsError(f"no {what} for {join_reprs(missing)}; every case needs one")
    members = defaultdict[Hashable, list[str]](list)
    for case_id in ids:
        members[key_of[case_id]].append(case_id)
    return members


def _folds(ids: Sequence[str], pieces: Iterable[Sequence[str]]) -> tuple[Fold, ...]:
    return tuple(
        Fold(train=tuple(sorted(set(ids).difference(piece))), validation=tuple(sorted(piece))) for piece in pieces
    )


def _read_group_table(path: Path) -> dict[str, str]:
    try:
        table = csv.reader(io.StringIO(read_text(path), newline=""))
        rows = [row for row in table if any(cell.strip() for cell in row)]
    except (OSError, ValueError, csv.Error) as error:
        raise BadInputError(f"{path}: cannot read groups ({error}); expected a CSV file: case id, group") from error
    short = [row for row in rows if len(row) < 2]
    if short:
        raise BadInputError(f"{path}: found the row {short[0]!r}, expected two columns: case id, group")
    groups: dict[str, str] = {}
    for case_id, group in ((composed(row[0].strip()), row[1].strip()) for row in rows):
        if groups.setdefault(case_id, group) != group:
            raise BadInputError(
                f"{path}: {case_id!r} is in two groups, {groups[case_id]!r} and {group!r}; expected one row for each"
            )
    return groups
