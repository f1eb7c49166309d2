"""Fuse several label maps of the same image into one, from annotators, other tools or other networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.bases import ids_of
from candy_monai.data.datasets.files import image_files
from candy_monai.data.images.alignment import aligned, mismatch
from candy_monai.data.images.names import composed
from candy_monai.data.images.reading import read_geometry, read_scan
from candy_monai.data.images.writing import save_image
from candy_monai.data.values import join_names, repeated
from candy_monai.errors import BadInputError, CandyError, DatasetError, SettingsError
from candy_monai.files import check_writable
from candy_monai.inference.outputs import PROBABILITIES
from candy_monai.label_ids import highest_id, holding, ids_in
from candy_monai.optional import require

FusionMethod = Literal["majority", "staple"]

_VOTES_AT_ONCE = 1 << 24
"""Maximum number of elements, maps x ids x voxels, of the arrays for the vote."""


def fuse_label_maps(maps: Sequence[Tensor], *, method: FusionMethod = "majority") -> Tensor:
    """Return one label map fused from several.

    Args:
        maps: At least two maps of ids with the same shape.
        method: ``majority``, the most frequent id, or the lowest of equally frequent ones, by MONAI's ``VoteEnsemble``;
            or ``staple``, SimpleITK's ``MultiLabelSTAPLE``, which weights each map by its agreement with the estimated
            truth in each class. Where its classes are equally likely, the majority is used.

    Returns:
        Ids of the same shape and of the first map's type; int64 if that cannot hold the ids of the others.

    Raises:
        BadInputError: If there are fewer than two maps, or they are not label maps of the same shape.
        SettingsError: If there is no such method.
        MissingExtraError: If SimpleITK is needed and not installed.
    """
    check_fusion(method)
    if len(maps) < 2:
        raise BadInputError(f"expected two label maps or more, got {len(maps)}")
    for place, labels in enumerate(maps, start=1):
        highest_id(labels, what=f"label map {place}")
        if labels.shape != maps[0].shape:
            raise BadInputError(
                f"label map {place} has shape {tuple(labels.shape)}, the first {tuple(maps[0].shape)}; resample them "
                "to one grid"
            )
    stacked = torch.stack([labels.as_subclass(Tensor).long().cpu() for labels in maps])
    known = sorted({label_id for labels in maps for label_id in ids_in(labels)})
    ids, kind = torch.tensor(known), holding(maps[0], max(known, default=0)).dtype
    places = torch.searchsorted(ids, stacked)
    fused = places[0].clone()
    differ = (places != places[0]).any(0)
    if bool(differ.any()):
        fused[differ] = _majority(places[:, differ], len(ids))
        if method == "staple":
            fused = _staple(places, undecided=fused)
    return ids[fused].type(kind)


def fuse_folders(
    sources: Sequence[PathLike],
    target: PathLike,
    *,
    method: FusionMethod = "majority",
    on_case: Callable[[int, int, str], None] | None = None,
) -> list[Path]:
    """Fuse the label maps of each case from several folders, and write the results.

    All file names and headers are compared before any map is read. Maps with other axis directions are reoriented to
    the first one; a fused map has the grid and the format of that of the first folder.

    Args:
        sources: At least two folders of label maps with the same names. Probabilities that ``predict`` wrote beside
            label maps are ignored.
        target: The folder to write into; created if missing.
        method: As for `fuse_label_maps`.
        on_case: Called with the number of finished cases, the number of all cases, and the case.

    Returns:
        The written files.

    Raises:
        DatasetError: If a case is missing in a folder, occurs twice, or has different grids; all such cases are listed.
        BadInputError: If there are fewer than two folders, or the target is one of them.
    """
    check_fusion(method)
    folders = [Path(source) for source in sources]
    if len(folders) < 2:
        raise BadInputError(f"expected two folders of label maps or more, got {len(folders)}")
    resolved = [folder.resolve() for folder in (*folders, Path(target))]
    if twice := repeated(resolved):
        raise BadInputError(f"{twice[0]} is given twice; give different folders, and another one for the results")
    check_writable(target)
    cases = _matched(folders)
    written = []
    for done, (case_id, files) in enumerate(cases.items(), start=1):
        scans = [read_scan(file, is_label=True) for file in files]
        grid = scans[0].geometry
        maps = [aligned(scan.values, scan.geometry, grid, name=scan.file_name, against="") for scan in scans]
        path = Path(target) / files[0].name
        save_image(fuse_label_maps(maps, method=method), path, like=files[0])
        written.append(path)
        if on_case is not None:
            on_case(done, len(cases), case_id)
    return written


def check_fusion(method: str) -> None:
    """Check that a method exists and its package is installed.

    Raises:
        SettingsError: If there is no such method.
        MissingExtraError: If SimpleITK is needed and not installed.
    """
    if method not in get_args(FusionMethod):
        raise SettingsError(f"method must be one of {', '.join(get_args(FusionMethod))}, got {method!r}")
    if method == "staple":
        require("SimpleITK", extra="staple", purpose="fuse label maps by STAPLE")


def _majority(places: Tensor, num_ids: int) -> Tensor:
    """Return the most frequent of the numbers ``(maps, voxels)``, the lowest in a tie."""
    from monai.transforms import VoteEnsemble

    vote = VoteEnsemble(num_classes=num_ids)
    parts = torch.split(places, max(1, _VOTES_AT_ONCE // (len(places) * num_ids)), dim=1)
    return torch.cat([torch.as_tensor(vote(part[:, None]))[0].long() for part in parts])


def _staple(places: Tensor, *, undecided: Tensor) -> Tensor:
    """Return STAPLE's estimate for numbers ``(maps, *spatial)``; ``undecided`` where it has none."""
    sitk = require("SimpleITK", extra="staple", purpose="fuse label maps by STAPLE")
    images = [sitk.GetImageFromArray(numbers.squeeze(0).numpy().astype("uint16")) for numbers in places]
    none = int(places.max()) + 1
    fused = torch.from_numpy(sitk.GetArrayFromImage(sitk.MultiLabelSTAPLE(images, none)).astype("int64"))
    return torch.where(fused == none, undecided, fused.view_as(undecided))


def _matched(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the files of each case, one from each folder; raise if any names do not match."""
    found = [_by_id(folder) for folder in folders]
    everywhere = set.intersection(*map(set, found))
    problems = [
        f"{folder}: label maps of {join_names(lacking)} are missing"
        for folder, files in zip(folders, found, strict=True)
        if (lacking := sorted(set().union(*found) - set(files)))
    ]
    for case_id in sorted(everywhere):
        first, *others = (files[case_id] for files in found)
        for other in others:
            try:
                problem = mismatch(read_geometry(other), read_geometry(first), against=f"{first} has")
            except CandyError as error:
                problem = str(error)
            if problem:
                problems.append(f"{other}: {problem}")
    if problems:
        raise DatasetError(" and ".join(map(str, folders)), problems)
    return {case_id: [files[case_id] for files in found] for case_id in found[0]}


def _by_id(folder: Path) -> dict[str, Path]:
    """Return the label maps of a folder by case id."""
    files = image_files(folder)
    ids = [composed(case_id) for case_id in ids_of(files)]
    if twice := repeated(ids):
        raise DatasetError(folder, [f"{case_id}: several files of this name" for case_id in twice])
    by_id = dict(zip(ids, files, strict=True))
    return {
        case_id: file
        for case_id, file in by_id.items()
        if not (case_id.endswith(PROBABILITIES) and case_id.removesuffix(PROBABILITIES) in by_id)
    }
