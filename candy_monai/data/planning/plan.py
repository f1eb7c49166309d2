"""The plan: everything that preprocessing, network and training need to know of a dataset, checked for consistency.

It is derived from a fingerprint in ``rules.py``, and read and written in ``files.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, get_type_hints

from candy_monai.aliases import Shape
from candy_monai.data.planning import explanation as why
from candy_monai.data.planning.entries import (
    AXES,
    AXIS_CODES,
    AXIS_OR_NONE,
    FLAG,
    LENGTHS_MM,
    LEVELS,
    NUMBER_FROM_0,
    POSITIVE_NUMBER,
    SCHEMES,
    SHARE,
    SIZES,
    WHOLE_NUMBER,
    WHOLE_NUMBER_OR_ALL,
    WIDTHS,
    Overrides,
    as_text,
    choice,
    derived,
    entries_of,
    settable,
)
from candy_monai.data.planning.grid import anisotropic_axis, pixdim
from candy_monai.data.planning.normalization import ChannelNormalization
from candy_monai.data.planning.topology import Topology, check_levels, rounded_up, training_bytes
from candy_monai.data.values import frozen, is_of_kind
from candy_monai.errors import BadInputError, SettingsError, did_you_mean
from candy_monai.transforms.normalization import SCHEMES as SCHEME_NAMES

if TYPE_CHECKING:
    from candy_monai.data.inspection.fingerprint import Orientation

_LEARNING_RATE = 3e-3  # AdamW with clipped gradients and normalised layers tolerates it; short schedules need it


@dataclass(frozen=True, kw_only=True)
class Region:
    """A foreground region: a union of labels with its own output channel.

    Attributes:
        name: The region's name.
        ids: The label ids in the region.
        paints: The id that represents it in a label map; later regions overwrite earlier ones.
    """

    name: str
    ids: tuple[int, ...]
    paints: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The plan for preprocessing, sampling and training. All axes are those after reorientation.

    A field that a user may set declares how it is written, the reason for its value, and what depends on it
    (`settable`); the default is the planned value.

    Attributes:
        dataset_name: The name of the dataset of the plan.
        num_dims: Spatial axes, 2 or 3.
        orientation: Axis codes for the reorientation of volumes; ``None`` leaves axes as stored (2-D images).
        spacing_mm: Voxel spacing to which cases are resampled; ``None`` for pictures, which never are.
        slice_axis: The axis across the slices of volumes for a 2-D network; ``None`` for pictures and for a network
            with as many dimensions as the data.
        full_spacing_mm: The spacing of the configuration 3d, if this is the plan of 3d_lowres; ``None`` for others.
        num_previous: For the second stage of a cascade, the highest id in the label maps of the first stage: the
            network has an additional input channel for each id from 1. 0 for other plans.
        median_shape: Median shape of the cases after cropping and resampling.
        channel_names: The names of the image's channels.
        normalization: One entry per channel.
        resampling: ``extent`` preserves each case's extent, by ``ResampleToSpacingd``; ``separate_z`` does so as in
            nnU-Net, which copies thick slices where ``extent`` interpolates between them; ``stock`` is MONAI's
            ``Spacingd``; ``none`` is ``Spacingd`` if no case of the dataset is resampled, so that MONAI alone builds
            the pipeline; any other case is resampled as by ``extent``.
        class_names: The meaning of the output channels: the labels with background, or the regions.
        num_classes: Output channels of the network: labels with background, 1 for a single sigmoid, or one per region.
        ignore_label: Id that is excluded from loss, sampling and scores; ``None`` without.
        regions: Overlapping regions in painting order; empty if labels are mutually exclusive.
        patch_shape: Shape of patches in training and sliding windows in inference; a multiple of ``divisor``.
        batch_size: Patches in an optimizer step.
        filters: Width of each network level, finest first.
        kernel_sizes: Kernel of each level.
        strides: Stride of each level, applied on entry.
        deep_supervision: Whether coarser levels are supervised, too.
        mirror_axes: Spatial axes that augmentation may flip. Leave out an axis whose sides have different labels.
        foreground_share: Share of patches centred on a labelled voxel, 0 to 1.
        learning_rate: Initial learning rate.
        weight_decay: Weight decay of the optimizer.
        iterations_per_epoch: Optimizer steps in an epoch.
        num_epochs: Length of the schedule in epochs.
        validate_every: Epochs from one validation to the next.
        num_validation_cases: Cases scored in a validation, evenly chosen; ``None`` for all.
        chosen: Names of the entries that the user set, sorted; the others follow from the data.
    """

    dataset_name: str
    num_dims: int
    orientation: Orientation | None = field(
        metadata=settable(AXIS_CODES, why.orientation, none="as stored", along_axes=True, decides_others=True)
    )
    spacing_mm: tuple[float, ...] | None = field(
        metadata=settable(LENGTHS_MM, why.spacing, none="none", along_axes=True, decides_others=True)
    )
    slice_axis: int | None = field(
        default=None, metadata=settable(AXIS_OR_NONE, why.slice_axis, none="none", decides_others=True)
    )
    full_spacing_mm: tuple[float, ...] | None = None
    num_previous: int = 0
    median_shape: Shape = field(metadata=derived(why.median_shape, remedy="follows from spacing_mm"))
    channel_names: tuple[str, ...]
    normalization: tuple[ChannelNormalization, ...] = field(
        metadata=settable(
            SCHEMES,
            why.normalization,
            given_as=lambda channels: tuple(channel.scheme for channel in channels),
            decides_others=True,
        )
    )
    resampling: str = field(
        default="extent", metadata=settable(choice("extent", "separate_z", "stock", "none"), why.resampling)
    )
    class_names: tuple[str, ...]
    num_classes: int = field(metadata=settable(WHOLE_NUMBER, why.num_classes, decides_others=True))
    ignore_label: int | None
    regions: tuple[Region, ...]
    patch_shape: Shape = field(metadata=settable(SIZES, why.patch_shape, along_axes=True))
    batch_size: int = field(metadata=settable(WHOLE_NUMBER, why.batch_size))
    filters: tuple[int, ...] = field(metadata=settable(WIDTHS, why.filters, decides_others=True))
    kernel_sizes: tuple[Shape, ...] = field(
        metadata=settable(LEVELS, why.kernel_sizes, along_axes=True, decides_others=True)
    )
    strides: tuple[Shape, ...] = field(metadata=settable(LEVELS, why.strides, along_axes=True, decides_others=True))
    deep_supervision: bool = field(metadata=settable(FLAG, why.deep_supervision))
    mirror_axes: tuple[int, ...] = field(metadata=settable(AXES, why.mirror_axes))
    foreground_share: float = field(default=0.33, metadata=settable(SHARE, why.foreground_share))
    learning_rate: float = field(
        default=_LEARNING_RATE,
        metadata=settable(
            POSITIVE_NUMBER, "The first step's rate for AdamW; it falls linearly to 0 at the end of the run."
        ),
    )
    weight_decay: float = field(default=1e-2, metadata=settable(NUMBER_FROM_0, "AdamW's own default."))
    iterations_per_epoch: int = field(
        metadata=settable(
            WHOLE_NUMBER, "Steps between two entries of metrics.csv; --budget measures and decides it.", is_length=True
        )
    )
    num_epochs: int = field(metadata=settable(WHOLE_NUMBER, why.num_epochs, is_length=True))
    validate_every: int = field(
        default=5,
        metadata=settable(
            WHOLE_NUMBER, "Whole cases are slow to score; the last epoch is always validated.", is_length=True
        ),
    )
    num_validation_cases: int | None = field(
        default=16,
        metadata=settable(
            WHOLE_NUMBER_OR_ALL,
            "Enough to compare epochs by; when training is over, all validation cases are scored.",
            is_length=True,
        ),
    )
    chosen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse values that a user could not have set, and entries that contradict each other."""
        for name, entry in entries_of(self).items():
            entry.check(name, getattr(self, name))
        check_levels(self.filters, self.kernel_sizes, self.strides)
        check_axes(self.num_dims, {name: getattr(self, name) for name in ENTRIES})
        if any(size % step for size, step in zip(self.patch_shape, self.divisor, strict=True)):
            nearest = "x".join(map(str, rounded_up(self.patch_shape, self.divisor)))
            raise SettingsError(
                f"patch_shape {'x'.join(map(str, self.patch_shape))} is not a multiple of the network's downsampling "
                f"factor, {'x'.join(map(str, self.divisor))}: use {nearest}, or set strides or fewer filters"
            )
        if self.slice_axis is not None:
            _check_slices(self)
        if any(axis not in range(self.num_dims) for axis in self.mirror_axes):
            raise SettingsError(f"mirror_axes must be from 0 to {self.num_dims - 1}, got {self.mirror_axes}")

    @property
    def configuration(self) -> str:
        """The kind of network: ``2d``, ``3d``, ``3d_lowres``, or ``3d_cascade``, the second stage of a cascade."""
        if self.num_dims < 3 or self.slice_axis is not None:
            return "2d"
        if self.num_previous:
            return "3d_cascade"
        return "3d" if self.full_spacing_mm is None else "3d_lowres"

    @property
    def num_inputs(self) -> int:
        """Input channels of the network: those of the image, and those of a cascade's first stage."""
        return len(self.channel_names) + self.num_previous

    @property
    def pixdim(self) -> tuple[float, ...] | None:
        """The spacing for a resampling transform: `spacing_mm`, but -1, which keeps it, across slices."""
        return pixdim(self.spacing_mm, self.slice_axis)

    @property
    def topology(self) -> Topology:
        """The kernels and strides of the network."""
        return Topology(kernel_sizes=self.kernel_sizes, strides=self.strides)

    @property
    def network_dims(self) -> int:
        """Spatial axes of the network: 2 for pictures and for slices of volumes, else 3."""
        return 2 if self.configuration == "2d" else 3

    @property
    def network_topology(self) -> Topology:
        """The kernels and strides of the network along its own axes, which are those of a slice for slices."""
        return self.topology if self.slice_axis is None else self.topology.without_axis(self.slice_axis)

    @property
    def divisor(self) -> Shape:
        """The divisor of each axis of the network's input: the product of its strides."""
        return self.topology.divisor

    @property
    def step_bytes(self) -> int:
        """Memory of a training step, as estimated by ``candy_monai.data.planning.topology.training_bytes``."""
        return training_bytes(
            self.patch_shape,
            self.topology,
            self.filters,
            batch_size=self.batch_size,
            num_inputs=self.num_inputs,
            num_outputs=self.num_classes,
            deep_supervision=self.deep_supervision,
        )

    @property
    def num_levels(self) -> int:
        """Number of network levels, including the finest and the lowest one."""
        return len(self.filters)

    @property
    def anisotropic_axis(self) -> int | None:
        """The axis across slices or thick slices, if any: see the function of this name."""
        if self.slice_axis is not None:
            return self.slice_axis
        return anisotropic_axis(self.spacing_mm or (1.0,) * self.num_dims, self.patch_shape)

    def to_dict(self) -> dict[str, object]:
        """Return plain values that can be stored as JSON and read by ``from_dict``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Plan:
        """Restore a plan from plain values, also from JSON.

        Raises:
            BadInputError: If an entry is missing, unknown or of the wrong type.
        """
        lacking = [each.name for each in fields(cls) if each.default is MISSING and each.name not in values]
        unknown = sorted(set(values) - {each.name for each in fields(cls)})
        if lacking or unknown:
            found = f"it lacks {', '.join(lacking)}" if lacking else f"{', '.join(unknown)} is not known"
            raise BadInputError(f"not a plan of this version ({found}): plan the dataset again")
        try:
            plain: dict[str, Any] = {key: frozen(value) for key, value in values.items()}
            plain["normalization"] = tuple(ChannelNormalization(**entry) for entry in plain["normalization"])
            plain["regions"] = tuple(Region(**entry) for entry in plain["regions"])
            made = cls(**plain)
            _check_kinds(plain)
            return made
        except TypeError as error:
            raise BadInputError(f"not a plan of this version ({error}): plan the dataset again") from error


ENTRIES = entries_of(Plan)
"""The entries of a plan with an explanation, by name."""

SETTABLE = frozenset(name for name, entry in ENTRIES.items() if entry.kind)
"""The entries of a plan that a user may set."""


def parsed_overrides(overrides: Mapping[str, object]) -> Overrides:
    """Convert overrides to the types of a plan.

    Text is parsed as on a command line: numbers separated by ``,`` (or ``x`` for integers), levels of nested entries by
    ``;``, ``none`` for nothing, ``true`` or ``false``.

    Raises:
        SettingsError: If a name is unknown or a value cannot be converted.
    """
    for name in overrides:
        if name not in SETTABLE:
            known = [entry for entry in ENTRIES if entry in SETTABLE]
            raise SettingsError(
                f"a plan has no entry {name!r} that can be set.{did_you_mean(name, known)} Known: {', '.join(known)}"
            )
    return {name: ENTRIES[name].parsed(name, value) for name, value in overrides.items()}


def as_applied(plan: Plan) -> Plan:
    """Return the plan without entries that change no case: statistics that are only used for display."""
    normalization = tuple(
        replace(channel, mean=0.0, std=1.0) if channel.scheme == "zscore" else channel for channel in plan.normalization
    )
    resampling = "extent" if plan.resampling == "none" else plan.resampling  # both are equivalent for any case
    return replace(plan, normalization=normalization, resampling=resampling)


def _check_slices(plan: Plan) -> None:
    """Refuse a 2-D network for volumes whose patch, kernels or strides are not flat across the slices."""
    axis = plan.slice_axis
    if plan.num_dims != 3 or axis not in (0, 1, 2):
        raise SettingsError(f"slice_axis must be an axis of a volume, 0, 1 or 2, got {axis}")
    flat = {"patch_shape": (plan.patch_shape,), "kernel_sizes": plan.kernel_sizes, "strides": plan.strides}
    for name, levels in flat.items():
        if any(level[axis] != 1 for level in levels):
            raise SettingsError(
                f"{name}={as_text(getattr(plan, name))} is not 1 along axis {axis}, across the slices of a 2-D "
                "network: use 1 there, or --configuration 3d"
            )


def _check_kinds(entries: Mapping[str, Any]) -> None:
    """Refuse entries from a file that have a wrong type, or that are inconsistent.

    Raises:
        BadInputError: With the entry.
    """
    hints = get_type_hints(Plan, localns={"Orientation": tuple[str, ...]})
    for name in entries.keys() & hints.keys():
        if not is_of_kind(entries[name], hints[name]):
            raise BadInputError(f"not a plan: {name} is {entries[name]!r}; restore the file from a copy, or plan again")
    classes, num_classes = len(entries["regions"] or entries["class_names"]), entries["num_classes"]
    schemes = [channel.scheme for channel in entries["normalization"]]
    is_right = {
        "normalization": len(schemes) == len(entries["channel_names"]) > 0 and set(schemes) <= set(SCHEME_NAMES),
        "num_classes": num_classes == classes or (num_classes, classes) == (1, 2),
    }
    for name, right in is_right.items():
        if not right:
            raise BadInputError(
                f"not a plan: {name} is {entries[name]!r}, which does not match its other entries; plan the dataset "
                "again"
            )


def check_axes(num_dims: int, values: Mapping[str, Any]) -> None:
    """Refuse entries, a plan's or a user's, that do not have one value for each spatial axis."""
    for name, value in values.items():
        if value is None or not ENTRIES[name].along_axes:
            continue
        has_levels = bool(value) and isinstance(value[0], tuple)
        for level, along_axes in enumerate(value if has_levels else (value,)):
            if len(along_axes) != num_dims:
                where = f"{name}[{level}]" if has_levels else name
                raise SettingsError(f"{where} has {len(along_axes)} entries for {num_dims} spatial axes: {along_axes}")
