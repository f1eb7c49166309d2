"""The names of the transforms that are applied to the images of a dataset."""

from __future__ import annotations

from collections.abc import Iterator

from monai.transforms import MapTransform

_INNER = ("dataset", "_base", "datasets", "_datasets")
"""Attributes for the wrapped dataset: in PyTorch, MONAI and this library."""

_PARTS = ("transforms", "_transform", "_image_transform")
"""Attributes for the transforms of a ``Compose`` or a `JointTransform`."""

_NO_CHANGE = (
    "LoadImage",
    "EnsureChannelFirst",
    "EnsureType",
    "ToTensor",
    "ToDevice",
    "CastToType",
    "Identity",
    "SelectItems",
)


def names_of_transforms(dataset: object) -> list[str]:
    """Return the names of a dataset's transforms that change images, in the order of application.

    Loading, channel axes, types and transforms of keys other than ``image`` do not count. A wrapper of other datasets
    also has the transforms of the first one.
    """
    inner = next((getattr(dataset, name) for name in _INNER if hasattr(dataset, name)), None)
    if isinstance(inner, list | tuple):
        inner = inner[0] if inner else None
    before = [] if inner is None else names_of_transforms(inner)
    attributes = getattr(dataset, "__dict__", {})
    names = ("transform", "_transform", "_image_transform")
    return [*before, *(step for name in names for step in _steps(attributes.get(name)))]


def _steps(transform: object) -> Iterator[str]:
    if transform is None:
        return
    attributes = getattr(transform, "__dict__", {})
    parts = [attributes[name] for name in _PARTS if name in attributes]
    for part in parts:
        for step in part if isinstance(part, list | tuple) else (part,):
            yield from _steps(step)
    name = getattr(transform, "__name__", type(transform).__name__)
    is_of_another_key = isinstance(transform, MapTransform) and "image" not in transform.keys
    if not parts and not is_of_another_key and not name.startswith(_NO_CHANGE):
        yield name
