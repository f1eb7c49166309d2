"""Convert the plans of a trained nnU-Net to a `Plan`, which preprocesses and exports as nnU-Net does.

nnU-Net reads a volume with its axes reversed and may transpose them again for the network. Here axes are kept as in the
file, and patch, spacing, kernels and mirrored axes are reordered instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from candy_monai.data.datasets.nnunet_description import DatasetDescription, read_dataset_description
from candy_monai.data.pipelines.description import OwnTransforms, preprocessing
from candy_monai.data.planning.normalization import ChannelNormalization
from candy_monai.data.planning.plan import Plan, Region
from candy_monai.data.values import ids_of_label
from candy_monai.errors import DatasetError, ExperimentError, SettingsError
from candy_monai.incoming.nnunet.folder import DATASET, PLANS, NNUNetCheckpoint, NNUNetFolder, resolved_configuration
from candy_monai.incoming.nnunet.network import described_architecture, stages_of

_REVERSED = (2, 1, 0)
_READERS: dict[str, tuple[tuple[int, ...], tuple[str, ...] | None]] = {
    "SimpleITKIO": (_REVERSED, None),
    "NibabelIO": (_REVERSED, None),
    "SimpleITKIOWithReorient": (_REVERSED, ("R", "A", "S")),
    "NibabelIOWithReorient": (_REVERSED, ("R", "A", "S")),
    "Tiff3DIO": ((0, 1, 2), None),
    "NaturalImage2DIO": ((-1, 0, 1), None),
}
"""By the name of nnU-Net's reader: the axis of ours for each axis of its arrays, -1 for none; and the orientation."""

_SCHEMES = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "NoNormalization": "nonorm",
    "RescaleTo01Normalization": "rescale_to_0_1",
    "RGBTo01Normalization": "rgb_to_0_1",
}
_STATISTICS = {"lower": "percentile_00_5", "upper": "percentile_99_5", "mean": "mean", "std": "std"}
_RESAMPLING = "resample_data_or_seg_to_shape"
_RESAMPLING_ARGUMENTS = {
    "resampling_fn_data": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "resampling_fn_probabilities": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}
_LARGEST_PATCH = 1 << 14  # along an axis


@dataclass(frozen=True, kw_only=True)
class OpenedPlans:
    """One configuration of nnU-Net's plans."""

    plan: Plan
    own: OwnTransforms  # the differences of its preprocessing from that of the plan
    order: tuple[int, ...]  # for each axis of the network, as it is built here, the axis in the plans
    architecture: Mapping[str, Any]  # the plans' entry of this name
    where: Path  # the file, for messages


