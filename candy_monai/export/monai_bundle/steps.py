"""The experiment's transforms in a bundle: MONAI's, those in its ``scripts/``, or MONAI's nearest equivalents."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import candy_monai.transforms
from candy_monai.data.pipelines.description import LABEL, Entry
from candy_monai.data.planning.plan import Plan
from candy_monai.errors import ExperimentError
from candy_monai.registry import SCRIPTS

_OURS = "candy_monai.transforms"
_CARRIED = ("candy_monai.export.monai_bundle.carried", _OURS, "candy_monai.nn")
"""The packages whose modules bundles carry; these import nothing else of this library."""

_INSTEAD = {"monai.transforms.KeepLargestConnectedComponentd": f"{_OURS}.KeepLargestComponentd"}
"""The transforms that prediction uses in place of MONAI's, since they need no further package."""


def monai(name: str, /, **arguments: object) -> Entry:
    """Return an entry for MONAI's transform of this name."""
    return {"_target_": f"monai.transforms.{name}", **arguments}


def for_bundle(entries: Iterable[Mapping[str, Any]], plan: Plan, *, portable: bool) -> list[Entry]:
    """Return a pipeline's entries for a bundle; raise if a step is neither MONAI's nor ours.

    Our transforms are in ``scripts/``; if the bundle is ``portable``, MONAI's nearest equivalents replace them.
    """
    done: list[Entry] = []
    for entry in entries:
        step = dict(entry)
        if str(step.get("reader", "")).startswith("candy_monai."):
            del step["reader"]
        name = str(step["_target_"])
        target = step["_target_"] = name if "." in name else f"monai.transforms.{name}"
        if target.startswith(_OURS) and portable:
            done += _equivalents(step, plan)
            continue
        if not portable:
            target = _INSTEAD.get(target, target)
        if target.startswith(_OURS):
            step["_target_"] = _in_scripts(target)
        elif not target.startswith("monai."):
            raise ExperimentError(
                f"a pipeline names {target}, which a bundle cannot carry: it takes transforms of MONAI's and of "
                "candy_monai.transforms; leave it out with --transforms, or export to onnx"
            )
        done.append(step)
    return done


def for_image_alone(entries: Iterable[Entry]) -> list[Entry]:
    """Return the steps of a preprocessing for the image only, since cases to predict have no label."""
    steps = []
    for entry in entries:
        keys = entry["keys"] if isinstance(entry["keys"], list) else [entry["keys"]]
        kept = [place for place, key in enumerate(keys) if key != LABEL]
        if not kept:
            continue
        step = {name: value for name, value in entry.items() if name != "allow_missing_keys"}
        for name in ("mode", "padding_mode"):
            if isinstance(step.get(name), list):
                each = [step[name][place] for place in kept]
                step[name] = each if len(each) > 1 else each[0]
        step["keys"] = [keys[place] for place in kept] if len(kept) > 1 else keys[kept[0]]
        steps.append(step)
    return steps


def scripts_in(configs: object, networks: Mapping[str, str]) -> dict[str, str]:
    """Return the text of each module of ``scripts`` that configurations name, and of those that it imports."""
    found: dict[str, str] = {}
    waiting = set(re.findall(rf'"{SCRIPTS}\.(\w+)\.', str(configs).replace("'", '"')))
    while waiting:
        module = waiting.pop()
        found[module] = networks.get(module) or script(module)
        waiting |= set(re.findall(rf"from {SCRIPTS}\.(\w+) import", found[module])) - found.keys()
    return dict(sorted(found.items()))


def script(module: str) -> str:
    """Return the text of a module of this library for ``scripts``."""
    sources = (files(package).joinpath(f"{module}.py") for package in _CARRIED)
    source = next(source for source in sources if source.is_file())
    return source.read_text(encoding="utf-8").replace(f"from {_OURS}.", f"from {SCRIPTS}.")


def region_masks(key: str, regions: Sequence[Sequence[int]]) -> list[Entry]:
    """Return the steps that convert the ids at a key to a mask of each region, in channels."""
    names = [f"{key}_{index}" for index in range(len(regions))]
    return [
        monai("CopyItemsd", keys=key, times=len(names), names=names),
        *(monai("LabelToMaskd", keys=name, select_labels=list(ids)) for name, ids in zip(names, regions, strict=True)),
        monai("ConcatItemsd", keys=names, name=key),
        monai("DeleteItemsd", keys=names),
        monai("EnsureTyped", keys=key, dtype="float32"),
    ]


