"""Pair predictions with references by name or position, and check by their headers that both are on the same grid."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from nibabel.spatialimages import SpatialImage
from torch import Tensor

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.bases import CaseDataset, ids_of
from candy_monai.data.datasets.files import check_same_ids, image_files
from candy_monai.data.images.alignment import mismatch
from candy_monai.data.images.names import composed, image_suffix
from candy_monai.data.images.reading import load_image, read_geometry, scan_of_nibabel
from candy_monai.data.values import join_names
from candy_monai.errors import BadInputError, CandyError, DatasetError
from candy_monai.inference.inputs import is_path
from candy_monai.inference.manifest import STATISTICS
from candy_monai.inference.outputs import PROBABILITIES
from candy_monai.metrics.overlap import is_batch

_BESIDE_PREDICTIONS = (".dcm", ".json", ".npz", ".pkl")

OneCase: TypeAlias = PathLike | Tensor | SpatialImage | Sequence[PathLike]
"""One case: a file, its tensor, a nibabel image, or for images the files of its channels."""

Source: TypeAlias = PathLike | Tensor | SpatialImage | Sequence[OneCase] | Mapping[str, OneCase] | CaseDataset[Tensor]
"""Cases: a folder, a file, a tensor of one case or of a batch, a list, a mapping by id, or a dataset without labels."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One case to compare: the prediction, or the image to predict, and the reference."""

    case_id: str
    first: OneCase
    second: OneCase

    @property
    def files(self) -> tuple[str | None, str | None]:
        """The file of each, if it was read from one."""
        first, second = (e.get_filename() if isinstance(e, SpatialImage) else e for e in (self.first, self.second))
        return str(first) if is_path(first) else None, str(second) if is_path(second) else None


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """The cases to compare."""

    pairs: Iterator[Pair]  # tensors of datasets are loaded only when needed
    left_out: tuple[str, ...] = ()  # ids that only one of the sources has
    passed_over: tuple[str, ...] = ()  # files of the first source that are not cases


def pair_up(first: Source, second: Source, *, names: tuple[str, str], common: bool = False) -> Pairing:
    """Pair two sources by name if both have names (folders, mappings, datasets; lists of files with common names).

    Other sources are paired by position. What has no partner of its name is left out with ``common``, and else refused,
    as are files on different grids. The ``names`` are those of both sources in messages.
    """
    one, other = _Side.of(first), _Side.of(second)
    one, passed_over = one.without_strays(other)
    sides = (one, other)
    where = " and ".join(str(s) if is_path(s) else f"the {n}s" for s, n in zip((first, second), names, strict=True))
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
    named_by = other if other.has_ids and not one.is_named else one
    pairs = (
        Pair(
            case_id=named_by.case_ids[partner if named_by is other else index],
            first=one.entries[index],
            second=other.entries[partner],
        )
        for index, partner in enumerate(partners)
    )
    return Pairing(pairs=pairs, left_out=left_out, passed_over=passed_over)


def loaded(entry: OneCase) -> Tensor:
    """Return the tensor of a label map, read from its file if it is one."""
    if isinstance(entry, SpatialImage):
        entry = scan_of_nibabel(entry).tensor()
    elif is_path(entry):
        entry = load_image(entry, is_label=True)
    if not isinstance(entry, Tensor):
        found = f"{len(entry)} of them" if isinstance(entry, list | tuple) else f"a {type(entry).__name__}"
        raise BadInputError(f"expected one file or tensor, got {found}")
    return entry