def open_plans(folder: NNUNetFolder, checkpoint: NNUNetCheckpoint) -> OpenedPlans:
    """Read ``plans.json`` and ``dataset.json`` for a checkpoint, which names the configuration and the mirrored axes.

    What is not reproduced here is refused: a cascade, or a resampling, reader, normalisation, preprocessor or label
    manager other than nnU-Net's own.
    """
    where, plans, dataset = folder.path / PLANS, folder.json(PLANS), _described_dataset(folder)
    name = checkpoint.configuration
    configuration = resolved_configuration(plans, name, where)
    if configuration.get("previous_stage") is not None:
        raise ExperimentError(
            f"{where}: {name} is the second stage of a cascade, which takes the label map of another model as input, "
            "and is not supported; expected a configuration such as 2d, 3d_lowres or 3d_fullres"
        )
    for key, known, source in (
        ("preprocessor_name", "DefaultPreprocessor", configuration),
        ("label_manager", "LabelManager", plans),
    ):
        if source.get(key, known) != known:
            raise ExperimentError(f"{where}: {key} is {source[key]!r}, expected {known}: others are not supported")
    _check_resampling(configuration, where)
    axes, orientation, is_picture = _axes(plans, where)
    patch = _numbers(configuration, "patch_size", where, count=(2, 3), whole=True)
    num_dims = len(patch)
    # For a 2-D network the first axis is that across the slices, and is not an axis of the network.
    slice_axis = axes[0] if num_dims == 2 and not is_picture else None
    own_axes = axes if num_dims == 3 else axes[1:]
    if is_picture and num_dims == 3:
        raise ExperimentError(f"{where}: {name} has a patch of three axes, {patch}, for pictures; expected two")
    order = tuple(sorted(range(num_dims), key=lambda axis: own_axes[axis]))
    architecture = described_architecture(configuration, num_dims, where)
    stages = stages_of(architecture, num_dims, where)

    def along_axes(sizes: Sequence[Any], across: Any = 1) -> tuple[Any, ...]:
        """Return sizes along the network's axes in the order of ours, with ``across`` across slices."""
        ordered = [sizes[axis] for axis in order]
        if slice_axis is not None:
            ordered.insert(slice_axis, across)
        return tuple(ordered)

    across_mm = _numbers(plans, "original_median_spacing_after_transp", where, count=(3,))[0] if num_dims == 2 else 1.0
    spacing = _numbers(configuration, "spacing", where, count=(num_dims,))
    normalization = _normalization(plans, configuration, dataset, where)
    regions = _regions(dataset)
    class_names = tuple(region.name for region in regions) or dataset.class_names
    median = configuration.get("median_image_size_in_voxels")
    if not (isinstance(median, list) and len(median) == num_dims and all(map(_is_positive, median))):
        median = patch  # not used in prediction
    shape = plans.get("original_median_shape_after_transp")
    num_slices = shape[0] if isinstance(shape, list) and len(shape) == 3 and _is_positive(shape[0]) else 2
    try:
        plan = Plan(
            dataset_name=str(plans.get("dataset_name")),
            num_dims=2 if is_picture else 3,
            orientation=orientation,
            spacing_mm=None if is_picture else along_axes(spacing, across_mm),
            slice_axis=slice_axis,
            median_shape=along_axes([math.ceil(size) for size in median], math.ceil(num_slices)),
            channel_names=dataset.channel_names,
            normalization=normalization,
            resampling="separate_z",
            class_names=class_names,
            num_classes=len(class_names),
            ignore_label=dataset.ignore_label,
            regions=regions,
            patch_shape=along_axes(patch),
            batch_size=int(_numbers(configuration, "batch_size", where)[0]),
            filters=_filters(architecture, len(stages["strides"]), where),
            kernel_sizes=tuple(along_axes(level) for level in stages["kernel_sizes"]),
            strides=tuple(along_axes(level) for level in stages["strides"]),
            deep_supervision=False,
            mirror_axes=_mirrored(checkpoint, own_axes),
            iterations_per_epoch=250,
            num_epochs=1000,
        )
    except SettingsError as error:
        raise ExperimentError(f"{where}: {name} cannot be used: {error}") from error
    own = _without_filled_holes(plan) if is_picture else OwnTransforms()
    return OpenedPlans(plan=plan, own=own, order=order, architecture=architecture, where=where)


def _described_dataset(folder: NNUNetFolder) -> DatasetDescription:
    if not (folder.path / DATASET).is_file():
        raise ExperimentError(f"{folder.path}: has no {DATASET}; take it from a copy, or from the dataset itself")
    try:
        return read_dataset_description(folder.path)
    except DatasetError as error:
        raise ExperimentError(f"{folder.path / DATASET}: {'; '.join(error.problems)}") from error


def _axes(plans: Mapping[str, Any], where: Path) -> tuple[tuple[int, ...], tuple[str, ...] | None, bool]:
    """Return our axis for each of nnU-Net's transposed axes; the orientation; and whether images are pictures."""
    reader = str(plans.get("image_reader_writer"))
    if reader not in _READERS:
        raise ExperimentError(
            f"{where}: images were read by {reader}, whose axes are not known; known are {', '.join(_READERS)}"
        )
    of_arrays, orientation = _READERS[reader]
    transposed = plans.get("transpose_forward")
    if not isinstance(transposed, list) or sorted(map(str, transposed)) != ["0", "1", "2"]:
        raise ExperimentError(
            f"{where}: transpose_forward is {transposed!r}, expected a permutation of the axes 0, 1 and 2"
        )
    is_picture = -1 in of_arrays
    if is_picture and transposed[0] != 0:
        raise ExperimentError(f"{where}: transpose_forward is {transposed}, expected 0 first: pictures have two axes")
    return tuple(of_arrays[axis] for axis in transposed), orientation, is_picture


def _check_resampling(configuration: Mapping[str, Any], where: Path) -> None:
    for key, known in _RESAMPLING_ARGUMENTS.items():
        function = configuration.get(key, _RESAMPLING)
        if function != _RESAMPLING:
            raise ExperimentError(f"{where}: {key} is {function!r}, expected {_RESAMPLING}: others are not supported")
        given = configuration.get(f"{key}_kwargs", known)
        for name, value in (given if isinstance(given, dict) else {"": given}).items():
            if name not in known or value != known[name]:
                raise ExperimentError(
                    f"{where}: {key}_kwargs has {name}={value!r}, expected "
                    f"{', '.join(f'{each}={its!r}' for each, its in known.items())}: others are not supported"
                )


