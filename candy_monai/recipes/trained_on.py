"""The dataset that runs were trained on, opened again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.inspection.digest import Digests
from candy_monai.data.values import join_names
from candy_monai.errors import BadInputError
from candy_monai.experiment.description import DatasetRecord


def folder_of_dataset(trained: DatasetRecord, given: PathLike | None = None) -> Path:
    """Return the folder of a run's dataset.

    Raises:
        BadInputError: If it is not there.
    """
    folder = trained.folder if given is None else given
    if folder is None or not Path(folder).is_dir():
        raise BadInputError(f"{folder}: the dataset no longer exists; give its new path with --dataset")
    return Path(folder)


def dataset_again(trained: Sequence[DatasetRecord], given: PathLike | None = None) -> NNUNetDataset:
    """Return the dataset of runs.

    Raises:
        BadInputError: If it is not there, or lacks a case that a run was trained or validated on.
    """
    dataset = NNUNetDataset(folder_of_dataset(trained[0], given))
    used = {case_id for each in trained for case_id in (*(each.training or ()), *(each.validation or ()))}
    if missing := sorted(used - set(dataset.case_ids)):
        raise BadInputError(
            f"{dataset.folder}: lacks the cases {join_names(missing)}, with which the models were trained"
        )
    return dataset


def change_in_words(trained: DatasetRecord, dataset: NNUNetDataset, digests: Digests) -> str | None:
    """Return a warning that a dataset is not what a run was trained on; None where it is, or nobody knows."""
    if trained.digest in (None, digests.whole):
        return None
    return (
        f"Warning: {dataset.folder}: has changed since the models were trained: its cases, images, labels or "
        "dataset.json differ"
    )
