"""Preprocess cases to the grid and intensity scale of a plan, and bring results back to the case's own grid.

Both directions are the pipelines described by the plan (``candy_monai.data.pipelines``); the applied operations are
traced in the image, as in MONAI's invertible transforms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Cropd, Flipd, Invertd, MapTransform, Orientationd, Padd, Rotate90d, Spacingd, Transposed
from nibabel.orientations import axcodes2ornt
from torch import Tensor

from candy_monai.aliases import Shape
from candy_monai.data.images.geometry import Geometry
from candy_monai.data.images.reading import Scan, read_channels
from candy_monai.data.inspection.inspect import axis_codes
from candy_monai.data.pipelines.building import MISFITS, Pipeline, build_pipeline, keeps_track
from candy_monai.data.pipelines.description import (
    IMAGE,
    LABEL,
    PREDICTION,
    PREVIOUS,
    Entry,
    OwnTransforms,
    describe_pipelines,
    preprocessing,
)
from candy_monai.data.planning.grid import axis_order
from candy_monai.data.planning.plan import Plan
from candy_monai.data.values import plain_tensor
from candy_monai.errors import BadInputError, CandyError
from candy_monai.label_ids import highest_id, holds_whole_numbers
from candy_monai.transforms import CropForegroundIfAnyd, KeepLargestComponentd, ResampleToSpacingd
from candy_monai.transforms.painting import LabelPainter, id_type, label_ids, probabilities_of
from candy_monai.transforms.resampling import resampled_from, resampled_shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_TIMES_VOXELS, _MANY_VOXELS = 1000, 1 << 27
"""A case is refused if resampling would multiply its voxels by more, and make more of them."""
_CERTAINLY_NOT = -1e4
"""A logit whose probability is 0, and which fits into half precision."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreprocessedCase:
    """A case on the plan's grid.

    Attributes:
        image: ``(C, *spatial)`` float32, normalised, with its affine and the trace of the applied operations. In a
            cascade its last channel holds the label ids that the first stage predicted.
        label: ``(1, *spatial)`` label ids; ``None`` if none was given.
    """

    image: MetaTensor
    label: Tensor | None

    @property
    def is_resampled(self) -> bool:
        """Whether resampling changed the shape."""
        return resampled_from(self.image)[0] != tuple(self.image.shape[1:])


