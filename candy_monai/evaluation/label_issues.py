"""Find and rank regions of label maps where every prediction of a case contradicts its label.

Only predictions of models that were not trained on the case are informative about its label.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from candy_monai.aliases import PathLike
from candy_monai.evaluation.results import aligned_rows
from candy_monai.files import atomic_write_json
from candy_monai.metrics.overlap import is_any_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from candy_monai.aliases import Shape

DEFINITIONS = {
    "region": "connected voxels whose label every prediction contradicts, with the same two ids",
    "doubt": "1 less the greatest probability that any prediction gives to the label of a voxel; mean over the region",
    "score": "the sum of the doubts of a region's voxels that are further from its border than one voxel, in ml, or in "
    "pixels for pictures: rims, which any two annotators draw in different places, do not count; regions without any "
    "other voxels are left out",
}


@dataclass(frozen=True, kw_only=True)
class LabelIssue:
    """A region of a label map that every prediction contradicts.

    Attributes:
        case_id: The case.
        label_id: The id in the label.
        predicted_id: The predicted id.
        voxels: The region's size in voxels.
        volume: The region's size in ml, in pixels for pictures.
        doubt: The mean doubt of its voxels, 0 to 1.
        score: The value for the ranking; see `DEFINITIONS`.
        place: The voxel farthest from the region's border, in the axes of the file.
        box: The box around it, one slice per spatial axis.
    """

    case_id: str
    label_id: int
    predicted_id: int
    voxels: int
    volume: float
    doubt: float
    score: float
    place: Shape
    box: tuple[slice, ...]

    def to_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "case": self.case_id,
            "label": self.label_id,
            "predicted": self.predicted_id,
            "voxels": self.voxels,
            "volume": self.volume,
            "doubt": self.doubt,
            "score": self.score,
            "place": list(self.place),
            "box": [[side.start, side.stop] for side in self.box],
        }


class Contradictions:
    """Accumulates the voxels of one case where every prediction contradicts the label, ids ``(*spatial)``.

    For overlapping regions the ids of each channel of the probabilities are given; voxels whose label has the ignore
    label are ignored.
    """

    def __init__(
        self, label: Tensor, *, regions: Sequence[Sequence[int]] = (), ignore_label: int | None = None
    ) -> None:
        self._label, self._regions = label.long(), regions
        self._predicted: Tensor | None = None
        self._contradicted = torch.ones_like(label, dtype=torch.bool)
        if ignore_label is not None:
            self._contradicted &= self._label != ignore_label
        self._doubt = torch.ones(label.shape)

    def add(self, prediction: Tensor, probabilities: Tensor) -> None:
        """Add the prediction of one model: ids ``(*spatial)`` and probabilities ``(K, *spatial)``."""
        if self._predicted is None:
            self._predicted = prediction.long()
        self._contradicted &= prediction.long() != self._label
        torch.minimum(self._doubt, 1 - self._probability_of_label(probabilities.float()), out=self._doubt)

    def issues(self, case_id: str, *, spacing_mm: Sequence[float] | None = None) -> list[LabelIssue]:
        """Return the regions by decreasing score, with sizes in pixels if there is no spacing."""
        if self._predicted is None or not bool(self._contradicted.any()):
            return []
        spacing = tuple(spacing_mm or (1.0,) * self._label.ndim)
        unit = 1.0 if spacing_mm is None else math.prod(spacing) / 1000
        finest = min((step for step, extent in zip(spacing, self._label.shape, strict=True) if extent > 1), default=0.0)
        doubt = self._doubt.numpy()
        found = []
        for label_id, predicted_id, box, mask in self._components():
            depths = _distances(mask, spacing, self._label.shape)
            inner = depths > finest * (1 + 1e-6)
            if not inner.any():
                continue
            deepest = np.unravel_index(int(depths.argmax()), depths.shape)
            found.append(
                LabelIssue(
                    case_id=case_id,
                    label_id=label_id,
                    predicted_id=predicted_id,
                    voxels=int(mask.sum()),
                    volume=float(mask.sum() * unit),
                    doubt=float(doubt[box][mask].mean()),
                    score=float(doubt[box][inner].sum(dtype=np.float64) * unit),
                    place=tuple(int(index + side.start) for index, side in zip(deepest, box, strict=True)),
                    box=box,
                )
            )
        return sorted(found, key=lambda issue: -issue.score)

    def mask_of(self, issue: LabelIssue) -> NDArray[np.bool_]:
        """Return the mask ``(*spatial)`` of one of these regions."""
        from scipy import ndimage

        assert self._predicted is not None
        of_its_kind = (
            self._contradicted & (self._label == issue.label_id) & (self._predicted == issue.predicted_id)
        ).numpy()[issue.box]
        components, _ = ndimage.label(of_its_kind, structure=np.ones((3,) * of_its_kind.ndim))
        inside = tuple(index - side.start for index, side in zip(issue.place, issue.box, strict=True))
        mask = np.zeros(self._label.shape, dtype=np.bool_)
        mask[issue.box] = components == components[inside]
        return mask

    def _components(self) -> Iterator[tuple[int, int, tuple[slice, ...], NDArray[np.bool_]]]:
        """Yield the ids of each connected region, its box and its mask within the box."""
        from scipy import ndimage

        assert self._predicted is not None
        label, predicted = self._label.numpy(), self._predicted.numpy()
        where = self._contradicted.numpy()
        pairs, numbers = np.unique(np.stack([label[where], predicted[where]]), axis=1, return_inverse=True)
        kinds = np.zeros(label.shape, dtype=np.int32)
        kinds[where] = numbers.ravel() + 1
        touching = np.ones((3,) * label.ndim)
        for number, outer in enumerate(ndimage.find_objects(kinds)):
            components, _ = ndimage.label(kinds[outer] == number + 1, structure=touching)
            for index, inner in enumerate(ndimage.find_objects(components)):
                box = tuple(
                    slice(first.start + side.start, first.start + side.stop)
                    for first, side in zip(outer, inner, strict=True)
                )
                yield int(pairs[0, number]), int(pairs[1, number]), box, components[inner] == index + 1

    def _probability_of_label(self, probabilities: Tensor) -> Tensor:
        if self._regions:
            each = [
                torch.where(is_any_of(self._label, ids), channel, 1 - channel)
                for ids, channel in zip(self._regions, probabilities, strict=True)
            ]
            return torch.stack(each).amin(0)
        if len(probabilities) == 1:
            return torch.where(self._label > 0, probabilities[0], 1 - probabilities[0])
        known = self._label.clamp(0, len(probabilities) - 1)
        return probabilities.gather(0, known[None])[0]


@dataclass(frozen=True, kw_only=True)
class LabelIssues:
    """The label issues of a dataset.

    Attributes:
        issues: The issues of all cases, by decreasing score.
        num_cases: The number of cases that were checked.
        left_out: Cases in the training sets of all models, which cannot be checked.
        class_names: Names by id.
        unit: The unit of volumes and scores: ``ml``, or ``pixels``.
    """

    issues: tuple[LabelIssue, ...]
    num_cases: int
    left_out: tuple[str, ...] = ()
    class_names: Mapping[int, str] = field(default_factory=dict)
    unit: str = "ml"

    @property
    def cases(self) -> dict[str, float]:
        """The sum of the scores of each case with issues, in decreasing order."""
        scores: dict[str, float] = {}
        for issue in self.issues:
            scores[issue.case_id] = scores.get(issue.case_id, 0.0) + issue.score
        return dict(sorted(scores.items(), key=lambda entry: -entry[1]))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "num_cases": self.num_cases,
            "left_out": list(self.left_out),
            "unit": self.unit,
            "definitions": DEFINITIONS,
            "class_names": {str(index): name for index, name in self.class_names.items()},
            "cases": [{"case": case_id, "score": score} for case_id, score in self.cases.items()],
            "issues": [issue.to_dict() for issue in self.issues],
        }

    def save(self, path: PathLike) -> None:
        """Write `to_dict` as JSON; missing folders are created."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(Path(path), self.to_dict())

    def name_of(self, label_id: int) -> str:
        """Return the name of a class, or its id if it has none."""
        return self.class_names.get(label_id, str(label_id))

    def table(self, most: int = 20) -> str:
        """Return the regions with the highest scores as text, one per line."""
        digits = 3 if self.unit == "ml" else 0
        rows = [["case", "label", "predicted", "place", self.unit, "doubt", "score"]]
        rows += [
            [
                issue.case_id,
                self.name_of(issue.label_id),
                self.name_of(issue.predicted_id),
                ",".join(map(str, issue.place)),
                f"{issue.volume:.{digits}f}",
                f"{issue.doubt:.2f}",
                f"{issue.score:.3f}",
            ]
            for issue in self.issues[:most]
        ]
        lines = aligned_rows(rows) if len(rows) > 1 else []
        shown = min(most, len(self.issues))
        regions = "region" if len(self.issues) == 1 else "regions"
        cases = "case" if self.num_cases == 1 else "cases"
        lines.append(f"{shown} of {len(self.issues)} {regions}, in {len(self.cases)} of {self.num_cases} {cases}")
        return "\n".join(lines)


def _distances(mask: NDArray[np.bool_], spacing: Sequence[float], whole: Sequence[int]) -> NDArray[np.float64]:
    """Return each voxel's distance to the nearest one outside a region, given within its box.

    An axis along which the whole label map has a single voxel is ignored.
    """
    from scipy import ndimage

    margins = [int(extent > 1) for extent in whole]
    distances = ndimage.distance_transform_edt(np.pad(mask, [(margin, margin) for margin in margins]), sampling=spacing)
    inside = tuple(slice(margin, margin + extent) for margin, extent in zip(margins, mask.shape, strict=True))
    return np.asarray(distances[inside])