def _normalization(
    plans: Mapping[str, Any], configuration: Mapping[str, Any], dataset: DatasetDescription, where: Path
) -> tuple[ChannelNormalization, ...]:
    schemes, masks = (configuration.get(key) for key in ("normalization_schemes", "use_mask_for_norm"))
    count = dataset.num_channels
    if not all(isinstance(each, list) and len(each) == count for each in (schemes, masks)):
        raise ExperimentError(
            f"{where}: normalization_schemes is {schemes!r} and use_mask_for_norm {masks!r}, expected one per channel "
            f"({', '.join(dataset.channel_names)})"
        )
    assert isinstance(schemes, list)
    assert isinstance(masks, list)
    key = "foreground_intensity_properties_per_channel"
    measured = plans.get(key, plans.get("foreground_intensity_properties_by_modality"))
    found = []
    for channel, (scheme, mask) in enumerate(zip(schemes, masks, strict=True)):
        if scheme not in _SCHEMES:
            raise ExperimentError(
                f"{where}: channel {channel} is normalised by {scheme!r}, expected one of {', '.join(_SCHEMES)}"
            )
        kind = _SCHEMES[scheme]
        of_channel = measured.get(str(channel)) if isinstance(measured, dict) else None
        numbers = {
            name: float(of_channel[entry])
            for name, entry in _STATISTICS.items()
            if isinstance(of_channel, dict) and _is_finite(of_channel.get(entry))
        }
        if kind == "ct" and len(numbers) < len(_STATISTICS):
            raise ExperimentError(
                f"{where}: {key} of channel {channel} is {str(of_channel)[:80]}, expected the numbers "
                f"{', '.join(_STATISTICS.values())}"
            )
        if kind != "ct":
            numbers = {name: numbers[name] for name in ("mean", "std") if kind == "zscore" and name in numbers}
        found.append(ChannelNormalization(scheme=kind, nonzero_only=kind == "zscore" and mask is True, **numbers))
    return tuple(found)


def _regions(dataset: DatasetDescription) -> tuple[Region, ...]:
    if not dataset.has_regions:
        return ()
    foreground = {name: ids_of_label(ids) for name, ids in dataset.labels.items() if ids_of_label(ids) != (0,)}
    return tuple(
        Region(name=name, ids=ids, paints=paints)
        for (name, ids), paints in zip(foreground.items(), dataset.regions_class_order or (), strict=True)
    )


def _filters(architecture: Mapping[str, Any], num_stages: int, where: Path) -> tuple[int, ...]:
    given = architecture["arch_kwargs"].get("features_per_stage")
    widths = given if isinstance(given, list) else [given] * num_stages
    if len(widths) != num_stages or not all(type(width) is int and width > 0 for width in widths):
        raise ExperimentError(
            f"{where}: architecture.arch_kwargs.features_per_stage is {given!r}, expected a width for each of "
            f"{num_stages} stages"
        )
    return tuple(widths)


def _mirrored(checkpoint: NNUNetCheckpoint, own_axes: Sequence[int]) -> tuple[int, ...]:
    if any(axis >= len(own_axes) for axis in checkpoint.mirror_axes):
        raise ExperimentError(
            f"{checkpoint.path}: inference_allowed_mirroring_axes is {checkpoint.mirror_axes}, expected axes of 0 to "
            f"{len(own_axes) - 1}"
        )
    return tuple(sorted({own_axes[axis] for axis in checkpoint.mirror_axes}))


def _without_filled_holes(plan: Plan) -> OwnTransforms:
    """Return a preprocessing that treats zeros within a picture as background, as nnU-Net does.

    nnU-Net fills holes only in volumes: those of its pictures, which are volumes of one slice, are open on both sides.
    """
    steps = preprocessing(plan)
    for step in steps:
        for channel in step.get("channels", ()):
            if channel.get("nonzero_only"):
                channel["fill_holes"] = False
                return OwnTransforms(preprocessing=steps)
    return OwnTransforms()


def _numbers(
    source: Mapping[str, Any], key: str, where: Path, *, count: tuple[int, ...] = (1,), whole: bool = False
) -> list[Any]:
    """Return the positive numbers of an entry, as many as expected."""
    value = source.get(key)
    found = value if isinstance(value, list) else [value]
    fits = len(found) in count and all(_is_positive(each) for each in found)
    if not fits or (whole and not all(type(each) is int and each <= _LARGEST_PATCH for each in found)):
        numbers = " or ".join(map(str, count))
        kind = "whole numbers" if whole else "numbers"
        raise ExperimentError(f"{where}: {key} is {str(value)[:60]}, expected {numbers} {kind} above 0")
    return found


def _is_finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: object) -> bool:
    return _is_finite(value) and value > 0