class LoadCased(MapTransform):
    """Load the files of a case, channel first, as `load_image` does; tensors are left unchanged.

    Args:
        keys: The keys of the files: a path, or a list of paths, one per channel. ``label`` is for label ids.
        allow_missing_keys: Whether a key may be missing.
        stock: Further arguments of MONAI's ``LoadImaged``, which our readers ignore.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False, **stock: object) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the items with tensors ``(C, *spatial)`` instead of the files of the keys.

        Raises:
            ImageReadError: If a file cannot be decoded, or the grids of the channels cover different regions.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            if not isinstance(d[key], torch.Tensor):
                paths = [d[key]] if isinstance(d[key], str | Path) else d[key]
                d[key] = read_channels(paths, is_label=key != IMAGE).tensor()
        return d


class Preprocessor:
    """Preprocesses cases according to a plan, and inverts it for results.

    Args:
        plan: The plan.
        own: Transforms that extend or replace the plan's pipelines.

    Attributes:
        pipelines: The descriptions of the pipelines.
    """

    _logits_rounded_to: torch.dtype | None = None
    _has_previous = False

    def __init__(self, plan: Plan, *, own: OwnTransforms | None = None) -> None:
        self._plan, self._has_previous = plan, plan.num_previous > 0
        self._trust = own is not None and own.trust
        self.pipelines = describe_pipelines(plan, own=own)

    @cached_property
    def preprocessing(self) -> Pipeline:
        """The pipeline from files, or from tensors with their affine, to the input of a network."""
        ours: dict[str, Callable[..., object]] = {
            "LoadImaged": LoadCased,
            "CropForegroundd": CropForegroundIfAnyd,
            "Spacingd": self._spacing,
        }
        return build_pipeline(self.pipelines["preprocessing"], name="preprocessing", instead=ours, trust=self._trust)

    @cached_property
    def augmentation(self) -> Pipeline:
        """The pipeline that cuts a training patch from a preprocessed case, at its ``center``, and augments it."""
        return build_pipeline(self.pipelines["augmentation"], name="augmentation", trust=self._trust)

    @cached_property
    def postprocessing(self) -> Pipeline:
        """The pipeline from logits at ``pred``, with the preprocessed image, to label ids on the grid of the file."""
        return build_postprocessing(
            self.pipelines["postprocessing"], preprocessing=self.preprocessing.transforms, trust=self._trust
        )

    @property
    def own_postprocessing(self) -> list[Entry] | None:
        """The steps after the plan's postprocessing, on the label map; None if the list is an entirely new one."""
        planned, steps = describe_pipelines(self._plan)["postprocessing"], self.pipelines["postprocessing"]
        return steps[len(planned) :] if steps[: len(planned)] == planned else None

    def _spacing(self, keys: Sequence[str], pixdim: Sequence[float], **stock: Any) -> MapTransform:
        """Build MONAI's ``Spacingd``, or ours if the plan names it for cases without resampling."""
        asked = {"keys": list(keys), "pixdim": list(pixdim), **stock}
        planned = [] if self._plan.resampling == "stock" else preprocessing(self._plan)
        if any(asked == {key: step[key] for key in step if key != "_target_"} for step in planned):
            modes = ["cubic", *["majority"] * (len(keys) - 1)]
            return ResampleToSpacingd(keys, pixdim, mode=modes, allow_missing_keys=True)
        spacing = Spacingd(keys, pixdim, **stock)
        if all(spacing.scale_extent):
            # MONAI warns at each call with an argument for the extent; its inner transform can have it as an attribute.
            spacing.spacing_transform.scale_extent = True
            spacing.scale_extent = (None,) * len(spacing.keys)
        return spacing

    def apply(
        self, image: Scan | Tensor, label: Tensor | None = None, *, previous: Tensor | None = None
    ) -> PreprocessedCase:
        """Preprocess a case.

        Args:
            image: ``(C, *spatial)`` as loaded or as read, with its affine. A plain tensor is assumed to be on the
                plan's grid.
            label: ``(1, *spatial)`` integer ids on the same grid.
            previous: For the second stage of a cascade, the label map that the first stage predicted, as ``label``.

        Raises:
            BadInputError: If channels or axes do not match the plan, the label's shape differs, or intensities are NaN
                or infinite.
        """
        scan = image if isinstance(image, Scan) else Scan.of(image)
        values = self._checked(scan, label)
        if (previous is not None) != self._has_previous:
            raise BadInputError(
                f"{scan.file_name or 'the image'}: the second stage of a cascade, and no other plan, needs the label "
                "map that the first stage predicted"
            )
        affine = torch.from_numpy(self._affine(None if _is_plain(image) else scan.geometry))
        is_resampling = any(isinstance(step, ResampleToSpacingd | Spacingd) for step in self.preprocessing.transforms)
        if is_resampling and not _is_plain(image):
            self._refuse_far_too_large(scan)
        # A copy, since MONAI's NormalizeIntensity modifies its input.
        data = {IMAGE: MetaTensor(values.clone(), affine=affine, meta={"filename_or_obj": scan.file_name})}
        if label is not None:
            data[LABEL] = MetaTensor(plain_tensor(label), affine=affine)
        if previous is not None:
            data[PREVIOUS] = MetaTensor(plain_tensor(previous), affine=affine)
        done = self._preprocessed(data)
        ids = done[LABEL].as_tensor().contiguous() if label is not None else None
        return PreprocessedCase(image=done[IMAGE].contiguous(), label=ids)

    def _preprocessed(self, data: dict[str, MetaTensor]) -> dict[str, MetaTensor]:
        """Run the pipeline, and refuse results of a user's own step that cannot be used for training or inverted."""
        num_channels, where = len(data[IMAGE]), data[IMAGE].meta["filename_or_obj"] or "the image"
        num_channels += PREVIOUS in data
        given = set(data)
        for index, step in enumerate(self.preprocessing.transforms):
            before, name = data, f"preprocessing[{index}]: {type(step).__name__}"
            try:
                data = step(before)
            except CandyError:
                raise
            except MISFITS as error:
                reason = " ".join(str(error).split())
                if "allocate memory" in reason:  # PyTorch's message
                    raise BadInputError(_too_large(where, name, before[IMAGE])) from error
                raise BadInputError(f"{where}: {name} cannot be applied ({type(error).__name__}: {reason})") from error
            if not isinstance(data, dict) or not given <= data.keys():  # other entries may come and go
                raise BadInputError(f"{where}: {name} must keep the image, and the label if there is one")
            if not keeps_track(step) and any(_grid(data[key]) != _grid(before[key]) for key in given):
                raise BadInputError(f"{where}: {name} changed the grid in a way that cannot be inverted")
        image, label = data[IMAGE], data.get(LABEL)
        made = f"{where}: preprocessing returned"
        if len(image) != num_channels:
            raise BadInputError(f"{made} {len(image)} channels, expected {num_channels} as in the files")
        if label is not None and label.shape[1:] != image.shape[1:]:
            raise BadInputError(
                f"{made} a label of shape {tuple(label.shape[1:])} for an image of shape {tuple(image.shape[1:])}: "
                "apply spatial transforms to both"
            )
        if not bool(torch.isfinite(image).all()):
            raise BadInputError(f"{made} intensities that are NaN or infinite")
        if label is not None and not holds_whole_numbers(label):
            raise BadInputError(
                f"{made} label values that are not whole numbers: interpolate labels with nearest neighbour"
            )
        return data

    @property
    def paints(self) -> tuple[int, ...]:
        """The id for each of the plan's regions, in painting order; empty if labels are mutually exclusive."""
        return tuple(region.paints for region in self._plan.regions)

    @property
    def paints_in_parts(self) -> bool:
        """Whether label ids can be painted before inverting anything but resampling, so that scores can come in parts.

        Not if inverting a user's own step requires interpolated scores, or if the user's own steps compute the ids.
        """
        return self._plan.resampling != "stock" and self.own_postprocessing is not None and self._is_undone_exactly

    @cached_property
    def _is_undone_exactly(self) -> bool:
        """Whether all steps except a last resampling of ours move voxels only to voxels."""
        moving = [step for step in self.preprocessing.transforms if keeps_track(step)]
        if moving and isinstance(moving[-1], ResampleToSpacingd):
            moving.pop()
        return all(isinstance(step, Cropd | Flipd | Orientationd | Padd | Rotate90d | Transposed) for step in moving)

    def shape_on_grid(self, geometry: Geometry) -> Shape:
        """Return the shape of a case on this grid after preprocessing without cropping."""
        order = tuple(range(len(geometry.spatial_shape)))
        if self._plan.orientation is not None and not geometry.is_picture:
            order, _ = axis_order(axis_codes(geometry.affine), self._plan.orientation)
        shape = tuple(geometry.spatial_shape[axis] for axis in order)
        if self._plan.pixdim is None:
            return shape
        return resampled_shape(shape, [geometry.spacing_mm[axis] for axis in order], self._plan.pixdim)

    def restore_labels(self, scores: Tensor, case: PreprocessedCase, *, probabilities: bool = False) -> Tensor:
        """Convert scores to label ids on the grid of the file, as `postprocessing` does, in bounded memory.

        Args:
            scores: ``(C, *resampled)`` logits, or probabilities, with one channel for each of the plan's classes.
            case: The preprocessed case.
            probabilities: Whether ``scores`` are probabilities.

        Returns:
            ``(1, *shape)`` ids in the file's axes, of the type chosen by `id_type`: the best class, 1 where a single
            sigmoid exceeds 0.5, or the plan's regions painted in order.

        Raises:
            BadInputError: If the shape is not that of the preprocessed case.
        """
        expected = (self._plan.num_classes, *case.image.shape[1:])
        if tuple(scores.shape) != expected:
            raise BadInputError(f"found scores of shape {tuple(scores.shape)}, expected {expected} for this case")
        if not self.paints_in_parts:
            return self.restore_whole(scores, case, are_probabilities=probabilities)[0]
        painter = self.label_painter(case, probabilities=probabilities, device=scores.device)
        painter.add(tuple(slice(0, extent) for extent in scores.shape[1:]), scores.float())
        return self.painted_labels(painter, case)

    def restore_whole(
        self, scores: Tensor, case: PreprocessedCase, *, are_probabilities: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Resample all scores to the grid of the file, for any preprocessing, and return ids and probabilities.

        Args:
            scores: ``(C, *resampled)`` logits, or probabilities, with one channel for each of the plan's classes.
            case: The preprocessed case.
            are_probabilities: Whether ``scores`` are probabilities.

        Returns:
            Ids ``(1, *shape)`` as from `restore_labels`, and probabilities ``(C, *shape)`` float32.
        """
        inside = torch.ones_like(scores[:1], dtype=torch.float32)
        restored = self._undone(torch.cat([scores.float(), inside]), case, nearest=False)
        restored, outside = restored[:-1], restored[-1] < 0.5  # cropped regions are restored as 0
        restored[:, outside] = 0.0 if are_probabilities else _CERTAINLY_NOT
        if self._is_exclusive(restored):
            restored[0, outside] = 1.0 if are_probabilities else 0.0
        if self.own_postprocessing is None:
            if are_probabilities:
                raise BadInputError("custom postprocessing needs logits, not probabilities")
            data = {PREDICTION: MetaTensor(scores.float().cpu()), IMAGE: case.image}
            made = label_map_by(self.postprocessing, data, tuple(restored.shape[1:]))
            highest = highest_id(made, what="the label map returned by postprocessing")
            ids = made.to(id_type(len(scores), (*self.paints, highest)))
            return ids, probabilities_of(restored, paints=self.paints)
        ids = label_ids(restored, paints=self.paints, threshold=0.5 if are_probabilities else 0.0)
        return ids[None], probabilities_of(restored, ids, paints=self.paints, are_probabilities=are_probabilities)

    def label_painter(
        self,
        case: PreprocessedCase,
        *,
        axis: int = 0,
        probabilities: bool = False,
        with_probabilities: bool = False,
        device: torch.device | str = "cpu",
    ) -> LabelPainter:
        """Return an object that converts a case's scores to ids in parts, for `painted_labels`.

        Args:
            case: The preprocessed case.
            axis: The axis of the preprocessed case along which the scores are divided.
            probabilities: Whether the scores are probabilities.
            with_probabilities: Whether to keep all probabilities, too; `painted_probabilities` returns them.
            device: The device of the scores.
        """
        target, nearest_axis = resampled_from(case.image)
        return LabelPainter(
            tuple(case.image.shape[1:]),
            target,
            axis=axis,
            nearest_axis=nearest_axis,
            paints=self.paints,
            are_probabilities=probabilities,
            with_probabilities=with_probabilities,
            rounded_to=None if probabilities else self._logits_rounded_to,
            device=device,
        )

    def painted_labels(self, painter: LabelPainter, case: PreprocessedCase) -> Tensor:
        """Return a painter's label map, ``(1, *shape)`` in the file's axes; cropped regions are background."""
        return self._undone(painter.labels()[None], case, nearest=True)

    def _undone(self, values: Tensor, case: PreprocessedCase, *, nearest: bool) -> Tensor:
        invert = Invertd(PREDICTION, self.preprocessing, IMAGE, nearest_interp=nearest)
        undone: Tensor = invert({PREDICTION: MetaTensor(values), IMAGE: case.image})[PREDICTION].as_tensor()
        return undone.contiguous()

    def painted_probabilities(self, painter: LabelPainter, case: PreprocessedCase) -> Tensor:
        """Return a painter's probabilities, ``(K, *shape)`` float32 in the file's axes.

        The ids of `painted_labels` are those of the maximum. Cropped regions are background with probability one.
        """
        values = painter.probabilities()
        restored = self._undone(values, case, nearest=True)
        if self._is_exclusive(values) and values[0].numel() < restored[0].numel():
            inside = self._undone(torch.ones_like(values[:1], dtype=torch.uint8), case, nearest=True)
            restored[0].masked_fill_(inside[0] == 0, 1.0)
        return restored

    def _is_exclusive(self, scores: Tensor) -> bool:
        return len(scores) > 1 and not self._plan.regions

    def _checked(self, scan: Scan, label: Tensor | None) -> Tensor:
        """Return the intensities, after checking that image and label match the plan."""
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
        return finite(image.float(), where)

    def _refuse_far_too_large(self, scan: Scan) -> None:
        """Refuse a case of so coarse a spacing that resampling would fill the memory, since its header is wrong."""
        shape = scan.geometry.spatial_shape
        before, after = math.prod(shape), math.prod(self.shape_on_grid(scan.geometry))
        if after > max(_MOST_TIMES_VOXELS * before, _MANY_VOXELS):
            size = " x ".join(f"{length:.4g}" for length in scan.geometry.spacing_mm)
            plans = " x ".join(f"{length:.4g}" for length in self._plan.pixdim or ())
            raise BadInputError(
                f"{scan.file_name or 'the image'}: found {' x '.join(map(str, shape))} voxels of {size} mm, which "
                f"would become {after / before:.3g} times as many of the plan's {plans} mm; check the spacing and its "
                "unit in the header"
            )

    def _affine(self, geometry: Geometry | None) -> NDArray[np.float64]:
        """Return the affine for preprocessing; None, for a plain tensor, means the plan's own grid."""
        plan = self._plan
        if geometry is not None and not (geometry.is_picture and plan.orientation is not None):
            if plan.orientation is not None:
                axis_codes(geometry.affine)  # raises an error if an axis has no direction
            return geometry.affine.copy()
        spacing = plan.spacing_mm if geometry is None else geometry.spacing_mm
        affine = np.diag([*(spacing or (1.0,) * plan.num_dims), *(1.0,) * (4 - plan.num_dims)])
        if plan.orientation is not None:
            # Each axis is parallel to the axis of space given by its code: this column goes to that row.
            rows, signs = axcodes2ornt(plan.orientation).T
            lengths = np.diag(affine)[:3].copy()
            affine[:3, :3] = 0.0
            affine[rows.astype(int), range(3)] = lengths * signs
        return affine


def build_postprocessing(
    entries: Sequence[Entry], *, preprocessing: Sequence[Callable[[Any], Any]] = (), trust: bool = False
) -> Pipeline:
    """Build postprocessing, or the steps that follow it.

    Raises:
        SettingsError: With the position of the entry that cannot be built.
    """
    return build_pipeline(
        entries,
        name="postprocessing",
        transforms={"preprocessing": preprocessing},
        instead={"KeepLargestConnectedComponentd": KeepLargestComponentd},
        trust=trust,
    )


def label_map_by(postprocessing: Pipeline, data: Mapping[str, Tensor], shape: Shape) -> Tensor:
    """Return the label map from postprocessing, ``(1, *shape)``.

    Raises:
        BadInputError: If a step cannot be applied, or the result is not a map of label ids of that shape.
    """
    with postprocessing.applied_to("the prediction"):
        made = postprocessing(data)[PREDICTION]
    if tuple(made.shape) != (1, *shape) or not holds_whole_numbers(made):
        raise BadInputError(
            f"postprocessing returned values of shape {tuple(made.shape)}, expected label ids, whole numbers of shape "
            f"{(1, *shape)}"
        )
    return plain_tensor(made)


def _too_large(where: str, name: str, image: MetaTensor) -> BadInputError:
    voxels = " x ".join(map(str, image.shape[1:]))
    size = " x ".join(f"{length:.4g}" for length in image.pixdim.tolist())
    return BadInputError(
        f"{where}: {name}: there is not enough memory for {voxels} voxels of {size} mm; check the spacing and its unit "
        "in the header"
    )


def finite(values: Tensor, where: str) -> Tensor:
    """Return intensities unchanged if all are finite.

    Raises:
        BadInputError: If some are NaN or infinite.
    """
    if not bool(torch.isfinite(values).all()):
        count = int((~torch.isfinite(values)).sum())
        raise BadInputError(f"{where}: {count} intensities are NaN or infinite; replace them, for example by 0")
    return values


def _grid(values: Tensor) -> tuple[object, ...]:
    affine = getattr(values, "affine", None)
    return tuple(values.shape[1:]), None if affine is None else affine.tolist()


def _is_plain(image: Scan | Tensor) -> bool:
    return isinstance(image, Tensor) and not hasattr(image, "affine")