def without_ignored(plan: Plan, keys: Sequence[str]) -> list[Entry]:
    """Return the steps that set voxels with the ignore label to background in the maps at ``keys``."""
    if plan.ignore_label is None:
        return []
    valid = "valid"
    known = list(range(plan.ignore_label))
    return [
        monai("CopyItemsd", keys=LABEL, times=1, names=[valid]),
        monai("LabelToMaskd", keys=valid, select_labels=known),
        monai("MaskIntensityd", keys=list(keys), mask_key=valid),
        monai("DeleteItemsd", keys=valid),
    ]


def _in_scripts(target: str) -> str:
    name = target.rpartition(".")[2]
    kind = getattr(candy_monai.transforms, name)
    return f"{SCRIPTS}.{kind.__module__.rpartition('.')[2]}.{name}"


def _equivalents(step: Entry, plan: Plan) -> list[Entry]:
    """Return MONAI's nearest equivalents of one of our transforms."""
    name = step["_target_"].rpartition(".")[2]
    made = _EQUIVALENTS_OF.get(name)
    if made is None:
        raise ExperimentError(
            f"a pipeline names {step['_target_']}, for which MONAI has no equivalent: export without --portable"
        )
    return made({key: value for key, value in step.items() if key != "_target_"}, plan)


def like_resampling(step: Entry) -> Entry:
    """Return MONAI's ``Spacingd`` that is nearest to our ``ResampleToSpacingd``."""
    step = {name: value for name, value in step.items() if name != "_target_"}
    modes = {"cubic": 3, "linear": "bilinear", "majority": "nearest", "nearest": "nearest"}
    mode = step.pop("mode", "cubic")
    names = mode if isinstance(mode, list) else [mode] * (len(step["keys"]) if isinstance(step["keys"], list) else 1)
    for name in ("anisotropy", "separate_z"):
        step.pop(name, None)
    made = [modes[each] for each in names]
    padding = ["nearest" if isinstance(each, int) else "border" for each in made]
    return monai("Spacingd", **step, mode=made, padding_mode=padding, scale_extent=True, dtype="float32")


def _normalization(step: Entry, plan: Plan) -> list[Entry]:
    channels, key = step["channels"], step["keys"]
    if all(channel == channels[0] for channel in channels):
        return _scheme(channels[0], key)
    names = [f"{key}_{index}" for index in range(len(channels))]
    each = [entry for channel, name in zip(channels, names, strict=True) for entry in _scheme(channel, name)]
    return [
        monai("SplitDimd", keys=key, dim=0, keepdim=True),
        *each,
        monai("ConcatItemsd", keys=names, name=key, dim=0),
        monai("DeleteItemsd", keys=names),
    ]


def _scheme(channel: Mapping[str, Any], key: str) -> list[Entry]:
    scheme = channel["scheme"]
    if scheme == "nonorm":
        return []
    if scheme == "zscore":
        nonzero = bool(channel.get("nonzero_only", False))
        return [monai("NormalizeIntensityd", keys=key, nonzero=nonzero, channel_wise=True)]
    if scheme == "rescale_to_0_1":
        return [monai("ScaleIntensityd", keys=key, minv=0.0, maxv=1.0, channel_wise=True)]
    low, high, mean, std = 0.0, 255.0, 0.0, 255.0
    if scheme == "ct":
        low, high, mean, std = (channel[name] for name in ("lower", "upper", "mean", "std"))
    std = max(std, 1e-8)
    scaled = {"b_min": (low - mean) / std, "b_max": (high - mean) / std, "clip": scheme == "ct"}
    return [monai("ScaleIntensityRanged", keys=key, a_min=low, a_max=high, **scaled)]


def _label_ids(step: Entry, plan: Plan) -> list[Entry]:
    """Return the steps to label ids; the following steps, which invert preprocessing for ids, are kept."""
    key, paints = step["keys"], step.get("paints") or []
    if step.get("thresholds"):
        raise ExperimentError("thresholds of regions have no equivalent in MONAI: export without --portable")
    probable = [] if step.get("are_probabilities") else [monai("Activationsd", keys=key, sigmoid=True)]
    if not paints and plan.num_classes > 1:
        return [monai("AsDiscreted", keys=key, argmax=True)]
    masks = [*probable, monai("AsDiscreted", keys=key, threshold=0.5)]
    if not paints:
        return masks
    # The number of the last region that contains a voxel, from 1; it is then mapped to the id that this region paints.
    count = "torch.arange(1, len(x) + 1, device=x.device).view(-1, *[1] * (x.ndim - 1))"
    return [
        *masks,
        monai("Lambdad", keys=key, func=f"$lambda x: (x * {count}).amax(0, keepdim=True)", track_meta=True),
        monai("MapLabelValued", keys=key, orig_labels=list(range(len(paints) + 1)), target_labels=[0, *paints]),
    ]


