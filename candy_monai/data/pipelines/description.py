"""Describe the pipelines of a plan in MONAI's config language. Builds no transforms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from candy_monai.errors import SettingsError, did_you_mean

if TYPE_CHECKING:
    from candy_monai.aliases import PathLike
    from candy_monai.data.planning.normalization import ChannelNormalization
    from candy_monai.data.planning.plan import Plan

Entry = dict[str, Any]
"""A transform as plain data: ``{"_target_": "monai.transforms.RandFlipd", "keys": "image", ...}``."""

IMAGE, LABEL, PREDICTION, CENTER = "image", "label", "pred", "center"
PREVIOUS = "previous"
"""The key of the label map that the first stage of a cascade predicted: a further channel of the preprocessed image."""
MANY_CLASSES = 16
"""From this number of classes, label ids are painted class by class, since the scores of all need much memory at the
file's size. An unmeasured rule of thumb: below it MONAI's own steps suffice, which any MONAI can build."""

PIPELINES = ("preprocessing", "augmentation", "postprocessing")
"""The names of a plan's pipelines."""

BEFORE = "_before_"
"""The key for the name of the step before which an entry of a user's own preprocessing is inserted."""

_MONAI = "monai.transforms."
_OURS = "candy_monai.transforms."
_BOTH = [IMAGE, LABEL]
_WHOLE = {"preprocessing": "LoadImaged", "augmentation": _OURS + "RandWarpd", "postprocessing": "Invertd"}
"""The step that makes a list a complete pipeline, which replaces the plan's; other lists extend it."""

_LONGISH = 1.5


@dataclass(frozen=True, kw_only=True)
class OwnTransforms:
    """A user's own transforms, which extend or replace the pipelines of a plan; empty lists change nothing.

    Attributes:
        preprocessing: Steps before the last one, or before the one given by ``_before_``. A list that loads the files
            itself, by ``LoadImaged``, replaces the plan's.
        augmentation: Steps after the plan's. A list that cuts the patch itself, by
            ``candy_monai.transforms.RandWarpd``, replaces the plan's.
        postprocessing: Steps on the label map, at ``pred``, after the plan's. A list that inverts the preprocessing
            itself, by ``Invertd``, replaces the plan's.
        trust: Whether to build any callable in them, instead of known transforms only.
    """

    preprocessing: Sequence[Mapping[str, Any]] = ()
    augmentation: Sequence[Mapping[str, Any]] = ()
    postprocessing: Sequence[Mapping[str, Any]] = ()
    trust: bool = False

    @classmethod
    def from_saved(cls, pipelines: object, *, where: PathLike = "experiment.json", trust: bool = False) -> Self:
        """Return the transforms that restore the pipelines of an ``experiment.json``, or the plan's for old versions.

        Raises:
            SettingsError: If the stored pipelines are damaged.
        """
        if pipelines is None:
            return cls(trust=trust)
        lists: Mapping[str, Any] = pipelines if isinstance(pipelines, dict) else {}
        if not any(name in lists for name in PIPELINES):
            raise SettingsError(
                f"{where}: pipelines is damaged, expected lists of transforms under {', '.join(PIPELINES)}; restore "
                "the file from a copy of the run"
            )
        saved = {name: lists[name] for name in PIPELINES if name in lists}
        for name, entries in saved.items():
            # Without the step that makes it complete, it would be taken for an extension of the plan's.
            if not isinstance(entries, list) or not _has(entries, _WHOLE[name]):
                found = "none of that name" if isinstance(entries, list) and entries else repr(entries)[:60]
                raise SettingsError(
                    f"{where}: pipelines.{name} is damaged: expected a list of transforms with {_WHOLE[name]}, found "
                    f"{found}; restore the file from a copy of the run"
                )
        return cls(trust=trust, **saved)


def describe_pipelines(plan: Plan, *, own: OwnTransforms | None = None) -> dict[str, list[Entry]]:
    """Return the pipelines of a plan: ``preprocessing``, ``augmentation`` and ``postprocessing``.

    MONAI alone can build them unless a transform of ours is needed; in MONAI's ``ConfigParser`` ``@preprocessing``
    refers to the transforms built from that list.
    """
    own = own or OwnTransforms()
    return {
        "preprocessing": preprocessing(plan, own.preprocessing),
        "augmentation": augmentation(plan, own.augmentation),
        "postprocessing": postprocessing(plan, own.postprocessing),
    }


