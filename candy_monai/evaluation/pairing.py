"""Which prediction belongs to which reference, and that both lie on one grid. Reads headers, and voxels when asked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from candy_monai.aliases import PathLike
from candy_monai.data.alignment import misalignment
from candy_monai.data.cases import CaseDataset, ids_of
from candy_monai.data.datasets import check_same_ids, image_files
from candy_monai.data.io import load_image, read_geometry
from candy_monai.data.names import composed
from candy_monai.errors import BadInputError, CandyError, DatasetError
from candy_monai.metrics.overlap import is_batch

Entry = PathLike | Tensor | Sequence[PathLike]
"""One case: a file, its tensor, or for images the files of its channels."""

Source = PathLike | Tensor | Sequence[Entry] | Mapping[str, Entry] | CaseDataset[Tensor]
"""Cases: a folder, a file, a tensor of one case or of a batch, a list, a mapping by id, or a dataset without labels."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One case to compare.

    Attributes:
        case_id: The case.
        first: The prediction, or the image to predict.
        second: The reference.
    """

    case_id: str
    first: Entry
    second: Entry

    @property
    def files(self) -> tuple[str | None, str | None]:
        """The file of each, if it is one."""
        return _file(self.first), _file(self.second)


def pair_up(first: Source, second: Source, *, names: tuple[str, str]) -> Iterator[Pair]:
    """Pair two sources by name where both have names (folders, mappings, datasets; lists of files that share any).

    Anything else is paired by position.

    Args:
        first: Predictions, or images.
        second: References.
        names: What each is called in messages.

    Returns:
        The pairs; tensors of datasets are taken when their turn comes.

    Raises:
        BadInputError: If there is nothing, the names or the numbers do not match, or two files lie on different grids.
    """
    one, other = _Side.of(first), _Side.of(second)
    where = f"{_described(first, names[0])} and {_described(second, names[1])}"
    keys, others = ([composed(case_id) for case_id in side.case_ids] for side in (one, other))
    share_names = one.has_ids and other.has_ids and not set(keys).isdisjoint(others)
    if share_names or (one.is_named and other.is_named):
        check_same_ids(one.case_ids, other.case_ids, where, names=names)
        position = {key: index for index, key in enumerate(others)}
        partners = [position[key] for key in keys]
    elif len(one.case_ids) != len(other.case_ids):
        raise BadInputError(
            f"found {len(one.case_ids)} {names[0]}s and {len(other.case_ids)} {names[1]}s, expected one for each"
        )
    else:
        partners = list(range(len(one.case_ids)))
    if not partners:
        raise BadInputError(f"found no {names[0]}s to compare")
    _check_grids(one, other, partners, where, names)
    naming, order = (other, partners) if other.has_ids and not one.is_named else (one, range(len(partners)))
    return (
        Pair(case_id=naming.case_ids[order[index]], first=one.entries[index], second=other.entries[partner])
        for index, partner in enumerate(partners)
    )


def loaded(entry: Entry, *, is_label: bool) -> Tensor:
    """Return an entry's tensor, from its file where it is one."""
    if isinstance(entry, Tensor):
        return entry
    if isinstance(entry, str | os.PathLike):
        image: Tensor = load_image(entry, is_label=is_label)
        return image
    raise BadInputError(f"expected one file or tensor, got {len(entry)} of them")


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One source: its entries and their ids; whether these are names to match by, or at least no mere numbers."""

    entries: Sequence[Entry] | CaseDataset[Tensor]
    case_ids: Sequence[str]
    is_named: bool
    has_ids: bool

    @classmethod
    def of(cls, source: Source) -> _Side:
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            files = image_files(path) if not path.is_file() else [path]
            return cls(entries=files, case_ids=ids_of(files), is_named=path.is_dir(), has_ids=True)
        if isinstance(source, Mapping):
            return cls(entries=list(source.values()), case_ids=list(source), is_named=True, has_ids=True)
        if isinstance(source, CaseDataset):
            return cls(entries=source, case_ids=source.case_ids, is_named=True, has_ids=True)
        entries: Sequence[Entry] = _cases_of(source) if isinstance(source, Tensor) else source
        is_files = bool(len(entries)) and all(isinstance(entry, str | os.PathLike) for entry in entries)
        case_ids = ids_of(entries)
        if is_files and len(set(case_ids)) < len(case_ids):
            case_ids = tuple(str(entry) for entry in entries)
        return cls(entries=entries, case_ids=case_ids, is_named=False, has_ids=is_files)


def _cases_of(tensor: Tensor) -> list[Tensor]:
    return list(tensor) if is_batch(tensor) else [tensor]


def _check_grids(one: _Side, other: _Side, partners: Sequence[int], where: str, names: tuple[str, str]) -> None:
    """Compare the headers of all pairs of files before any voxel is read."""
    if isinstance(one.entries, CaseDataset) or isinstance(other.entries, CaseDataset):
        return
    problems = []
    for index, partner in enumerate(partners):
        first, second = one.entries[index], other.entries[partner]
        if not isinstance(first, str | os.PathLike | Tensor):
            first = first[0]  # the channels of a case lie on one grid
        if isinstance(first, Tensor) or not isinstance(second, str | os.PathLike):
            continue
        try:
            against = f"the {names[1]} {Path(second).name} has"
            problem = misalignment(read_geometry(first), read_geometry(second), against=against)
        except CandyError as error:
            problems.append(str(error))
            continue
        if problem:
            problems.append(f"{Path(first).name}: {problem}")
    if problems:
        raise DatasetError(where, problems)


def _described(source: Source, name: str) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else f"the {name}s"


def _file(entry: Entry) -> str | None:
    return str(entry) if isinstance(entry, str | os.PathLike) else None
