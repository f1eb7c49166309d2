"""The rules that derive a plan from a dataset's fingerprint.

The plan is a pure function of fingerprint, memory and overrides. The rules follow nnU-Net (Isensee et al., Nature
Methods 18, 2021), with a lighter network where memory is short.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from candy_monai.aliases import Shape
from candy_monai.data.planning.entries import Overrides, as_text
from candy_monai.data.planning.experience import expected
from candy_monai.data.planning.grid import (
    default_slice_axis,
    majority_orientation,
    median_of_shapes,
    pixdim,
    planned_shape,
    target_spacing,
)
from candy_monai.data.planning.normalization import ChannelNormalization, channel_normalization, scheme_of
from candy_monai.data.planning.plan import Plan, Region, check_axes, parsed_overrides
from candy_monai.data.planning.sizing import LIGHT_BELOW_BYTES, fit_network, fit_slice_network, supervises_deeply
from candy_monai.data.values import ids_of_label
from candy_monai.errors import SettingsError
from candy_monai.transforms.resampling import resampled_shape

if TYPE_CHECKING:
    from candy_monai.data.inspection.fingerprint import Fingerprint

Configuration = Literal["auto", "2d", "3d", "3d_lowres", "3d_cascade"]
"""Volumes are trained on as slices by a 2-D network, or by a 3-D network, at a lower resolution, or with the prediction
of one at a lower resolution as further input."""

DEFAULT_MEMORY_BYTES = 1 << 30
"""The default memory of a plan: small enough for a network that a CPU trains in minutes."""

_MUCH_BLANKED = 0.75

_COVERED_WHEN_LOW = 0.25
"""The share of the median case that a patch of the configuration 3d_lowres covers."""
_COARSER = 1.03
_FEWER_VOXELS = 2
"""The configuration 3d_lowres is refused if the median case has less than this many times its voxels."""


def plan(
    fingerprint: Fingerprint,
    *,
    memory_bytes: int | None = None,
    overrides: Mapping[str, object] | None = None,
    configuration: Configuration = "auto",
    cpu_s: float | None = None,
) -> Plan:
    """Derive a plan from a dataset's fingerprint, a memory size and the user's overrides.

    The patch starts at the cases' median shape and is reduced, proportionally, until a step of two patches fits into
    the memory according to ``topology.training_bytes``. Each axis is rounded up to a multiple of the network's divisor,
    and the batch grows while memory allows, to at most a twentieth of the dataset's voxels. Under 4 GiB, for a CPU or a
    small GPU, the network starts at 16 filters instead of 32, a step has about 400 000 voxels, slices of volumes have
    160 x 160, and the schedule is short.

    Args:
        fingerprint: The result of ``inspect``.
        memory_bytes: Memory for a training step. ``None`` assumes 1 GiB, regardless of the machine.
        overrides: Entries of the plan by name, as values or as text: ``{"patch_shape": "40,56,40"}``. Entries that
            depend on an override are adapted: eight filters on three levels make a network of three levels.
        configuration: ``2d`` trains a 2-D network on the slices of volumes, ``3d`` a 3-D network; ``auto`` chooses
            slices if the memory is that of a CPU or a small GPU and slices gave better scores for similar datasets: see
            ``candy_monai.data.planning.experience``. ``3d_lowres`` trains a 3-D network at a coarser spacing, at which
            a patch covers a quarter of the median case; ``3d_cascade`` is ``3d`` with the label map of such a network
            as further input.
        cpu_s: CPU-seconds for training, for the choice between slices and volumes; None if not limited.

    Raises:
        SettingsError: If an override is unknown, of the wrong type, or contradicts another, or ``3d_lowres`` is for
            cases that are not much larger than a patch.
    """
    if configuration == "3d_lowres":
        full = plan(fingerprint, memory_bytes=memory_bytes, overrides=overrides, configuration="3d")
        return _at_lower_resolution(full, fingerprint, memory_bytes=memory_bytes, overrides=overrides or {})
    fixed = parsed_overrides(overrides or {})
    check_axes(fingerprint.num_dims, fixed)
    memory = DEFAULT_MEMORY_BYTES if memory_bytes is None else memory_bytes
    light = memory < LIGHT_BELOW_BYTES
    orientation = fixed.get("orientation", majority_orientation(fingerprint))
    spacing = fixed.get("spacing_mm", target_spacing(fingerprint, orientation))
    slice_axis = _slice_axis(
        spacing,
        fixed,
        configuration,
        shapes=[planned_shape(case, orientation, spacing) for case in fingerprint.cases],
        light=light,
        cpu_s=cpu_s,
    )
    shapes = [planned_shape(case, orientation, pixdim(spacing, slice_axis)) for case in fingerprint.cases]
    as_stored = [planned_shape(case, orientation, None) for case in fingerprint.cases]
    is_resampled = any(shape != other for shape, other in zip(shapes, as_stored, strict=True))
    class_names, num_classes, regions = _classes(fingerprint, fixed)
    num_previous = _highest_predicted(fingerprint, regions) if configuration == "3d_cascade" else 0
    fit = fit_network if slice_axis is None else partial(fit_slice_network, slice_axis)
    network = fit(
        shapes,
        spacing or (1.0,) * fingerprint.num_dims,
        num_inputs=len(fingerprint.channels) + num_previous,
        num_outputs=num_classes,
        memory_bytes=memory,
        overrides=fixed,
    )
    made = Plan(
        dataset_name=fingerprint.dataset_name,
        num_dims=fingerprint.num_dims,
        orientation=orientation,
        spacing_mm=spacing,
        slice_axis=slice_axis,
        num_previous=num_previous,
        median_shape=median_of_shapes(shapes),
        channel_names=fingerprint.channel_names,
        normalization=_normalization(fingerprint, fixed.get("normalization")),
        class_names=class_names,
        num_classes=num_classes,
        ignore_label=fingerprint.ignore_label,
        regions=regions,
        patch_shape=network.patch_shape,
        batch_size=network.batch_size,
        filters=network.filters,
        kernel_sizes=network.topology.kernel_sizes,
        strides=network.topology.strides,
        deep_supervision=supervises_deeply(network.filters),
        mirror_axes=tuple(axis for axis, size in enumerate(network.patch_shape) if size > 1),
        iterations_per_epoch=50 if light else 250,
        num_epochs=100 if light else 200,
        resampling="extent" if is_resampled else "none",
    )
    taken = {name: value for name, value in fixed.items() if name != "normalization"}
    chosen = {*fixed, *(() if configuration == "auto" or spacing is None else ("slice_axis",))}
    return replace(made, **taken, chosen=tuple(sorted(chosen)))


def _at_lower_resolution(
    full: Plan, fingerprint: Fingerprint, *, memory_bytes: int | None, overrides: Mapping[str, object]
) -> Plan:
    """Return the plan for the finest spacing, in steps of 3 %, at which a patch covers a quarter of the median case.

    The rule is that of nnU-Net: axes whose spacing is below half of the longest become coarser first.

    Raises:
        SettingsError: If this would leave more than half of the voxels, so that it is not worthwhile.
    """
    if "spacing_mm" in overrides:
        raise SettingsError("the configuration 3d_lowres determines spacing_mm: leave one of them out")
    assert full.spacing_mm is not None  # otherwise the plan of the configuration 3d was refused
    spacing, fixed = full.spacing_mm, parsed_overrides(overrides)
    median, patch = full.median_shape, full.patch_shape
    while math.prod(patch) < _COVERED_WHEN_LOW * math.prod(median):
        is_fine = [length < max(spacing) / 2 for length in spacing]
        coarser = [fine or not any(is_fine) for fine in is_fine]
        spacing = tuple(length * (_COARSER if grows else 1) for length, grows in zip(spacing, coarser, strict=True))
        median = resampled_shape(full.median_shape, full.spacing_mm, spacing)
        patch = fit_network(
            [median],
            spacing,
            num_inputs=len(full.channel_names),
            num_outputs=full.num_classes,
            memory_bytes=DEFAULT_MEMORY_BYTES if memory_bytes is None else memory_bytes,
            overrides=fixed,
        ).patch_shape
    if math.prod(full.median_shape) < _FEWER_VOXELS * math.prod(median):
        covered = math.prod(full.patch_shape) / math.prod(full.median_shape)
        raise SettingsError(
            "the configuration 3d_lowres is for cases far larger than a patch, but a patch of "
            f"{as_text(full.patch_shape)} covers {100 * covered:.0f} % of the median case, "
            f"{as_text(full.median_shape)}: use the configuration 3d, or set a coarser spacing_mm yourself"
        )
    made = plan(
        fingerprint, memory_bytes=memory_bytes, overrides={**overrides, "spacing_mm": spacing}, configuration="3d"
    )
    chosen = tuple(name for name in made.chosen if name != "spacing_mm")
    return replace(made, full_spacing_mm=full.spacing_mm, chosen=chosen)


def _slice_axis(
    spacing_mm: tuple[float, ...] | None,
    fixed: Overrides,
    configuration: Configuration,
    *,
    shapes: Sequence[Shape],
    light: bool,
    cpu_s: float | None,
) -> int | None:
    """Return the axis across the slices for a 2-D network; ``None`` for other networks."""
    if configuration not in get_args(Configuration):
        raise SettingsError(f"configuration {configuration!r}: expected {', '.join(get_args(Configuration))}")
    is_whole = configuration in ("3d", "3d_cascade")
    if spacing_mm is None or len(spacing_mm) < 3:
        if is_whole or fixed.get("slice_axis") is not None:
            raise SettingsError("pictures have no third axis: leave out slice_axis, or give --configuration 2d")
        return None
    axis: int | None = fixed.get("slice_axis")
    if "slice_axis" in fixed and configuration != "auto" and (axis is None) != is_whole:
        raise SettingsError(f"slice_axis={as_text(axis)} contradicts the configuration {configuration}: leave one out")
    if axis not in (None, 0, 1, 2):
        raise SettingsError(f"slice_axis must be 0, 1, 2 or none, got {axis}")
    if "slice_axis" in fixed or is_whole:
        return axis
    single = [axis for axis in range(3) if all(shape[axis] == 1 for shape in shapes)]
    # All runs of the table are on CPUs: with more memory the network has the dimensions of the data, as nnU-Net's.
    in_slices = light and expected(spacing_mm, len(shapes), cpu_s=cpu_s).configuration == "2d"
    is_3d = bool({"patch_shape", "kernel_sizes", "strides"} & set(fixed))  # the user's values have three axes
    if configuration == "auto" and (is_3d or not (single or in_slices)):
        return None
    return single[-1] if single else default_slice_axis(spacing_mm)


def _classes(fingerprint: Fingerprint, fixed: Overrides) -> tuple[tuple[str, ...], int, tuple[Region, ...]]:
    """Return the meaning of the output channels, their number, and the regions."""
    names = [name for name, ids in fingerprint.labels.items() if ids != fingerprint.ignore_label]
    if fingerprint.region_order is None:
        ordered = tuple(sorted(names, key=lambda name: ids_of_label(fingerprint.labels[name])))
        num_classes = fixed.get("num_classes", len(ordered))
        if num_classes != len(ordered) and (num_classes, len(ordered)) != (1, 2):
            raise SettingsError(
                f"num_classes={num_classes} contradicts the dataset's {len(ordered)} labels ({', '.join(ordered)}); "
                "leave it out, or set 1 if there is one foreground label"
            )
        return ordered, num_classes, ()
    foreground = [name for name in names if ids_of_label(fingerprint.labels[name]) != (0,)]
    if fixed.get("num_classes", len(foreground)) != len(foreground):
        raise SettingsError(f"num_classes contradicts the dataset's {len(foreground)} regions; leave it out")
    regions = tuple(
        Region(name=name, ids=ids_of_label(fingerprint.labels[name]), paints=paints)
        for name, paints in zip(foreground, fingerprint.region_order, strict=True)
    )
    return tuple(foreground), len(regions), regions


def _highest_predicted(fingerprint: Fingerprint, regions: Sequence[Region]) -> int:
    """Return the highest id in a label map that is predicted for a dataset."""
    if regions:
        return max(region.paints for region in regions)
    return max(max(ids_of_label(ids)) for ids in fingerprint.labels.values() if ids != fingerprint.ignore_label)


def _normalization(fingerprint: Fingerprint, schemes: tuple[str, ...] | None) -> tuple[ChannelNormalization, ...]:
    names = schemes or tuple(scheme_of(name) for name in fingerprint.channel_names)
    if len(names) == 1:
        names *= len(fingerprint.channels)
    if len(names) != len(fingerprint.channels):
        raise SettingsError(f"normalization names {len(names)} schemes for {len(fingerprint.channels)} channels")
    kept = [math.prod(case.nonzero_shape) / math.prod(case.shape) for case in fingerprint.cases]
    blanked = float(np.median(kept)) < _MUCH_BLANKED
    return tuple(
        channel_normalization(
            name, channel.foreground or channel.whole if name == "ct" else channel.whole, nonzero_only=blanked
        )
        for name, channel in zip(names, fingerprint.channels, strict=True)
    )