def preprocessing(plan: Plan, own: Sequence[Mapping[str, Any]] = ()) -> list[Entry]:
    """Return the steps from the files of a case to the input of a network: image, and label if there is one.

    The user's own steps extend or replace those of the plan; see `OwnTransforms`.

    Raises:
        SettingsError: If an entry is to be inserted before a step that does not exist.
    """
    if _has(own, _WHOLE["preprocessing"]):
        return [dict(entry) for entry in own]
    steps = [_loading(plan)]
    if plan.orientation is not None:
        steps.append(_monai("Orientationd", keys=_spatial(plan), axcodes="".join(plan.orientation), labels=None))
    steps.append(
        _monai(
            "CropForegroundd",
            keys=_spatial(plan),
            source_key=IMAGE,
            select_fn={"_target_": "torch.ne", "_mode_": "callable", "other": 0},
            start_coord_key=None,
            end_coord_key=None,
        )
    )
    for step in steps:
        step["allow_missing_keys"] = True  # a case to predict has no label
    steps += _normalizing(plan.normalization)
    if plan.spacing_mm is not None:
        steps.append(resampling(plan))
    steps.append(_monai("EnsureTyped", keys=IMAGE, dtype="float32"))
    for index, entry in enumerate(own):
        steps.insert(_place(entry, steps, f"preprocessing[{index}]"), _for_any_case(entry))
    return [*steps, _with_previous()] if plan.num_previous else steps


def augmentation(plan: Plan, own: Sequence[Mapping[str, Any]] | None = None) -> list[Entry]:
    """Return the random transforms of training patches, as in nnU-Net, and the user's own; see `OwnTransforms`."""
    added = [dict(entry) for entry in own or ()]
    if _has(added, _WHOLE["augmentation"]):
        return added
    rotations = [size for axis, size in enumerate(plan.patch_shape) if axis != plan.anisotropic_axis]
    in_plane = 15.0 if max(rotations) > _LONGISH * min(rotations) else 180.0  # any angle, unless the patch is elongated
    interpolation = {2: "bilinear", 3: "trilinear"}[plan.num_dims]
    share, zoom = 0.25, [0.5, 1.0]
    single = len(plan.channel_names) == 1
    coarser = (
        _monai(
            "RandSimulateLowResolutiond",
            keys=IMAGE,
            prob=share / 2,  # nnU-Net changes a channel with a probability of a half
            downsample_mode="nearest-exact",
            upsample_mode=interpolation,
            zoom_range=zoom,
        )
        if plan.anisotropic_axis is None and single
        else _ours(  # MONAI's changes all channels at once, with one strength, and along all axes
            "RandLowResolutiond",
            keys=IMAGE,
            prob=share,
            channel_prob=0.5,
            zoom_range=zoom,
            fixed_axis=plan.anisotropic_axis,
        )
    )
    # MONAI's computes minimum, maximum, mean and deviation over all channels together.
    curve = _monai("RandAdjustContrastd", retain_stats=True) if single else _ours("RandGammad")
    curve |= {"keys": IMAGE, "gamma": [0.7, 1.5]}
    return [
        _ours(
            "RandWarpd",
            keys=_spatial(plan),
            spatial_size=list(plan.patch_shape),
            center_key=CENTER,
            prob_rotate=0.2,
            max_angle_deg=in_plane if len(rotations) == 2 else 30.0,
            prob_scale=0.2,
            scale=[0.7, 1.4],
            fixed_axis=plan.anisotropic_axis,
            spacing=None if plan.spacing_mm is None else list(plan.spacing_mm),
            mode=_modes(plan, "bilinear", "nearest"),
            fill=[0, 0 if plan.ignore_label is None else plan.ignore_label, 0][: len(_spatial(plan))],
        ),
        *(_monai("RandFlipd", keys=_spatial(plan), prob=0.5, spatial_axis=axis) for axis in plan.mirror_axes),
        _monai("RandGaussianNoised", keys=IMAGE, prob=0.1, std=0.1),
        _ours("RandBlurd", keys=IMAGE, prob=0.2, sigma=[0.5, 1.0], channel_prob=0.5),
        _monai("RandScaleIntensityd", keys=IMAGE, prob=0.15, factors=0.25, channel_wise=True),
        _monai(
            "RandScaleIntensityFixedMeand", keys=IMAGE, prob=0.15, factors=0.25, preserve_range=True, channel_wise=True
        ),
        coarser,
        curve | {"prob": 0.1, "invert_image": True},
        curve | {"prob": 0.3},
        *added,
        *([_with_previous()] if plan.num_previous else []),
        plain_patches(),
    ]


