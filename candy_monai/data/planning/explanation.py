"""Explain a plan: the value of every choice, the reason for it, and how to change it.

The reasons are those of the rules in ``plan``, ``grid``, ``sizing`` and ``normalization``; if a rule changes there, its
sentence must change here. The fields of ``Plan`` declare their reasons.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from candy_monai.data.planning.entries import Entry, as_text, entries_of
from candy_monai.data.planning.experience import expected
from candy_monai.data.planning.grid import anisotropic_axis
from candy_monai.data.values import join_names

if TYPE_CHECKING:
    from collections.abc import Collection

    from candy_monai.data.inspection.fingerprint import Fingerprint
    from candy_monai.data.planning.plan import Plan

__all__ = ["Choice", "explain"]

_OF_VOLUMES = ("orientation", "spacing_mm", "slice_axis")
"""Entries that do not exist for pictures."""

_OF_DATA = "follows from the data"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The explanation of one entry of a plan.

    Attributes:
        name: The name of the entry.
        value: The value as text, in the form for ``--set`` if the entry can be set.
        reason: The reason for it, a sentence.
        remedy: How to change it.
    """

    name: str
    value: str
    reason: str
    remedy: str


def explain(
    plan: Plan, fingerprint: Fingerprint, *, by_budget: Collection[str] = (), criterion_of: str | None = None
) -> tuple[Choice, ...]:
    """Explain every choice of a plan.

    Args:
        plan: The plan.
        fingerprint: The fingerprint for which it was made.
        by_budget: Names of the entries that a budget determined.
        criterion_of: Name of the trainer with its own loss; None for the usual one.
    """
    choices = []
    for name, entry in entries_of(plan).items():
        value, reason = entry.shown(getattr(plan, name)), entry.reason
        if name in plan.chosen:
            reason = "Set by you."
        elif name in by_budget:
            reason = "Decided by the budget, from what was measured on this machine."
        elif not isinstance(reason, str):
            reason = reason(plan, fingerprint)
        if name == "slice_axis":
            choices.append(_configuration(plan, fingerprint))
        is_given = plan.num_dims == 2 and name in _OF_VOLUMES
        remedy = _OF_DATA if is_given else entry.remedy or _option(entry, name, value)
        choices.append(Choice(name=name, value=value, reason=reason, remedy=remedy))
        if name == "num_classes":
            choices.append(_loss(plan, criterion_of))
    return tuple(choices)


def _option(entry: Entry, name: str, value: str) -> str:
    if entry.kind is not None and value in ("none", entry.none):
        value = entry.kind.others
    return f"--set '{name}={value}'" if ";" in value else f"--set {name}={value}"


def _configuration(plan: Plan, fingerprint: Fingerprint) -> Choice:
    if plan.num_dims == 2:
        reason = "Pictures have two axes."
    elif plan.full_spacing_mm is not None:
        reason = "Set by you: at a lower resolution a patch covers more of a volume that is far larger."
    elif plan.num_previous:
        reason = (
            "Set by you: the network also sees the label map predicted by the configuration 3d_lowres (--previous)."
        )
    elif "slice_axis" in plan.chosen:
        kind = "2-D" if plan.slice_axis is not None else "3-D"
        reason = f"Set by you, or required by a network or weights that are {kind} (--network, --bundle, --init-from)."
    elif plan.slice_axis is not None and plan.median_shape[plan.slice_axis] == 1:
        reason = "The volumes are one slice thick."
    else:
        learned = expected(plan.spacing_mm or (1.0,) * plan.num_dims, len(fingerprint.cases))
        about = f"{learned}, in the time of a CPU (experience.json)"
        if plan.slice_axis is not None:
            reason = f"A 2-D network is trained on many slices in the time of a few 3-D patches: {about}."
        elif learned.configuration == "3d":
            reason = f"A 3-D network uses the context of the neighbouring slices; {about}."
        else:
            reason = (
                "A 3-D network uses the context of the neighbouring slices. The advantage of slices in the limited "
                "time of a CPU does not apply to a large GPU, or if you set an entry along three axes."
            )
    other = "2d" if plan.configuration == "3d" else "3d"
    remedy = _OF_DATA if plan.num_dims == 2 else f"--configuration {other}"
    return Choice(name="configuration", value=plan.configuration, reason=reason, remedy=remedy)


