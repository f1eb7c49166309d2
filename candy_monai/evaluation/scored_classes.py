"""Build the evaluator for the label maps of a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from candy_monai.data.datasets.nnunet_description import DatasetDescription
from candy_monai.data.values import ids_of_label
from candy_monai.evaluation.evaluator import Evaluator


@dataclass(frozen=True, kw_only=True)
class ScoredClass:
    """A class or region: its number in evaluations, its name, and its ids in a label map."""

    index: int
    name: str
    ids: tuple[int, ...]


def dataset_evaluator(
    description: DatasetDescription | None, *metrics: str, ignore_label: int | None = None, **options: Any
) -> Evaluator:
    """Return the evaluator of a dataset's label maps, with its classes or regions and its ignore label.

    Without a description no classes are known; metrics and options are those of `Evaluator`.
    """
    if description is None:
        return Evaluator(*metrics, ignore_label=ignore_label, **options)
    return Evaluator(
        *metrics,
        class_names=_names_by_id(description),
        regions=scored_regions(description),
        ignore_label=description.ignore_label if ignore_label is None else ignore_label,
        **options,
    )


def scored_regions(description: DatasetDescription) -> dict[str, tuple[int, ...]] | None:
    """Return the ids of each region by its name; None if classes exclude each other."""
    if not description.has_regions:
        return None
    return {name: ids_of_label(ids) for name, ids in description.labels.items() if ids != 0}


def scored_classes(description: DatasetDescription) -> list[ScoredClass]:
    """Return the foreground classes or the regions, numbered as in an evaluation of the dataset."""
    regions = scored_regions(description)
    if regions is not None:
        places = enumerate(regions.items(), start=1)
        return [ScoredClass(index=place, name=name, ids=ids) for place, (name, ids) in places]
    return [
        ScoredClass(index=label_id, name=name, ids=(label_id,))
        for name, label in description.labels.items()
        for label_id in ids_of_label(label)
        if label_id != 0
    ]


def _names_by_id(description: DatasetDescription) -> dict[int, str]:
    """Return a name for every id that a label map may contain; ids that are only in regions are named after these."""
    names = {label_id: str(label_id) for label_id in description.label_ids}
    if description.ignore_label is not None:  # known, and an ordinary class if another id is ignored
        names[description.ignore_label] = "ignore"
    return names | {index: name for name, index in description.labels.items() if isinstance(index, int)}
