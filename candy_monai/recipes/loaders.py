"""The loaders of a planned run: how many workers, how many steps an epoch, which cases. Builds no trainer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader

from candy_monai.data.pipelines.description import OwnTransforms, augmentation
from candy_monai.data.planning.plan import Plan
from candy_monai.data.samples.patches import EpochSampler, PatchDataset, StoredCases
from candy_monai.data.samples.store import CaseStore

MAX_WORKERS = 8


def num_workers(device: torch.device) -> int:
    """Return how many processes prepare batches: none beside a CPU, where they would only take the network's cores."""
    return 0 if device.type == "cpu" else min(MAX_WORKERS, max(0, (os.cpu_count() or 1) - 1))


def patch_loader(
    store: CaseStore,
    case_ids: Sequence[str],
    plan: Plan,
    *,
    seed: int,
    device: torch.device,
    num_processes: int = 1,
    own: OwnTransforms | None = None,
) -> DataLoader[Any]:
    """Return a loader of augmented patches, ``plan.iterations_per_epoch`` batches an epoch for each process.

    Args:
        store: The preprocessed cases.
        case_ids: The cases to train on.
        plan: Patch, batch and augmentation.
        seed: Every patch is a function of this, the epoch and the position.
        device: Where the batches will go.
        num_processes: Processes among which the patches will be shared out.
        own: The user's own transforms, whose augmentation extends or replaces the plan's.
    """
    workers, own = num_workers(device), own or OwnTransforms()
    changes = augmentation(plan, own.augmentation)
    return DataLoader(
        PatchDataset(store, case_ids, plan, seed=seed, augmentation=changes, trust=own.trust),
        batch_size=plan.batch_size,
        sampler=EpochSampler(plan.iterations_per_epoch * plan.batch_size * num_processes),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        persistent_workers=workers > 0,
    )


def evenly(case_ids: Sequence[str], count: int | None) -> tuple[str, ...]:
    """Return ``count`` of the cases, spread over their order, since neighbours often come from one site.

    A smaller choice is part of every larger one, so that scores on both are of the same cases as far as possible.
    """
    if count is None or count >= len(case_ids):
        return tuple(case_ids)
    digits = len(case_ids).bit_length()
    # The bits of the positions read backwards: first the halves, then the quarters, then what lies between.
    spread = sorted(range(len(case_ids)), key=lambda index: int(f"{index:0{digits}b}"[::-1], 2))
    return tuple(case_ids[index] for index in sorted(spread[:count]))


def case_loader(store: CaseStore, case_ids: Sequence[str], *, device: torch.device) -> DataLoader[Any] | None:
    """Return a loader of whole preprocessed cases, one at a time; None for no case."""
    if not case_ids:
        return None
    workers = min(2, num_workers(device))
    return DataLoader(StoredCases(store, case_ids), batch_size=1, num_workers=workers, pin_memory=device.type == "cuda")
