"""Bring a case to the grid and the scale that a plan asks for, and bring results back to the case's own grid.

Owns both directions, so that they cannot drift apart: ``CaseGeometry`` records what was done to a case. Stores nothing
(``candy_monai.data.store``) and draws nothing at random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage
import torch
from torch import Tensor

from candy_monai.aliases import Shape
from candy_monai.data.fingerprint import Orientation
from candy_monai.data.formats import Geometry
from candy_monai.data.geometric import bounding_box
from candy_monai.data.grid import axis_order, coarse_axis, resampled_shape
from candy_monai.data.inspection import axis_codes
from candy_monai.data.io import Scan
from candy_monai.data.normalization import normalize
from candy_monai.data.planning import Plan
from candy_monai.data.resampling import resample_image, resample_label, resample_scores
from candy_monai.data.restoration import LabelPainter
from candy_monai.data.values import frozen, without_metadata
from candy_monai.errors import BadInputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CERTAINLY_NOT = -1e4
"""A logit whose probability is 0, and which half precision still holds."""


@dataclass(frozen=True, kw_only=True)
class CaseGeometry:
    """What preprocessing did to a case's grid, and all that undoing it needs.

    Attributes:
        file_name: The file that the case came from; empty when it came from memory.
        affine: The file's 4 x 4 affine.
        shape: The file's spatial shape.
        axis_codes: The file's orientation; ``None`` for anything 2-D.
        order: For each axis after reorientation, the file's axis that it is.
        flips: The axes, after reorientation, that run against the file's.
        crop: Start and stop along each axis after reorientation.
        resampled_shape: The shape after resampling: that of the preprocessed case.
    """

    file_name: str
    affine: tuple[tuple[float, ...], ...]
    shape: Shape
    axis_codes: Orientation | None
    order: tuple[int, ...]
    flips: tuple[int, ...]
    crop: tuple[tuple[int, int], ...]
    resampled_shape: Shape

    @property
    def reoriented_shape(self) -> Shape:
        """The whole case's shape after reorientation."""
        return tuple(self.shape[axis] for axis in self.order)

    @property
    def cropped_shape(self) -> Shape:
        """The shape after cropping, before resampling."""
        return tuple(stop - start for start, stop in self.crop)

    @property
    def is_resampled(self) -> bool:
        """Whether resampling changed the shape."""
        return self.cropped_shape != self.resampled_shape

    def to_dict(self) -> dict[str, object]:
        """Return plain values that JSON stores and ``from_dict`` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> CaseGeometry:
        """Restore a geometry, also after a round trip through JSON."""
        plain: dict[str, Any] = {key: frozen(value) for key, value in values.items()}
        return cls(**plain)


@dataclass(frozen=True, kw_only=True, eq=False)
class PreprocessedCase:
    """A case on the plan's grid.

    Attributes:
        image: ``(C, *spatial)`` float32, normalised.
        label: ``(1, *spatial)`` label ids; ``None`` when none was given.
        geometry: The way back.
    """

    image: Tensor
    label: Tensor | None
    geometry: CaseGeometry


class Preprocessor:
    """Preprocess cases as a plan asks, and undo it for results. Steps that would change nothing are skipped.

    The steps: bring the axes to the plan's orientation, crop to the box of non-zero voxels, normalise, resample.

    Args:
        plan: The plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def apply(self, image: Scan | Tensor, label: Tensor | None = None) -> PreprocessedCase:
        """Preprocess a case.

        Args:
            image: ``(C, *spatial)`` as loaded or as read, with its affine. A plain tensor counts as lying on the plan's
                grid.
            label: ``(1, *spatial)`` integer ids on the same grid.

        Raises:
            BadInputError: If channels or axes are not those of the plan, the label's shape differs, or intensities are
                NaN or infinite.
        """
        scan = image if isinstance(image, Scan) else Scan.of(image)
        values = self._checked(scan, label)
        order, flips, codes, affine, spacing = self._axes(None if _is_plain(image) else scan.geometry)
        values = _reoriented(values, order, flips)
        mask = (values != 0).any(0).cpu().numpy()
        box: tuple[slice, ...] = bounding_box(mask) or tuple(slice(0, size) for size in mask.shape)
        crop = (slice(None), *box)
        shape = resampled_shape(tuple(side.stop - side.start for side in box), spacing, self._plan.spacing_mm)
        geometry = CaseGeometry(
            file_name=scan.file_name,
            affine=tuple(tuple(float(entry) for entry in row) for row in affine),
            shape=tuple(scan.values.shape[1:]),
            axis_codes=codes,
            order=order,
            flips=flips,
            crop=tuple((side.start, side.stop) for side in box),
            resampled_shape=shape,
        )
        values = normalize(values[crop], self._plan.normalization, mask=self._body(mask[box], values.device))
        coarse = self._thick_slices(geometry.cropped_shape, spacing, shape)
        ids = None
        if label is not None:
            ids = _reoriented(without_metadata(label), order, flips)[crop]
            ids = resample_label(ids, shape, coarse_axis=coarse).contiguous()
        return PreprocessedCase(
            image=resample_image(values, shape, coarse_axis=coarse).contiguous(), label=ids, geometry=geometry
        )

    @property
    def paints(self) -> tuple[int, ...]:
        """The id that each of the plan's regions writes, in painting order; empty where labels exclude each other."""
        return tuple(region.paints for region in self._plan.regions)

    def shape_on_grid(self, geometry: Geometry) -> Shape:
        """Return the shape that a case on this grid gets if nothing is cropped."""
        order, _, _, _, spacing = self._axes(geometry)
        return resampled_shape([geometry.spatial_shape[axis] for axis in order], spacing, self._plan.spacing_mm)

    def restore(self, scores: Tensor, geometry: CaseGeometry, *, probabilities: bool = False) -> Tensor:
        """Bring scores back to the grid of the file. Whatever lies outside of the crop is background.

        Args:
            scores: ``(C, *resampled)`` logits, or probabilities, with one channel for each of the plan's classes.
            geometry: The case's geometry.
            probabilities: Whether ``scores`` are probabilities, which decides how background is written.

        Returns:
            ``(C, *shape)`` float32 in the file's axes.

        Raises:
            BadInputError: If the shape is not that of the preprocessed case.
        """
        self._check_scores(scores, geometry)
        restored = torch.full(
            (len(scores), *geometry.reoriented_shape), 0.0 if probabilities else _CERTAINLY_NOT, device=scores.device
        )
        if self._is_exclusive(scores):
            restored[0] = 1.0 if probabilities else 0.0
        for target, channel in zip(restored, scores, strict=True):
            target[_box(geometry)] = resample_scores(channel[None].float(), geometry.cropped_shape)[0]
        return _unreoriented(restored, geometry)

    def restore_labels(self, scores: Tensor, geometry: CaseGeometry, *, probabilities: bool = False) -> Tensor:
        """Turn scores into label ids on the grid of the file, one class at a time so that memory stays bounded.

        Args:
            scores: As for ``restore``.
            geometry: The case's geometry.
            probabilities: Whether ``scores`` are probabilities; decides the threshold of sigmoid channels.

        Returns:
            ``(1, *shape)`` ids in the file's axes, uint8 or int16: the best class, 1 where a single sigmoid exceeds
            0.5, or the plan's regions painted in their order.

        Raises:
            BadInputError: If the shape is not that of the preprocessed case.
        """
        self._check_scores(scores, geometry)
        painter = self.label_painter(geometry, probabilities=probabilities, device=scores.device)
        painter.add(tuple(slice(0, extent) for extent in scores.shape[1:]), scores.float())
        return self.painted_labels(painter, geometry)

    def label_painter(
        self,
        geometry: CaseGeometry,
        *,
        axis: int = 0,
        probabilities: bool = False,
        with_probabilities: bool = False,
        device: torch.device | str = "cpu",
    ) -> LabelPainter:
        """Return what turns a case's scores into ids part by part; `painted_labels` ends it.

        Args:
            geometry: The case's geometry.
            axis: The axis of the preprocessed case along which the scores come.
            probabilities: Whether the scores are probabilities.
            with_probabilities: Whether to keep every class's probability, too; `painted_probabilities` returns them.
            device: Where the scores are.
        """
        return LabelPainter(
            geometry.resampled_shape,
            geometry.cropped_shape,
            axis=axis,
            paints=self.paints,
            are_probabilities=probabilities,
            with_probabilities=with_probabilities,
            device=device,
        )

    def painted_labels(self, painter: LabelPainter, geometry: CaseGeometry) -> Tensor:
        """Return what a painter painted, ``(1, *shape)`` in the file's axes; what was cropped away is background."""
        cropped = painter.labels()
        whole = cropped.new_zeros((1, *geometry.reoriented_shape))
        whole[0][_box(geometry)] = cropped
        return _unreoriented(whole, geometry)

    def painted_probabilities(self, painter: LabelPainter, geometry: CaseGeometry) -> Tensor:
        """Return a painter's probabilities, ``(K, *shape)`` float32 in the file's axes.

        The ids of `painted_labels` are those of the greatest. What was cropped away is background for certain.
        """
        cropped = painter.probabilities()
        if geometry.cropped_shape == geometry.reoriented_shape:
            return _unreoriented(cropped, geometry)
        whole = cropped.new_zeros((len(cropped), *geometry.reoriented_shape))
        if self._is_exclusive(cropped):
            whole[0] = 1.0
        whole[(slice(None), *_box(geometry))] = cropped
        return _unreoriented(whole, geometry)

    def _checked(self, scan: Scan, label: Tensor | None) -> Tensor:
        """Return the intensities, once all is as the plan expects it."""
        where, image, plan = scan.file_name or "the image", scan.values, self._plan
        if image.ndim != plan.num_dims + 1 or len(image) != len(plan.channel_names):
            raise BadInputError(
                f"{where}: found shape {tuple(image.shape)}, expected {len(plan.channel_names)} channels "
                f"({', '.join(plan.channel_names)}) and {plan.num_dims} spatial axes"
            )
        if label is not None and label.shape[1:] != image.shape[1:]:
            raise BadInputError(
                f"{where}: the label has shape {tuple(label.shape[1:])}, the image {tuple(image.shape[1:])}"
            )
        values = image.float()
        if not bool(torch.isfinite(values).all()):
            count = int((~torch.isfinite(values)).sum())
            raise BadInputError(f"{where}: {count} intensities are NaN or infinite; replace them, for example by 0")
        return values

    def _axes(
        self, geometry: Geometry | None
    ) -> tuple[tuple[int, ...], tuple[int, ...], Orientation | None, NDArray[np.float64], tuple[float, ...]]:
        """Return order and flips, the file's axis codes and affine, and the spacing after reorientation.

        None stands for the plan's own grid.
        """
        plan = self._plan
        order: tuple[int, ...] = tuple(range(plan.num_dims))
        if geometry is None:
            return order, (), plan.orientation, np.eye(4), plan.spacing_mm or (1.0,) * plan.num_dims
        flips: tuple[int, ...] = ()
        codes = None if geometry.is_picture or plan.num_dims < 3 else axis_codes(geometry.affine)
        if codes is not None and plan.orientation is not None:
            order, flips = axis_order(codes, plan.orientation)
        return order, flips, codes, geometry.affine, tuple(geometry.spacing_mm[axis] for axis in order)

    def _body(self, mask: NDArray[np.bool_], device: torch.device) -> Tensor | None:
        """Return the non-zero voxels with their holes filled, where a channel is normalised over these alone."""
        if not any(channel.nonzero_only for channel in self._plan.normalization):
            return None
        return torch.from_numpy(np.asarray(scipy.ndimage.binary_fill_holes(mask))).to(device)

    def _thick_slices(self, shape: Shape, spacing_mm: tuple[float, ...], new_shape: Shape) -> int | None:
        """Return the axis of thick slices: the case's own, else the one that the plan's spacing makes."""
        if self._plan.spacing_mm is None or shape == new_shape:
            return None
        even = (1,) * len(shape)
        own = coarse_axis(spacing_mm, even)
        return own if own is not None else coarse_axis(self._plan.spacing_mm, even)

    def _is_exclusive(self, scores: Tensor) -> bool:
        return len(scores) > 1 and not self._plan.regions

    def _check_scores(self, scores: Tensor, geometry: CaseGeometry) -> None:
        expected = (self._plan.num_classes, *geometry.resampled_shape)
        if tuple(scores.shape) != expected:
            raise BadInputError(f"found scores of shape {tuple(scores.shape)}, expected {expected} for this case")


def _is_plain(image: Scan | Tensor) -> bool:
    return isinstance(image, Tensor) and not hasattr(image, "affine")


def _reoriented(tensor: Tensor, order: tuple[int, ...], flips: tuple[int, ...]) -> Tensor:
    if order != tuple(range(len(order))):
        tensor = tensor.permute(0, *(axis + 1 for axis in order))
    return tensor.flip([axis + 1 for axis in flips]) if flips else tensor


def _unreoriented(tensor: Tensor, geometry: CaseGeometry) -> Tensor:
    inverse = [geometry.order.index(axis) for axis in range(len(geometry.order))]
    if geometry.flips:
        tensor = tensor.flip([axis + 1 for axis in geometry.flips])
    return tensor.permute(0, *(axis + 1 for axis in inverse)).contiguous()


def _box(geometry: CaseGeometry) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in geometry.crop)