def _loss(plan: Plan, trainer: str | None) -> Choice:
    if trainer is not None:
        reason, remedy = f"{trainer} builds it by build_criterion.", f"override build_criterion of {trainer}"
        return Choice(name="loss", value="of its own", reason=reason, remedy=remedy)
    is_binary = bool(plan.regions) or plan.num_classes == 1
    kind = "outputs are independent of each other" if is_binary else "labels are mutually exclusive"
    ignored = "" if plan.ignore_label is None else f" Voxels with the id {plan.ignore_label} are ignored."
    return Choice(
        name="loss",
        value="Dice + binary cross-entropy" if is_binary else "Dice + cross-entropy",
        reason=f"Dice counters the imbalance of classes, cross-entropy gives smooth gradients; {kind}.{ignored}",
        remedy="override build_criterion in a trainer of your own (--trainer FILE:Class)",
    )


def orientation(plan: Plan, fingerprint: Fingerprint) -> str:
    if plan.orientation is None:
        return "Pictures have no orientation in space; rows and columns stay as stored."
    found = Counter("".join(case.orientation) for case in fingerprint.cases if case.orientation)
    stored = ", ".join(f"{codes} in {count}" for codes, count in found.most_common(4))
    return (
        f"The orientation of most cases ({stored}); the others are reoriented to it, and predictions are reoriented "
        "back."
    )


def spacing(plan: Plan, fingerprint: Fingerprint) -> str:
    if plan.spacing_mm is None:
        return "Pictures have no spacing in mm and are not resampled."
    if plan.slice_axis is not None:
        return f"The median spacing along each axis; along axis {plan.slice_axis}, across slices, cases keep their own."
    if plan.full_spacing_mm is not None:
        return (
            f"Coarser than in the configuration 3d ({as_text(plan.full_spacing_mm)}), so that a patch covers a quarter "
            "of the median case, as in nnU-Net."
        )
    axis = anisotropic_axis(plan.spacing_mm, (1,) * len(plan.spacing_mm))
    if axis is None:
        return "The median spacing of the cases along each axis."
    return (
        f"The median spacing along each axis; axis {axis} is across thick slices, so it keeps a coarse spacing (the "
        "10th percentile if there are few slices) and is resampled separately."
    )


def slice_axis(plan: Plan, _fingerprint: Fingerprint) -> str:
    if plan.slice_axis is None:
        return "The network has as many dimensions as the data."
    return "The axis with the largest spacing, the last one if there are several; slices are not resampled across it."


def resampling(plan: Plan, _fingerprint: Fingerprint) -> str:
    if plan.resampling == "none":
        return "No case changes its shape at this spacing; a new case that does is resampled by extent."
    if plan.resampling == "separate_z":
        return "As nnU-Net does it: images by splines within thick slices, and across them by nearest neighbour."
    return "Images by splines and labels by majority, on each case's exact extent; stock is MONAI's Spacingd."


def median_shape(plan: Plan, _fingerprint: Fingerprint) -> str:
    done = "cropping to non-zero voxels" + ("" if plan.spacing_mm is None else " and resampling")
    return f"The median of the cases' shapes after {done}; the patch starts from it."


def normalization(plan: Plan, _fingerprint: Fingerprint) -> str:
    texts = []
    for name, how in zip(plan.channel_names, plan.normalization, strict=True):
        where = " over its non-zero voxels" if how.nonzero_only else ""
        texts.append(f"{name}: {_SCHEMES[how.scheme].format(how=how, where=where)}")
    return f"By the channel's name, as in nnU-Net. {'; '.join(dict.fromkeys(texts))}."