@dataclass(frozen=True, kw_only=True)
class _Side:
    """One source: its entries and their ids; whether these are names to match by, or at least not mere numbers.

    ``other_files`` are those of a folder that are not images; None if the source is not a folder.
    """

    entries: Sequence[OneCase] | CaseDataset[Tensor]
    case_ids: Sequence[str]
    is_named: bool
    has_ids: bool
    other_files: tuple[str, ...] | None = None

    @classmethod
    def of(cls, source: Source) -> _Side:
        if is_path(source):
            path = Path(source)
            is_folder = path.is_dir()
            files = [path] if path.is_file() else image_files(path)
            return cls(
                entries=files,
                case_ids=ids_of(files),
                is_named=is_folder,
                has_ids=True,
                other_files=_unread(path, files) if is_folder else None,
            )
        if isinstance(source, Mapping):
            return cls(entries=list(source.values()), case_ids=list(map(str, source)), is_named=True, has_ids=True)
        if isinstance(source, CaseDataset):
            return cls(entries=source, case_ids=source.case_ids, is_named=True, has_ids=True)
        if isinstance(source, SpatialImage):
            source = [source]
        elif isinstance(source, Tensor):
            source = list(source) if is_batch(source) else [source]
        elif not isinstance(source, Sequence):
            raise BadInputError(
                f"cannot compare a {type(source).__name__}, expected a folder, a file, a tensor (torch.from_numpy "
                "makes one of an array), a nibabel image, a list or a mapping of these, or a dataset"
            )
        is_files = bool(len(source)) and all(map(is_path, source))
        case_ids = ids_of(source)
        if is_files and len(set(case_ids)) < len(case_ids):
            case_ids = tuple(map(str, source))
        return cls(entries=source, case_ids=case_ids, is_named=False, has_ids=is_files)

    @property
    def keys(self) -> list[str]:
        """The ids for comparison, with accents in one Unicode form."""
        return [composed(case_id) for case_id in self.case_ids]

    def only(self, keys: Set[str]) -> _Side:
        """Return the side with only some of its cases."""
        chosen = [index for index, key in enumerate(self.keys) if key in keys]
        ids = [self.case_ids[index] for index in chosen]
        if isinstance(self.entries, CaseDataset):
            return replace(self, entries=self.entries.subset(ids), case_ids=ids)
        return replace(self, entries=[self.entries[index] for index in chosen], case_ids=ids)

    def without_strays(self, partner: _Side) -> tuple[_Side, tuple[str, ...]]:
        """Return a folder's side without files that are not cases, and the names of the unexpected ones.

        Probabilities beside their label map are left out and not reported. An image without a partner is unexpected if
        it has another format than all images with a partner, such as a screenshot.
        """
        if self.other_files is None:
            return self, ()
        files = {key: Path(str(self.entries[index])) for index, key in enumerate(self.keys)}
        has_partner = set(files) & set(partner.keys)
        beside = {name for name in files if name.endswith(PROBABILITIES) and name.removesuffix(PROBABILITIES) in files}
        formats = {image_suffix(files[name]) for name in has_partner}
        strays = {name for name in files if has_partner and image_suffix(files[name]) not in formats}
        kept = set(files) - (beside | strays) | has_partner
        named = (*self.other_files, *(files[name].name for name in sorted(strays - beside)))
        return self.only(kept) if len(kept) < len(files) else self, named


def _unread(folder: Path, read: Sequence[Path]) -> tuple[str, ...]:
    """Return the names of a folder's files that are neither images nor usually written with predictions."""
    others = (path for path in set(folder.iterdir()) - set(read) if path.suffix not in _BESIDE_PREDICTIONS)
    names = {path.name for path in others if path.is_file() and not path.name.startswith(".")}
    return tuple(sorted(names - {STATISTICS}))


def _check_same_ids(one: _Side, other: _Side, where: str, names: tuple[str, str]) -> None:
    """Raise if ids do not match; if some do, the last line says how many and what to do."""
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


def _check_grids(one: _Side, other: _Side, partners: Sequence[int], where: str, names: tuple[str, str]) -> None:
    """Compare the headers of all pairs of files before any voxel is read; warn of a file that is its own partner."""
    if isinstance(one.entries, CaseDataset) or isinstance(other.entries, CaseDataset):
        return
    problems, same = [], []
    for index, partner in enumerate(partners):
        first, second = one.entries[index], other.entries[partner]
        if isinstance(first, list | tuple):
            first = first[0]  # the channels of a case are on the same grid
        if not is_path(first) or not is_path(second):
            continue
        if os.path.exists(first) and os.path.exists(second) and os.path.samefile(first, second):  # also through a link
            same.append(Path(first).name)
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
    if same:
        warnings.warn(
            f"{join_names(same)}: the {names[0]} and the {names[1]} are the same file, so that its scores are perfect",
            stacklevel=4,
        )
