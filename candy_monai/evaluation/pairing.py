"""Which prediction belongs to which reference, and that both lie on one grid. Reads headers, and voxels when asked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeGuard

from nibabel.spatialimages import SpatialImage
from torch import Tensor
from typing_extensions import override

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.bases import CaseDataset, ids_of
from candy_monai.data.datasets.files import check_same_ids, image_files
from candy_monai.data.images.alignment import mismatch
from candy_monai.data.images.names import composed, image_suffix
from candy_monai.data.images.reading import load_image, read_geometry, scan_of_nibabel
from candy_monai.errors import BadInputError, CandyError, DatasetError
from candy_monai.metrics.overlap import is_batch

PROBABILITIES = "_probabilities"
"""What the id of a case's file of probabilities ends with, beside its label map."""

_BESIDE_PREDICTIONS = (".json", ".npz", ".pkl")

Entry: TypeAlias = PathLike | Tensor | SpatialImage | Sequence[PathLike]
"""One case: a file, its tensor, a nibabel image, or for images the files of its channels."""

Source: TypeAlias = PathLike | Tensor | SpatialImage | Sequence[Entry] | Mapping[str, Entry] | CaseDataset[Tensor]
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


@dataclass(frozen=True, kw_only=True)
class Pairs(Iterable[Pair]):
    """The cases to compare, whose tensors are taken from datasets when their turn comes.

    Attributes:
        pairs: One for each case.
        left_out: Ids that only one of the sources has.
        passed_over: Files of the first source that are no cases.
    """

    pairs: Callable[[], Iterator[Pair]]
    left_out: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()

    @override
    def __iter__(self) -> Iterator[Pair]:
        return self.pairs()


def pair_up(first: Source, second: Source, *, names: tuple[str, str], common: bool = False) -> Pairs:
    """Pair two sources by name where both have names (folders, mappings, datasets; lists of files that share any).

    Anything else is paired by position.

    Args:
        first: Predictions, or images.
        second: References.
        names: What each is called in messages.
        common: Leave out what only one of them has, where they are paired by name.

    Returns:
        The pairs, and what is not among them.

    Raises:
        BadInputError: If there is nothing, the names or the numbers do not match, or two files lie on different grids.
    """
    one, other = _Side.of(first), _Side.of(second)
    one, passed_over = one.without_strays(other)
    sides = (one, other)
    where = f"{_described(first, names[0])} and {_described(second, names[1])}"
    left_out: tuple[str, ...] = ()
    share_names = one.has_ids and other.has_ids and not set(one.keys).isdisjoint(other.keys)
    if share_names or (one.is_named and other.is_named):
        if common:
            left_out = tuple(sorted(set(one.keys) ^ set(other.keys)))
            one, other = one.only(set(other.keys)), other.only(set(one.keys))
        _check_same_ids(one, other, where, names)
        position = {key: index for index, key in enumerate(other.keys)}
        partners = [position[key] for key in one.keys]
    elif len(one.case_ids) != len(other.case_ids):
        raise BadInputError(
            f"found {len(one.case_ids)} {names[0]}s and {len(other.case_ids)} {names[1]}s, expected one for each"
        )
    else:
        partners = list(range(len(one.case_ids)))
    if not partners:
        if left_out:
            mine, theirs = (next(iter(each.case_ids), None) for each in sides)
            examples = "" if mine is None or theirs is None else f": the one has {mine}, the other {theirs}"
            raise BadInputError(f"{where}: no {names[0]} has the name of a {names[1]}{examples}")
        raise BadInputError(f"found no {names[0]}s to compare")
    _check_grids(one, other, partners, where, names)
    naming, order = (other, partners) if other.has_ids and not one.is_named else (one, range(len(partners)))

    def pairs() -> Iterator[Pair]:
        for index, partner in enumerate(partners):
            yield Pair(case_id=naming.case_ids[order[index]], first=one.entries[index], second=other.entries[partner])

    return Pairs(pairs=pairs, left_out=left_out, passed_over=passed_over)