def plain_patches() -> Entry:
    """Return the last step of an augmentation: tensors without metadata, for batches."""
    return _monai("EnsureTyped", keys=_BOTH, track_meta=False)


def cutting(plan: Plan) -> list[Entry]:
    """Return the steps that cut a patch without augmentation."""
    warp = augmentation(plan)[0]
    with_previous = [_with_previous()] if plan.num_previous else []
    return [warp | {"prob_rotate": 0.0, "prob_scale": 0.0}, *with_previous, plain_patches()]


def postprocessing(plan: Plan, own: Sequence[Mapping[str, Any]] = ()) -> list[Entry]:
    """Return the steps from logits, at ``pred``, to label ids on the file's grid, and the user's own."""
    added = [dict(entry) for entry in own]
    return added if _has(added, _WHOLE["postprocessing"]) else [*_label_steps(plan), *added]


def largest_components() -> Entry:
    """Return the step that keeps the largest connected component of each class."""
    return _monai("KeepLargestConnectedComponentd", keys=PREDICTION)


def largest_component(ids: Sequence[int]) -> Entry:
    """Return the step that keeps the largest connected component of these classes together."""
    return _monai("KeepLargestConnectedComponentd", keys=PREDICTION, applied_labels=list(ids), independent=False)


def without_small_components(ids: Sequence[int], least: float) -> Entry:
    """Return the step that removes small components of these classes together, below a size (mm³; mm² in a picture)."""
    chosen = {"applied_labels": list(ids), "independent": False}
    return _ours("RemoveSmallComponentsd", keys=PREDICTION, min_size=least, by_measure=True, **chosen)


def filled_holes(label_id: int) -> Entry:
    """Return the step that fills the holes of a class."""
    return _monai("FillHolesd", keys=PREDICTION, applied_labels=[label_id])


def _label_steps(plan: Plan) -> list[Entry]:
    paints = [region.paints for region in plan.regions]
    tracked = _monai("EnsureTyped", keys=PREDICTION, track_meta=True)  # without metadata Invertd inverts nothing
    if plan.resampling != "stock" and (paints or plan.num_classes >= MANY_CLASSES):
        return [_ours("PaintLabelsd", keys=PREDICTION, orig_keys=IMAGE, paints=paints), tracked, inverting(ids=True)]
    if plan.num_classes > 1 and not paints:
        return [tracked, inverting(ids=False), _monai("AsDiscreted", keys=PREDICTION, argmax=True)]
    # Cropped regions are restored as 0, which is not a probability and a logit of a half.
    probabilities = [tracked, _monai("Activationsd", keys=PREDICTION, sigmoid=True), inverting(ids=False)]
    if paints:
        return [*probabilities, _ours("PaintLabelsd", keys=PREDICTION, paints=paints, are_probabilities=True)]
    return [*probabilities, _monai("AsDiscreted", keys=PREDICTION, threshold=0.5)]


def _has(entries: object, name: str) -> bool:
    """Return whether a transform of that name is among entries, or nested in a ``Compose`` or ``OneOf``."""
    steps = [entry for entry in entries if isinstance(entry, Mapping)] if isinstance(entries, list | tuple) else []
    return any(_name(step) == name.rpartition(".")[2] or _has(step.get("transforms"), name) for step in steps)


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("_target_")).rpartition(".")[2]


def _place(entry: Mapping[str, Any], steps: Sequence[Entry], where: str) -> int:
    """Return the position of a user's own step among the others."""
    names = [_name(step) for step in steps]
    before = entry.get(BEFORE, names[-1])
    if before not in names[1:]:
        raise SettingsError(
            f"{where}: {BEFORE} is {before!r}, expected one of the plan's steps after the first: "
            f"{', '.join(names[1:])}.{did_you_mean(str(before), names[1:])}"
        )
    return names.index(before)


