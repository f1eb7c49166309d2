"""The fingerprint of a dataset, the input of planning, and its form as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from candy_monai.aliases import PathLike, Shape
from candy_monai.data.values import frozen
from candy_monai.errors import BadInputError
from candy_monai.files import atomic_write_text
from candy_monai.text import UnreadableTextError, read_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

Orientation = tuple[str, ...]
"""Axis codes as in nibabel: ``("R", "A", "S")`` are the directions of the stored axes."""


@dataclass(frozen=True, kw_only=True)
class IntensityStatistics:
    """Summary of a channel's intensities in some voxels."""

    mean: float
    std: float
    median: float
    percentile_00_5: float
    percentile_99_5: float
    min: float
    max: float

    @classmethod
    def of(cls, values: NDArray[np.floating]) -> IntensityStatistics:
        """Compute the summary of a non-empty array."""
        low, median, high = np.percentile(values, (0.5, 50.0, 99.5))
        return cls(
            mean=float(values.mean(dtype=np.float64)),
            std=float(values.std(dtype=np.float64)),
            median=float(median),
            percentile_00_5=float(low),
            percentile_99_5=float(high),
            min=float(values.min()),
            max=float(values.max()),
        )


@dataclass(frozen=True, kw_only=True)
class ChannelFingerprint:
    """The intensities of a channel in all cases.

    Attributes:
        name: The channel's name in ``dataset.json``.
        foreground: In labelled voxels; ``None`` if no case has any.
        whole: In all voxels.
    """

    name: str
    foreground: IntensityStatistics | None
    whole: IntensityStatistics


@dataclass(frozen=True, kw_only=True)
class CaseFingerprint:
    """The geometry and classes of a case, in the axes of its file.

    Attributes:
        case_id: The id of the case.
        shape: Spatial shape.
        spacing_mm: Spacing along each axis; 1 for a picture.
        orientation: Axis codes of a volume; ``None`` for 2-D images.
        nonzero_shape: Shape of the box around voxels that are non-zero in any channel; the full shape if all are zero.
        foreground_shape: Shape of the box around labelled voxels; ``None`` if there are none.
        class_voxels: Number of voxels of each label id that occurs, background and ignore included.
        foreground_bbox: First voxel and end along each axis of the box around labelled voxels, ``(a0, a1, b0, b1)`` or
            ``(a0, a1, b0, b1, c0, c1)``, as for `crop`; ``None`` without any.
        class_places: Voxels of each foreground id, as many as requested from ``inspect``.
    """

    case_id: str
    shape: Shape
    spacing_mm: tuple[float, ...]
    orientation: Orientation | None
    nonzero_shape: Shape
    foreground_shape: Shape | None
    class_voxels: Mapping[int, int]
    foreground_bbox: tuple[int, ...] | None = None
    class_places: Mapping[int, tuple[Shape, ...]] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, entry: Mapping[str, object]) -> CaseFingerprint:
        """Build a case from the result of ``asdict``, also after a round trip through JSON."""
        values = {key: frozen(value) for key, value in entry.items()}
        for key in ("class_voxels", "class_places"):  # keys in JSON are text
            by_id: Mapping[str, object] = values[key]  # type: ignore[assignment]
            values[key] = {int(index): value for index, value in by_id.items()}
        return cls(**values)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """All properties of a dataset that determine a plan.

    Attributes:
        dataset_name: The dataset's name.
        digest: Identifies the dataset's content, see ``dataset_digest``.
        is_picture: Whether the files have no physical space (PNG and similar formats).
        labels: Name to id, or to ids if regions overlap; in the order of ``dataset.json``.
        ignore_label: The id that is masked out of training, if any.
        region_order: The id painted for each foreground region, in painting order; ``None`` without regions.
        channels: One entry per channel.
        cases: One entry per case, sorted by id.
    """

    dataset_name: str
    digest: str
    is_picture: bool
    labels: Mapping[str, int | tuple[int, ...]]
    ignore_label: int | None
    region_order: tuple[int, ...] | None
    channels: tuple[ChannelFingerprint, ...]
    cases: tuple[CaseFingerprint, ...]

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The names of the channels in order."""
        return tuple(channel.name for channel in self.channels)

    @property
    def num_dims(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.cases[0].shape)

    def save(self, path: PathLike) -> None:
        """Write the fingerprint to a file, from which ``load`` restores an equal one."""
        atomic_write_text(Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: PathLike) -> Fingerprint:
        """Read a fingerprint from a file.

        Raises:
            BadInputError: If there is no such file, or it is not a fingerprint.
        """
        try:
            return cls.from_json(read_text(path))
        except (OSError, UnreadableTextError) as error:
            raise BadInputError(f"{path}: cannot be read ({error}); inspect the dataset again") from error

    def to_json(self) -> str:
        """Return JSON text from which ``from_json`` restores an equal fingerprint."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        """Build a fingerprint from the text of ``to_json``.

        Raises:
            BadInputError: If the text is not a fingerprint.
        """
        try:
            values = json.loads(text)
            values["labels"] = {name: frozen(ids) for name, ids in values["labels"].items()}
            values["region_order"] = frozen(values["region_order"])
            values["channels"] = tuple(_channel(entry) for entry in values["channels"])
            values["cases"] = tuple(CaseFingerprint.from_dict(entry) for entry in values["cases"])
            return cls(**values)
        except (ValueError, TypeError, KeyError) as error:
            raise BadInputError(f"not a fingerprint of this version ({error!r}): inspect the dataset again") from error


def _channel(entry: Mapping[str, object]) -> ChannelFingerprint:
    statistics = {
        key: None if entry[key] is None else IntensityStatistics(**entry[key])  # type: ignore[arg-type]
        for key in ("foreground", "whole")
    }
    return ChannelFingerprint(name=entry["name"], **statistics)  # type: ignore[arg-type]
