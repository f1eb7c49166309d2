"""The interface of a dataset for inspection, preprocessing and storing, and digests of its content."""

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
_CHECKSUMMED = (".gz", ".png")  # these end in checksums of all previous bytes


@runtime_checkable
class CaseSource(Protocol):
    """Protocol of a dataset for inspection and preprocessing, such as ``NNUNetDataset``."""

    @property
    def description(self) -> DatasetDescription:
        """The content of ``dataset.json``."""

    @property
    def cases(self) -> tuple[NNUNetCase, ...]:
        """The cases with their files."""

    def read(self, idx: int) -> tuple[Scan, Scan]:
        """Return the stored image and label of a case."""


@dataclass(frozen=True, kw_only=True)
class Digests:
    """Values that identify the content of a dataset, from one reading of its files.

    Attributes:
        whole: 16 hexadecimal digits for the dataset; see `dataset_digest`.
        cases: 16 for the files of each case, by id.
        stamps: Sizes and modification times of the files of each case, by id; see `case_stamp`.
    """

    whole: str
    cases: Mapping[str, str]
    stamps: Mapping[str, str]


class DescribedDataset:
    """A ``SupervisedDataset`` as a source: cases without its transforms, numbered channels, and no list of labels.

    Cases are loaded one at a time, since the user's own dataset may not be thread-safe.

    Raises:
        BadInputError: If the dataset is of another type.
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
        """Return the image of a case, float32, and its label ids, int64, in memory."""
        with self._lock:
            image, label = self._dataset.load(idx)
        if not holds_whole_numbers(label):
            raise BadInputError("the label holds values that are not whole numbers, expected class ids")
        scans = _on_cpu(image, torch.float32), _on_cpu(label, torch.int64)
        digest = hashlib.blake2b(digest_size=8)
        for scan in scans:
            digest.update(repr((tuple(scan.values.shape), scan.geometry.affine.tolist())).encode())
            digest.update(scan.values.contiguous().numpy().tobytes())
        self._digests[idx] = digest.digest()
        return scans

    def digests(self) -> Digests:
        """Return digests that change with any voxel, id or position; loads the remaining cases."""
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
    """Return a dataset, opened if given as a folder."""
    if isinstance(dataset, str | os.PathLike):
        from candy_monai.data.datasets.nnunet import NNUNetDataset

        return NNUNetDataset(dataset)
    return dataset if isinstance(dataset, CaseSource) else DescribedDataset(dataset)


def dataset_digest(dataset: SupervisedDataset | CaseSource | PathLike) -> str:
    """Return 16 hexadecimal digits that identify the dataset's content.

    They cover channels, labels, case ids, and the name, size and content of each file. Files up to 1 MiB are read
    whole. Of larger ones only the first and the last 64 KiB are read: the header and, for ``.gz`` and ``.png``,
    checksums of the rest. Larger files without checksums add their modification time. In a dataset without files, every
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
    """Return the digests of a dataset from its description and its files."""
    whole = hashlib.blake2b(repr(description_key(description)).encode(), digest_size=8)
    by_case, stamps = {}, {}
    for case in sorted(cases, key=lambda case: case.case_id):
        whole.update(case.case_id.encode())
        stamps[case.case_id] = case_stamp(case)
        by_case[case.case_id] = case_digest(case, whole)
    return Digests(whole=whole.hexdigest(), cases=by_case, stamps=stamps)


def description_key(description: DatasetDescription) -> tuple[object, ...]:
    """Return the parts of a description that determine the meaning of the files: channels and labels."""
    return (
        description.channel_names,
        list(description.labels.items()),
        description.ignore_label,
        description.regions_class_order,
    )


def case_digest(case: NNUNetCase, *more: hashlib.blake2b) -> str:
    """Return 16 hexadecimal digits for the names, sizes and content of a case's files; update ``more`` digests, too."""
    digest = hashlib.blake2b(digest_size=8)
    for path in case.files:
        for part in _parts_of(path):
            for each in (digest, *more):
                each.update(part)
    return digest.hexdigest()


def case_stamp(case: NNUNetCase) -> str:
    """Return the sizes and modification times of a case's files, which change whenever a file is written to."""
    return " ".join(f"{status.st_size}:{status.st_mtime_ns}" for status in map(Path.stat, case.files))


def case_seed(case_id: str) -> int:
    """Return a seed that depends only on the case id."""
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
