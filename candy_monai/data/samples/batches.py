"""Convert the output of any loader to one type of batch: plain tensors with the ids of the cases.

Since a batch contains several cases, it has no affine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from torch import Tensor

from candy_monai.data.images.alignment import misalignment
from candy_monai.data.images.geometry import Geometry, in_ras
from candy_monai.data.values import plain_tensor
from candy_monai.errors import BadInputError


class Batch(NamedTuple):
    """A batch of cases or patches.

    Attributes:
        images: ``(B, C, *spatial)``, float32; float64 and complex numbers are kept.
        labels: ``(B, 1, *spatial)``, int64 for integers of any type. Masks stay Boolean and floating-point numbers
            float32 or float64, since they may be the targets of a user's own trainer.
        case_ids: One id for each case, or empty if the loader yields none.
    """

    images: Tensor
    labels: Tensor
    case_ids: tuple[str, ...]


def unpack(batch: object) -> Batch:
    """Return images, labels and case ids from the output of any loader, in the types of `Batch`, without metadata.

    Args:
        batch: ``(images, labels)`` as a tuple or list, optionally with the case ids as a third entry, or a mapping with
            ``"image"`` and ``"label"``, optionally ``"case_id"``. Ids are text; anything else in their place, such as
            weights, is ignored.

    Raises:
        BadInputError: If it is anything else.
    """
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, Mapping):
        missing = [key for key in ("image", "label") if key not in batch]
        if missing:
            raise BadInputError(
                f"the batch has the keys {sorted(map(str, batch))}, expected 'image' and 'label': name them so, for "
                "example by monai.transforms.CopyItemsd([...], names=['image', 'label']) as the last transform"
            )
        images, labels, case_ids = batch["image"], batch["label"], batch.get("case_id", ())
    elif isinstance(batch, tuple | list) and len(batch) in (2, 3):
        images, labels, case_ids = batch[0], batch[1], batch[2] if len(batch) == 3 else ()
    else:
        size = f" of {len(batch)}" if isinstance(batch, Sequence) else ""
        raise BadInputError(
            f"the loader yields a {type(batch).__name__}{size}, expected (images, labels) or a mapping "
            "with 'image' and 'label'"
        )
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise BadInputError(f"the batch's {name} are a {type(value).__name__}, expected a tensor")
    known = _ids_in(case_ids) or _ids_in_metadata(images)
    return Batch(_as_intensities(plain_tensor(images)), _as_labels(plain_tensor(labels)), known)


def different_grids(batch: object) -> str | None:
    """Return how the grids of a batch's first image and label differ, after their metadata; None if they do not.

    A transform that moves only one of the two, such as ``Orientationd(keys="image")``, makes them differ. The grid of a
    tensor whose affine is the identity, as of one made without metadata, is not known.
    """
    keys: tuple[Any, Any] = ("image", "label") if isinstance(batch, Mapping) else (0, 1)
    image, label = (_grid(batch[key]) for key in keys)  # type: ignore[index]  # unpack has checked
    if image is None or label is None or image.spatial_shape != label.spatial_shape:
        return None
    return misalignment(label, image, against="its image has")


def _grid(batch: object) -> Geometry | None:
    """Return the grid of the first case of a batch of MetaTensors, if it is known."""
    if not isinstance(batch, MetaTensor) or batch.ndim not in (4, 5):
        return None
    affine = batch.affine if batch.affine.ndim == 2 else batch.affine[0]  # PyTorch's collation keeps the first one
    if affine.shape != (4, 4) or torch.equal(affine, torch.eye(4).to(affine)):
        return None
    space = batch.meta.get("space")
    space = space[0] if isinstance(space, list | tuple) and space else space
    affine = in_ras(MetaTensor(torch.empty(0), meta={"affine": affine, "space": space})).affine
    return Geometry.in_space(batch.shape[2:], affine.cpu().double().numpy(), num_channels=batch.shape[1])


def collate_cases(samples: Sequence[object]) -> dict[str, Tensor | list[str]]:
    """Stack samples into a batch that keeps every case's id; for ``DataLoader(..., collate_fn=collate_cases)``.

    MONAI's own collate function gives a batch the metadata of its first case, which is wrong for the others.

    Args:
        samples: Pairs ``(image, label)``, or mappings with ``"image"`` and ``"label"``. The id is the mapping's
            ``"case_id"`` or in the image's metadata, where our datasets put it.

    Returns:
        ``"image"`` and ``"label"`` as plain tensors; ``"case_id"``, a list of text, if every sample has one.

    Raises:
        BadInputError: If a sample is neither, or the shapes differ.
    """
    cases = [unpack(sample) for sample in samples]
    case_ids = [_case_id(sample, case) for sample, case in zip(samples, cases, strict=True)]
    batch: dict[str, Tensor | list[str]] = {
        "image": _stacked("images", [case.images for case in cases], case_ids),
        "label": _stacked("labels", [case.labels for case in cases], case_ids),
    }
    known = [case_id for case_id in case_ids if case_id is not None]
    return {**batch, "case_id": known} if len(known) == len(cases) else batch


def _as_intensities(images: Tensor) -> Tensor:
    return images if images.is_complex() or images.dtype == torch.float64 else images.float()


def _as_labels(labels: Tensor) -> Tensor:
    if labels.dtype == torch.bool or labels.is_complex() or labels.dtype == torch.float64:
        return labels
    return labels.float() if labels.is_floating_point() else labels.long()


def _ids_in(entry: object) -> tuple[str, ...]:
    if isinstance(entry, str):
        return (entry,)
    if isinstance(entry, tuple | list) and all(isinstance(case_id, str) for case_id in entry):
        return tuple(entry)
    return ()


def _ids_in_metadata(images: Tensor) -> tuple[str, ...]:
    """Return the ids of our datasets that MONAI's collate function keeps; PyTorch's keeps only the first one."""
    found = _ids_in(images.meta.get("case_id")) if isinstance(images, MetaTensor) else ()
    return found if len(found) == len(images) else ()


def _case_id(sample: object, case: Batch) -> str | None:
    if case.case_ids:
        return case.case_ids[0]
    image = sample["image"] if isinstance(sample, Mapping) else sample[0]  # type: ignore[index]  # unpack has checked
    return image.meta.get("case_id") if isinstance(image, MetaTensor) else None


def _stacked(what: str, tensors: list[Tensor], case_ids: Sequence[str | None]) -> Tensor:
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(set(shapes)) > 1:
        found = ", ".join(f"{case_id or 'a case'} {shape}" for case_id, shape in zip(case_ids, shapes, strict=True))
        raise BadInputError(
            f"the {what} of one batch have different shapes: {found}; crop to one size, or use batches of one case"
        )
    return torch.stack(tensors)