def _without_small_components(step: Entry, plan: Plan) -> list[Entry]:
    """Return MONAI's removal of small objects, which supports masks, or all classes of a map together."""
    chosen, each = step.pop("applied_labels", None), step.pop("independent", True)
    foreground = set(range(1, plan.num_classes)) if not plan.regions else {region.paints for region in plan.regions}
    if (each and len(foreground) > 1) or (chosen is not None and not foreground <= set(chosen)):
        raise ExperimentError(
            "removal of small components of single classes has no equivalent in MONAI: export without --portable"
        )
    step = {**step, "connectivity": step.get("connectivity") or plan.num_dims}
    return [monai("RemoveSmallObjectsd", **step, independent_channels=False)]


def _warp(step: Entry, plan: Plan) -> list[Entry]:
    keys, size, fixed = step["keys"], list(plan.patch_shape), step.get("fixed_axis")
    angle = math.radians(step.get("max_angle_deg", 30.0))
    low, high = step.get("scale", (0.7, 1.4))
    axes = range(plan.num_dims)
    rotated = [angle] if plan.num_dims == 2 else [angle if fixed in (None, axis) else 0.0 for axis in axes]
    zoomed = [[0.0, 0.0] if axis == fixed else [low - 1, high - 1] for axis in axes]
    prob = {"prob_rotate": step.get("prob_rotate", 0.2), "prob_scale": step.get("prob_scale", 0.2)}
    warp = {"keys": keys, "spatial_size": size, "mode": step.get("mode", "bilinear"), "padding_mode": "border"}
    fill = step.get("fill", [0, 0])
    return [
        *(monai("SpatialPadd", keys=key, spatial_size=size, value=each) for key, each in zip(keys, fill, strict=True)),
        monai(
            "RandCropByPosNegLabeld",
            keys=keys,
            label_key=LABEL,
            spatial_size=size,
            pos=plan.foreground_share,
            neg=1 - plan.foreground_share,
            num_samples=1,
        ),
        monai("RandAffined", **warp, prob=prob["prob_rotate"], rotate_range=rotated),
        monai("RandAffined", **warp, prob=prob["prob_scale"], scale_range=zoomed),
    ]


def _blur(step: Entry, plan: Plan) -> list[Entry]:
    sigma = step.get("sigma", [0.5, 1.0])
    prob = step.get("prob", 0.1) * step.get("channel_prob", 1.0)
    widths = {f"sigma_{axis}": sigma for axis in "xyz"[: plan.num_dims]}
    return [monai("RandGaussianSmoothd", keys=step["keys"], prob=prob, **widths)]


def _low_resolution(step: Entry, plan: Plan) -> list[Entry]:
    prob = step.get("prob", 0.1) * step.get("channel_prob", 1.0)
    upsample = {2: "bilinear", 3: "trilinear"}[plan.num_dims]
    zoom = step.get("zoom_range", [0.5, 1.0])
    modes = {"downsample_mode": "nearest-exact", "upsample_mode": upsample}
    return [monai("RandSimulateLowResolutiond", keys=step["keys"], prob=prob, zoom_range=zoom, **modes)]


_EQUIVALENTS_OF: dict[str, Callable[[Entry, Plan], list[Entry]]] = {
    "ResampleToSpacingd": lambda step, _: [like_resampling(step)],
    "NormalizeForegroundd": _normalization,
    "PaintLabelsd": _label_ids,
    "CropForegroundIfAnyd": lambda step, _: [monai("CropForegroundd", **step)],
    "KeepLargestComponentd": lambda step, _: [monai("KeepLargestConnectedComponentd", **step)],
    "RemoveSmallComponentsd": _without_small_components,
    "RandWarpd": _warp,
    "RandBlurd": _blur,
    "RandLowResolutiond": _low_resolution,
    "RandGammad": lambda step, _: [monai("RandAdjustContrastd", **step, retain_stats=True)],
}