def num_classes(plan: Plan, _fingerprint: Fingerprint) -> str:
    if plan.regions:
        return f"One sigmoid for each region ({', '.join(plan.class_names)}), since regions overlap."
    if plan.num_classes == 1:
        return "A single sigmoid for the one foreground label."
    return f"The labels of dataset.json, background included ({join_names(plan.class_names, limit=6)})."


def patch_shape(plan: Plan, _fingerprint: Fingerprint) -> str:
    share = math.prod(plan.patch_shape) / math.prod(plan.median_shape)
    small = "" if plan.slice_axis is None else ", on a CPU or a small GPU to the voxels of 160 x 160"
    return (
        f"Starts at the median shape {as_text(plan.median_shape)} and shrinks until two patches fit into the "
        f"memory{small}; a multiple of {as_text(plan.divisor)}, the network's downsampling factor. Covers "
        f"{100 * share:.0f} % of a median case."
    )


def batch_size(plan: Plan, fingerprint: Fingerprint) -> str:
    return (
        f"As many patches as memory, speed and a twentieth of the dataset's voxels ({len(fingerprint.cases)} cases) "
        f"allow, at least 2; a step takes about {plan.step_bytes / 2**20:.0f} MiB."
    )


def filters(plan: Plan, _fingerprint: Fingerprint) -> str:
    return (
        f"{plan.filters[0]} at the finest of {plan.num_levels} levels, chosen by the memory, and doubled from level to "
        "level."
    )


def kernel_sizes(plan: Plan, _fingerprint: Fingerprint) -> str:
    if any(1 in kernel for kernel in plan.kernel_sizes):
        return "3 along each axis, and 1 along a coarse or flat axis until the others are as coarse."
    return "3 along each axis, since the spacing is about the same along all."


def strides(plan: Plan, _fingerprint: Fingerprint) -> str:
    return (
        "Each level halves the axes that are long enough, those with the finest spacing first; in total by "
        f"{as_text(plan.divisor)}."
    )


def deep_supervision(plan: Plan, _fingerprint: Fingerprint) -> str:
    if plan.deep_supervision:
        return (
            "Coarser levels have outputs of their own that are supervised, which helps networks of more than two "
            "levels."
        )
    return "Two levels or fewer have no coarser output to supervise."


def mirror_axes(plan: Plan, _fingerprint: Fingerprint) -> str:
    if plan.mirror_axes == tuple(range(plan.num_dims)):
        return (
            "All axes may be flipped. Leave out an axis whose two sides have different labels, such as left and right."
        )
    return "Flat axes need no flips, and axes whose sides have different labels must not be flipped."


def num_epochs(plan: Plan, _fingerprint: Fingerprint) -> str:
    steps = plan.num_epochs * plan.iterations_per_epoch
    return (
        f"{steps} steps in total, chosen by the memory: with little memory, as on a CPU, a long schedule would take "
        "days."
    )


def foreground_share(plan: Plan, fingerprint: Fingerprint) -> str:
    ignored = {0, fingerprint.ignore_label}
    shares = [
        sum(count for index, count in case.class_voxels.items() if index not in ignored) / math.prod(case.shape)
        for case in fingerprint.cases
    ]
    return (
        f"The foreground is {np.median(shares):.2g} of a median case; this share of the patches is centred on a "
        "foreground voxel, of a class chosen with equal probability."
    )


_SCHEMES = {
    "ct": (
        "clipped to {how.lower:.4g} .. {how.upper:.4g}, then centred on {how.mean:.4g} and divided by {how.std:.4g}, "
        "the statistics of the foreground voxels, because CT has an absolute scale"
    ),
    "zscore": "mean 0 and deviation 1 in each case{where}, because the scale differs from scan to scan",
    "rescale_to_0_1": "each case's range to 0 .. 1",
    "rgb_to_0_1": "divided by 255",
    "nonorm": "left as it is",
}
