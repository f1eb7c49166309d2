"""Tell one state of a dataset from another by the content of its files, without decoding any.

Also what inspection, preprocessing and storing need of a dataset, whatever class it is of.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from candy_monai.aliases import PathLike
from candy_monai.data.described import DescribedDataset

if TYPE_CHECKING:
    from candy_monai.data.cases import SupervisedDataset
    from candy_monai.data.images.reading import Scan
    from candy_monai.data.nnunet_description import DatasetDescription, NNUNetCase

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


def opened_dataset(dataset: SupervisedDataset | CaseSource | PathLike) -> CaseSource:
    """Return a dataset, opened where its folder was given."""
    if isinstance(dataset, str | os.PathLike):
        from candy_monai.data.nnunet import NNUNetDataset

        return NNUNetDataset(dataset)
    return dataset if isinstance(dataset, CaseSource) else DescribedDataset(dataset)


def dataset_digest(dataset: SupervisedDataset | CaseSource | PathLike) -> str:
    """Return 16 hexadecimal digits that change when the dataset's content does.

    Covers channels, labels, case ids, and of each file its name, size and content. Files up to 1 MiB count whole. Of
    larger ones the first and the last 64 KiB count: the header and, for ``.gz`` and ``.png``, checksums of all that
    lies between. Larger files without checksums add their modification time. Of a dataset that names no files every
    voxel counts.
    """
    source = opened_dataset(dataset)
    if isinstance(source, DescribedDataset):
        return source.digest()
    about = source.description
    meaning = (about.channel_names, list(about.labels.items()), about.ignore_label, about.regions_class_order)
    digest = hashlib.blake2b(repr(meaning).encode(), digest_size=8)
    for case in sorted(source.cases, key=lambda case: case.case_id):
        digest.update(case.case_id.encode())
        for path in (*case.images, *([case.label] if case.label else [])):
            _digest_file(digest, Path(path))
    return digest.hexdigest()


def case_seed(case_id: str) -> int:
    """Return a seed that depends on the case id alone."""
    return int.from_bytes(hashlib.blake2b(case_id.encode(), digest_size=8).digest(), "big")


def _digest_file(digest: hashlib.blake2b, path: Path) -> None:
    status = path.stat()
    digest.update(f"{path.name}\0{status.st_size}\0".encode())
    with path.open("rb") as file:
        if status.st_size <= _WHOLE_FILE_BYTES:
            digest.update(file.read())
            return
        digest.update(file.read(_BLOCK_BYTES))
        file.seek(-_BLOCK_BYTES, os.SEEK_END)
        digest.update(file.read())
    if not path.name.lower().endswith(_CHECKSUMMED):
        digest.update(str(status.st_mtime_ns).encode())
