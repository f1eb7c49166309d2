"""What inspection, preprocessing and storing need of a dataset, and digests that tell one state of it from another."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.bases import SupervisedDataset
from candy_monai.data.datasets.nnunet_description import DatasetDescription, NNUNetCase
from candy_monai.data.images.reading import Scan
from candy_monai.errors import BadInputError
from candy_monai.label_ids import holds_whole_numbers

if TYPE_CHECKING:
    from torch import Tensor

_WHOLE_FILE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16
_CHECKSUMMED = (".gz", ".png")  # the tail of these covers every byte before it


@runtime_checkable
class CaseSource(Protocol):
    """What inspection and preprocessing need of a dataset; ``NNUNetDataset`` is one."""

    @property
    def description(self) -> DatasetDescription:
        """What ``dataset.json`` says."""

    @property
    def cases(self) -> tuple[NNUNetCase, ...]:
        """The cases with their files."""

    def read(self, idx: int) -> tuple[Scan, Scan]:
        """Return a case's image and label as they are stored."""


@dataclass(frozen=True, kw_only=True)
class Digests:
    """What tells one state of a dataset from another, of one reading of its files.

    Attributes:
        whole: 16 hexadecimal digits for the dataset; see `dataset_digest`.
        cases: 16 for the files of each case, by id.
        stamps: Sizes and modification times of the files of each case, by id; see `case_stamp`.
    """

    whole: str
    cases: Mapping[str, str]
    stamps: Mapping[str, str]


class DescribedDataset:
    """A ``SupervisedDataset`` as a source: cases before its transforms, numbered channels, and no list of labels.

    Cases are loaded one at a time, since a dataset of the user's own need not bear several threads.

    Raises:
        BadInputError: If it is a dataset of another kind.
    """

    def __init__(self, dataset: SupervisedDataset) -> None:
        if not isinstance(dataset, SupervisedDataset):
            raise BadInputError(f"expected a folder or a dataset of images with labels, got a {type(dataset).__name__}")
        self._dataset = dataset
        self._lock = threading.Lock()
        self._digests: dict[int, bytes] = {}
        self.cases = tuple(NNUNetCase(case_id=case_id, images=(), label=None) for case_id in dataset.case_ids)
        num_channels = len(dataset.load(0)[0]) if self.cases else 1
        self.description = DatasetDescription(
            name=type(dataset).__name__,
            channel_names=tuple(str(channel) for channel in range(num_channels)),
            labels={},
            file_ending="",
        )

    def read(self, idx: int) -> tuple[Scan, Scan]:
        """Return a case's image, float32, and its label ids, int64, in memory."""
        with self._lock:
            image, label = self._dataset.load(idx)
        if not holds_whole_numbers(label):
            raise BadInputError("the label holds values that are not whole numbers, expected ids of classes")
        scans = _on_cpu(image, torch.float32), _on_cpu(label, torch.int64)
        digest = hashlib.blake2b(digest_size=8)
        for scan in scans:
            digest.update(repr((tuple(scan.values.shape), scan.geometry.affine.tolist())).encode())
            digest.update(scan.values.contiguous().numpy().tobytes())
        self._digests[idx] = digest.digest()
        return scans

    def digests(self) -> Digests:
        """Return digests that change with any voxel, id or position; loads what was not loaded yet."""
        for idx in set(range(len(self.cases))) - self._digests.keys():
            self.read(idx)
        by_case = {case.case_id: self._digests[idx] for idx, case in enumerate(self.cases)}
        whole = hashlib.blake2b(digest_size=8)
        for case_id, content in sorted(by_case.items()):
            whole.update(case_id.encode() + b"\0" + content)
        return Digests(
            whole=whole.hexdigest(), cases={case_id: content.hex() for case_id, content in by_case.items()}, stamps={}
        )


def opened_dataset(dataset: SupervisedDataset | CaseSource | PathLike) -> CaseSource:
    """Return a dataset, opened where its folder was given."""
    if isinstance(dataset, str | os.PathLike):
        from candy_monai.data.datasets.nnunet import NNUNetDataset

        return NNUNetDataset(dataset)
    return dataset if isinstance(dataset, CaseSource) else DescribedDataset(dataset)


def dataset_digest(dataset: SupervisedDataset | CaseSource | PathLike) -> str:
    """Return 16 hexadecimal digits that change when the dataset's content does.

    Covers channels, labels, case ids, and of each file its name, size and content. Files up to 1 MiB count whole. Of
    larger ones the first and the last 64 KiB count: the header and, for ``.gz`` and ``.png``, checksums of all that
    lies between. Larger files without checksums add their modification time. Of a dataset that names no files every
    voxel counts.
    """
    return dataset_digests(dataset).whole


def dataset_digests(dataset: SupervisedDataset | CaseSource | PathLike) -> Digests:
    """Return the digests of a dataset and of each of its cases; every file is read once."""
    source = opened_dataset(dataset)
    if isinstance(source, DescribedDataset):
        return source.digests()
    return file_digests(source.description, source.cases)


def file_digests(description: DatasetDescription, cases: Iterable[NNUNetCase]) -> Digests:
    """Return the digests of a dataset by its description and its files."""
    whole = hashlib.blake2b(repr(description_key(description)).encode(), digest_size=8)
    by_case, stamps = {}, {}
    for case in sorted(cases, key=lambda case: case.case_id):
        whole.update(case.case_id.encode())
        stamps[case.case_id] = case_stamp(case)
        by_case[case.case_id] = case_digest(case, whole)
    return Digests(whole=whole.hexdigest(), cases=by_case, stamps=stamps)


def description_key(description: DatasetDescription) -> tuple[object, ...]:
    """Return what of a description decides the meaning of the files: channels and labels."""
    return (
        description.channel_names,
        list(description.labels.items()),
        description.ignore_label,
        description.regions_class_order,
    )


def case_digest(case: NNUNetCase, *more: hashlib.blake2b) -> str:
    """Return 16 hexadecimal digits of the names, sizes and content of a case's files; ``more`` digests get the same."""
    digest = hashlib.blake2b(digest_size=8)
    for path in case.files:
        for part in _parts_of(path):
            for each in (digest, *more):
                each.update(part)
    return digest.hexdigest()


def case_stamp(case: NNUNetCase) -> str:
    """Return the sizes and modification times of a case's files: they change whenever a file is written to."""
    return " ".join(f"{status.st_size}:{status.st_mtime_ns}" for status in map(Path.stat, case.files))


def case_seed(case_id: str) -> int:
    """Return a seed that depends on the case id alone."""
    return int.from_bytes(hashlib.blake2b(case_id.encode(), digest_size=8).digest(), "big")


def _on_cpu(tensor: Tensor, dtype: torch.dtype) -> Scan:
    scan = Scan.of(tensor)
    return replace(scan, values=scan.values.detach().to("cpu", dtype))


def _parts_of(path: Path) -> Iterator[bytes]:
    status = path.stat()
    yield f"{path.name}\0{status.st_size}\0".encode()
    with path.open("rb") as file:
        if status.st_size <= _WHOLE_FILE_BYTES:
            yield file.read()
            return
        yield file.read(_BLOCK_BYTES)
        file.seek(-_BLOCK_BYTES, os.SEEK_END)
        yield file.read()
    if not path.name.lower().endswith(_CHECKSUMMED):
        yield str(status.st_mtime_ns).encode()