def loaded(entry: Entry, *, is_label: bool) -> Tensor:
    """Return an entry's tensor, from its file where it is one."""
    if isinstance(entry, Tensor):
        return entry
    if isinstance(entry, SpatialImage):
        scan: Tensor = scan_of_nibabel(entry).tensor()
        return scan
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
    is_folder: bool = False
    other_files: tuple[str, ...] = ()

    @classmethod
    def of(cls, source: Source) -> _Side:
        if isinstance(source, str | os.PathLike):
            path = Path(source)
            files = image_files(path) if not path.is_file() else [path]
            rest = _unread(path, files) if path.is_dir() else ()
            return cls(
                entries=files,
                case_ids=ids_of(files),
                is_named=path.is_dir(),
                has_ids=True,
                is_folder=path.is_dir(),
                other_files=rest,
            )
        if isinstance(source, Mapping):
            return cls(entries=list(source.values()), case_ids=list(source), is_named=True, has_ids=True)
        if isinstance(source, CaseDataset):
            return cls(entries=source, case_ids=source.case_ids, is_named=True, has_ids=True)
        if isinstance(source, SpatialImage):
            source = [source]
        entries: Sequence[Entry] = _cases_of(source) if isinstance(source, Tensor) else source
        is_files = bool(len(entries)) and all(isinstance(entry, str | os.PathLike) for entry in entries)
        case_ids = ids_of(entries)
        if is_files and len(set(case_ids)) < len(case_ids):
            case_ids = tuple(str(entry) for entry in entries)
        return cls(entries=entries, case_ids=case_ids, is_named=False, has_ids=is_files)

    @property
    def keys(self) -> list[str]:
        """The ids as they are compared: with accents in one form."""
        return [composed(case_id) for case_id in self.case_ids]

    def only(self, keys: Set[str]) -> _Side:
        """Return the side with some of its cases."""
        chosen = [index for index, key in enumerate(self.keys) if key in keys]
        ids = [self.case_ids[index] for index in chosen]
        if isinstance(self.entries, CaseDataset):
            return replace(self, entries=self.entries.subset(ids), case_ids=ids)
        return replace(self, entries=[self.entries[index] for index in chosen], case_ids=ids)

    def without_strays(self, partner: _Side) -> tuple[_Side, tuple[str, ...]]:
        """Return a folder's side without files that are no cases, and the names of those that nobody expects.

        Probabilities that stand beside their label map are left out without a word. An image without a partner that is
        of another format than all those that have one was put there by somebody, such as a picture to look at.
        """
        if not self.is_folder or isinstance(self.entries, CaseDataset) or not _are_files(self.entries):
            return self, ()
        files = dict(zip(self.keys, map(Path, self.entries), strict=True))
        has_partner = set(files) & set(partner.keys)
        beside = {name for name in files if name.endswith(PROBABILITIES) and name.removesuffix(PROBABILITIES) in files}
        formats = {image_suffix(files[name]) for name in has_partner}
        strays = {name for name in files if has_partner and image_suffix(files[name]) not in formats}
        kept = set(files) - (beside | strays) | has_partner
        named = (*self.other_files, *(files[name].name for name in sorted(strays - beside)))
        return self.only(kept) if len(kept) < len(files) else self, named


def _are_files(entries: Sequence[Entry]) -> TypeGuard[Sequence[PathLike]]:
    return all(isinstance(entry, str | os.PathLike) for entry in entries)


def _unread(folder: Path, read: Sequence[Path]) -> tuple[str, ...]:
    """Name the files of a folder that are neither images nor what predictions are written with."""
    known = {*read, *(path for path in folder.iterdir() if path.suffix in _BESIDE_PREDICTIONS)}
    others = (
        path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".") and path not in known
    )
    return tuple(sorted(path.name for path in others))


def _check_same_ids(one: _Side, other: _Side, where: str, names: tuple[str, str]) -> None:
    """Refuse ids that do not pair up; where some do, the last line says how many and what to do."""
    try:
        check_same_ids(one.case_ids, other.case_ids, where, names=names)
    except DatasetError as error:
        both = set(one.keys) & set(other.keys)
        sides = zip((set(one.keys), set(other.keys)), names, strict=True)
        alone = [f"{len(ids - both)} of {len(ids)} {name}s" for ids, name in sides if ids - both]
        if not both or not alone:
            raise
        hint = f"{' and '.join(alone)} have no partner; --common (common=True) compares the {len(both)} in common"
        raise DatasetError(where, [*error.problems, hint]) from None


def _cases_of(tensor: Tensor) -> list[Tensor]:
    return list(tensor) if is_batch(tensor) else [tensor]


def _check_grids(one: _Side, other: _Side, partners: Sequence[int], where: str, names: tuple[str, str]) -> None:
    """Compare the headers of all pairs of files before any voxel is read."""
    if isinstance(one.entries, CaseDataset) or isinstance(other.entries, CaseDataset):
        return
    problems = []
    for index, partner in enumerate(partners):
        first, second = one.entries[index], other.entries[partner]
        if not isinstance(first, str | os.PathLike | Tensor | SpatialImage):
            first = first[0]  # the channels of a case lie on one grid
        if isinstance(first, Tensor | SpatialImage) or not isinstance(second, str | os.PathLike):
            continue
        try:
            against = f"the {names[1]} {Path(second).name} has"
            problem = mismatch(read_geometry(first), read_geometry(second), against=against)
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
    if isinstance(entry, SpatialImage):
        entry = entry.get_filename() or 0
    return str(entry) if isinstance(entry, str | os.PathLike) else None