def _for_any_case(entry: Mapping[str, Any]) -> Entry:
    """Return a step that also accepts a case without label, as in prediction."""
    step = {key: value for key, value in entry.items() if key != BEFORE}
    keys = step.get("keys")
    named = keys if isinstance(keys, list | tuple) else [keys]
    return {**step, "allow_missing_keys": True} if LABEL in named else step


def _loading(plan: Plan) -> Entry:
    step = _monai("LoadImaged", keys=_spatial(plan), ensure_channel_first=True)
    # MONAI's reader for pictures swaps rows and columns by default.
    return step | ({"reader": "PILReader", "reverse_indexing": False} if plan.spacing_mm is None else {})


def _normalizing(channels: tuple[ChannelNormalization, ...]) -> list[Entry]:
    """Return MONAI's own step if one suffices for all channels, else ours."""
    first = channels[0]
    schemes = {channel.scheme for channel in channels}
    if schemes == {"nonorm"}:
        return []
    if schemes == {"rescale_to_0_1"}:
        return [_monai("ScaleIntensityd", keys=IMAGE, minv=0.0, maxv=1.0, channel_wise=True)]
    if schemes == {"rgb_to_0_1"}:
        return [_monai("ScaleIntensityRanged", keys=IMAGE, a_min=0.0, a_max=255.0, b_min=0.0, b_max=1.0)]
    if schemes == {"zscore"} and not any(channel.nonzero_only for channel in channels):
        return [_monai("NormalizeIntensityd", keys=IMAGE, channel_wise=True)]
    if set(channels) == {first} and first.scheme == "ct" and first.lower < first.upper and first.std > 0:
        scaled = [(bound - first.mean) / first.std for bound in (first.lower, first.upper)]
        step = _monai(
            "ScaleIntensityRanged",
            keys=IMAGE,
            a_min=first.lower,
            a_max=first.upper,
            b_min=scaled[0],
            b_max=scaled[1],
            clip=True,
        )
        return [step]
    return [_ours("NormalizeForegroundd", keys=IMAGE, channels=[_scheme(channel) for channel in channels])]


def _scheme(channel: ChannelNormalization) -> dict[str, object]:
    names = ["scheme"]
    if channel.scheme == "ct":
        names += ["lower", "upper", "mean", "std"]
    elif channel.scheme == "zscore" and channel.nonzero_only:
        names.append("nonzero_only")
    return {name: getattr(channel, name) for name in names}


def resampling(plan: Plan) -> Entry:
    """Return the step that resamples a case to the plan's spacing."""
    assert plan.pixdim is not None
    shared = {"keys": _spatial(plan), "pixdim": list(plan.pixdim), "allow_missing_keys": True}
    if plan.resampling == "extent":
        return _ours("ResampleToSpacingd", mode=_modes(plan, "cubic", "majority"), **shared)
    if plan.resampling == "separate_z":
        return _ours("ResampleToSpacingd", mode=_modes(plan, "cubic", "majority"), separate_z=True, **shared)
    return _monai("Spacingd", mode=_modes(plan, "bilinear", "nearest"), scale_extent=True, dtype="float32", **shared)


def inverting(*, ids: bool) -> Entry:
    """Return the step that inverts the preprocessing, of label ids or of scores, which are interpolated."""
    transform = {"_target_": _MONAI + "Compose", "transforms": "@preprocessing"}
    return _monai("Invertd", keys=PREDICTION, transform=transform, orig_keys=IMAGE, nearest_interp=ids)


def _spatial(plan: Plan) -> list[str]:
    """Return the keys that spatial steps apply to."""
    return [*_BOTH, PREVIOUS] if plan.num_previous else list(_BOTH)


def _modes(plan: Plan, of_image: str, of_ids: str) -> list[str]:
    """Return the interpolation of each key of `_spatial`."""
    return [of_image, *[of_ids] * (len(_spatial(plan)) - 1)]


def _with_previous() -> Entry:
    """Return the step that appends the first stage's label map to the channels of the image."""
    return _monai("ConcatItemsd", keys=[IMAGE, PREVIOUS], name=IMAGE)


def _monai(name: str, /, **arguments: object) -> Entry:
    return {"_target_": _MONAI + name, **arguments}


def _ours(name: str, /, **arguments: object) -> Entry:
    return {"_target_": _OURS + name, **arguments}
