"""Any labelled dataset as a source that can be inspected, although nothing describes it. Writes nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import threading

import torch
from torch import Tensor

from candy_monai.data.datasets.bases import SupervisedDataset
from candy_monai.data.datasets.nnunet_description import DatasetDescription, NNUNetCase
from candy_monai.data.images.reading import Scan
from candy_monai.errors import BadInputError
from candy_monai.label_ids import holds_whole_numbers


class DescribedDataset:
    """A ``SupervisedDataset`` with the description that inspection asks for; cases are taken before its transforms.

    Channels have numbers for names, and no labels are listed: those that occur are found by looking. Cases are loaded
    one at a time, whatever the number of threads, since a dataset of the user's own need not bear more.

    Args:
        dataset: The dataset.

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
        read = _on_cpu(image, torch.float32), _on_cpu(label, torch.int64)
        digest = hashlib.blake2b(digest_size=8)
        for scan in read:
            digest.update(repr((tuple(scan.values.shape), scan.geometry.affine.tolist())).encode())
            digest.update(scan.values.contiguous().numpy().tobytes())
        self._digests[idx] = digest.digest()
        return read

    def case_digests(self) -> dict[str, str]:
        """Return for each case 16 hexadecimal digits of its voxels and positions; loads what was not loaded yet."""
        for idx in set(range(len(self.cases))) - self._digests.keys():
            self.read(idx)
        return {case.case_id: self._digests[idx].hex() for idx, case in enumerate(self.cases)}

    def digest(self) -> str:
        """Return 16 hexadecimal digits that change with any voxel, id or position; loads what was not loaded yet."""
        digest = hashlib.blake2b(digest_size=8)
        for case_id, content in sorted(self.case_digests().items()):
            digest.update(case_id.encode() + b"\0" + bytes.fromhex(content))
        return digest.hexdigest()


def _on_cpu(tensor: Tensor, dtype: torch.dtype) -> Scan:
    scan = Scan.of(tensor)
    return dataclasses.replace(scan, values=scan.values.detach().to("cpu", dtype))
