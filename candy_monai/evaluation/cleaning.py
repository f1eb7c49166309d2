"""Choose thresholds of regions and postprocessing steps from their effect on predictions of cases with references.

Each is tried on all cases, and kept if it improves its class and makes no other class worse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import scipy.ndimage
import torch
from monai.data import MetaTensor
from torch import Tensor

from candy_monai.data.pipelines.building import Pipeline
from candy_monai.data.pipelines.description import (
    PREDICTION,
    Entry,
    filled_holes,
    largest_component,
    without_small_components,
)
from candy_monai.data.pipelines.preprocessing import build_postprocessing, label_map_by
from candy_monai.data.values import plain_tensor
from candy_monai.data.workers import in_order
from candy_monai.evaluation.evaluator import Evaluator
from candy_monai.evaluation.results import EvalCase, EvalResult
from candy_monai.evaluation.scored_classes import ScoredClass
from candy_monai.evaluation.statistics import as_json_number
from candy_monai.metrics.overlap import is_any_of

LEAST_GAIN = 1e-4
"""The smallest gain of the mean Dice that counts: the precision at which the mean Dice is shown."""

SHARES_OF_A_COMPONENT = (0.01, 0.05, 0.2)
"""The sizes below which components are removed, as shares of the median component of the references."""

_THRESHOLD = 0.5  # the default threshold of a region's probability


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The effect of one step on the predictions."""

    step: str  # a description
    target: str | None  # the class that it is applied to; None for the foreground
    before: float  # mean Dice of the class, or of the foreground, over the cases
    after: float  # the same with the step
    better: int  # the number of cases whose Dice increases
    worse: int  # the number of cases whose Dice decreases
    kept: bool
    reason: str  # why it is kept or not

    def to_dict(self) -> dict[str, object]:
        """Return the trial as plain values for JSON: None for NaN."""
        return {**vars(self), "before": as_json_number(self.before), "after": as_json_number(self.after)}


@dataclass(frozen=True, kw_only=True)
class _Offer:
    """A possible change of each label map."""

    step: str
    target: ScoredClass | None
    make: Callable[[str, MetaTensor], Tensor]  # maps a case's id and its current label map to another one
    entries: tuple[Entry, ...] = ()  # these and the thresholds define the same change for a pipeline
    thresholds: tuple[float, ...] = ()


@dataclass(kw_only=True)
class Cleaner:
    """Tries steps on predictions one after the other, each on the results of the steps before.

    ``labels`` returns a case's predicted label map ``(1, *spatial)`` with its affine, made with the given thresholds of
    regions unless they are empty; ``reference`` returns its reference on the same grid.
    """

    case_ids: Sequence[str]
    labels: Callable[[str, Sequence[float]], MetaTensor]
    reference: Callable[[str], Tensor]
    evaluator: Evaluator  # measures ``dice``
    classes: Sequence[ScoredClass]
    exclusive: bool  # whether each voxel belongs to one class
    jobs: int = 1  # cases at the same time
    thresholds: tuple[float, ...] = ()  # of the regions; empty for those that the label maps were made with
    steps: list[Entry] = field(default_factory=list)  # that are kept
    trials: list[Trial] = field(default_factory=list)  # the steps that were tried and changed a label map

    def __post_init__(self) -> None:
        self._scored = self._scored_anew()

    @property
    def result(self) -> EvalResult:
        """The scores of all cases with the steps and thresholds chosen so far."""
        return self._scored

    def _scored_anew(self) -> EvalResult:
        found = list(in_order((partial(self._of_case, case_id) for case_id in self.case_ids), self.jobs))
        return replace(found[0], cases=tuple(result.cases[0] for result in found))

    def choose_thresholds(self, among: Sequence[float]) -> None:
        """Choose the probability that each region must exceed, one region after the other."""
        current = [_THRESHOLD] * len(self.classes)
        for place, region in enumerate(self.classes):
            tried = [(*current[:place], each, *current[place + 1 :]) for each in among if each != _THRESHOLD]
            kept = self._tried(
                _Offer(
                    step=f"threshold {thresholds[place]:g} for {region.name}",
                    target=region,
                    make=partial(self._with_thresholds, thresholds),
                    thresholds=thresholds,
                )
                for thresholds in tried
            )
            if kept:
                self.thresholds = kept[0].thresholds
                current = list(self.thresholds)
                self._scored = self._scored_anew()

    def choose_steps(self) -> None:
        """Choose components to remove, of the foreground and then of each class, and holes to fill."""
        foreground = tuple(sorted({label_id for each in self.classes for label_id in each.ids}))
        if len(self.classes) > 1:
            self._keep(self._tried(self._offers(None, foreground)))
        groups = [list(self.classes)] if self.exclusive else [[each] for each in self.classes]
        for group in groups:
            sizes = self._median_components(group)
            self._keep(self._tried(o for each in group for o in self._offers(each, each.ids, sizes[each.index])))
        single = [each for each in self.classes if len(each.ids) == 1 and self.exclusive]
        self._keep(
            self._tried(self._offer(f"fill holes of {each.name}", each, filled_holes(each.ids[0])) for each in single)
        )

    def _offers(self, target: ScoredClass | None, ids: tuple[int, ...], component: float | None = None) -> list[_Offer]:
        name = "the foreground" if target is None else target.name
        offers = [self._offer(f"keep the largest component of {name}", target, largest_component(ids))]
        sizes = () if component is None else [float(f"{share * component:.3g}") for share in SHARES_OF_A_COMPONENT]
        for least in sizes:
            step = without_small_components(ids, least)
            offers.append(self._offer(f"remove components of {name} below a size of {least:g}", target, step))
        return offers

    def _offer(self, step: str, target: ScoredClass | None, entry: Entry) -> _Offer:
        pipeline = build_postprocessing([entry])
        return _Offer(step=step, target=target, make=lambda _, labels: _applied(pipeline, labels), entries=(entry,))

    def _keep(self, offers: Sequence[_Offer]) -> None:
        """Add steps; if several together make a class worse, add only the first."""
        if not offers:
            return
        before, earlier = self._scored, list(self.steps)
        self.steps += [entry for offer in offers for entry in offer.entries]
        self._scored = self._scored_anew()
        if len(offers) > 1 and _falls(before, self._scored):
            self.steps = [*earlier, *offers[0].entries]
            self._scored = self._scored_anew()
            dropped = {offer.step for offer in offers[1:]}
            self.trials = [
                replace(trial, kept=False, reason=f"helps alone, and not together with '{offers[0].step}'")
                if trial.kept and trial.step in dropped
                else trial
                for trial in self.trials
            ]

    def _tried(self, offers: Iterable[_Offer]) -> list[_Offer]:
        """Return the best offer of each class, the best first, and record the effect of each offer on all cases."""
        tried = list(offers)
        tasks = (partial(self._offered, tried, case) for case in self._scored.cases)
        of_cases = list(in_order(tasks, self.jobs))
        trials: list[tuple[_Offer, Trial]] = []
        for number, offer in enumerate(tried):
            made = [case[number] for case in of_cases]
            if any(made):
                cases = tuple(new or old for new, old in zip(made, self._scored.cases, strict=True))
                trials.append((offer, _judged(offer, self._scored, replace(self._scored, cases=cases))))
        helpful = sorted((pair for pair in trials if pair[1].kept), key=lambda pair: pair[1].before - pair[1].after)
        best = {trial.target: (offer, trial) for offer, trial in reversed(helpful)}
        for _, trial in trials:
            is_best = not trial.kept or best[trial.target][1] is trial
            self.trials.append(trial if is_best else replace(trial, kept=False, reason="another one helps more"))
        return [offer for offer, trial in helpful if best[trial.target][1] is trial]

    def _of_case(self, case_id: str) -> EvalResult:
        return self._score(case_id, self._current(case_id), self.reference(case_id))

    def _current(self, case_id: str) -> MetaTensor:
        labels = self.labels(case_id, self.thresholds)
        return _placed(_applied(build_postprocessing(self.steps), labels), labels) if self.steps else labels

    def _with_thresholds(self, thresholds: tuple[float, ...], case_id: str, _: MetaTensor) -> Tensor:
        return plain_tensor(self.labels(case_id, thresholds))

    def _offered(self, offers: Sequence[_Offer], case: EvalCase) -> list[EvalCase | None]:
        """Return the scores of a case with each offer; None where it does not change the label map."""
        labels, reference = self._current(case.case_id), self.reference(case.case_id)
        found: list[EvalCase | None] = []
        for offer in offers:
            made = offer.make(case.case_id, labels)
            is_same = torch.equal(made.long(), plain_tensor(labels).long())
            found.append(None if is_same else self._score(case.case_id, made, reference).cases[0])
        return found

    def _score(self, case_id: str, labels: Tensor, reference: Tensor) -> EvalResult:
        # Without its affine, since the prediction is already on the reference's grid.
        return self.evaluator.evaluate({case_id: plain_tensor(labels)}, {case_id: reference})

    def _median_components(self, classes: Sequence[ScoredClass]) -> dict[int, float | None]:
        """Return the median size of the references' components of each class; None if there are none."""
        found = list(in_order((partial(self._components, classes, case_id) for case_id in self.case_ids), self.jobs))
        pooled = {each.index: [size for of_case in found for size in of_case[each.index]] for each in classes}
        return {index: float(np.median(sizes)) if sizes else None for index, sizes in pooled.items()}

    def _components(self, classes: Sequence[ScoredClass], case_id: str) -> Mapping[int, list[float]]:
        reference = plain_tensor(self.reference(case_id))
        voxel = float(np.prod(self.labels(case_id, ()).pixdim.numpy()))
        touching = scipy.ndimage.generate_binary_structure(reference.ndim - 1, reference.ndim - 1)
        sizes: dict[int, list[float]] = {each.index: [] for each in classes}
        for each in classes:
            mask = is_any_of(reference, each.ids)[0].numpy()
            for box in scipy.ndimage.find_objects(mask.astype(np.uint8)):
                parts, _ = scipy.ndimage.label(mask[box], structure=touching)
                sizes[each.index] += [float(size) * voxel for size in np.bincount(parts.ravel())[1:]]
        return sizes


def _applied(postprocessing: Pipeline, labels: MetaTensor) -> Tensor:
    """Return a label map after postprocessing, as in prediction."""
    # A copy, since MONAI's FillHoles writes into its input.
    data = {PREDICTION: _placed(plain_tensor(labels).clone(), labels)}
    return label_map_by(postprocessing, data, tuple(labels.shape[1:])).to(labels.dtype)


def _placed(values: Tensor, like: MetaTensor) -> MetaTensor:
    return MetaTensor(values, affine=like.affine)


def _judged(offer: _Offer, before: EvalResult, after: EvalResult) -> Trial:
    """Return whether to keep a step: its class improves in the mean and in most changed cases, and none gets worse."""
    index = None if offer.target is None else offer.target.index
    scores = _mean_dice(before, index), _mean_dice(after, index)
    pairs = [(_case_dice(old, index), _case_dice(new, index)) for old, new in zip(before, after, strict=True)]
    better, worse = (sum(sign * (new - old) > 0 for old, new in pairs) for sign in (1, -1))
    gain = scores[1] - scores[0]
    whose = "the mean Dice" if offer.target is None else f"the mean Dice of {offer.target.name}"
    if not gain >= LEAST_GAIN:
        reason = f"does not raise {whose}"
    elif better <= worse:
        reason = "helps fewer cases than it harms, or as many"
    elif fallen := _falls(before, after):
        reason = f"lowers the mean Dice of {', '.join(fallen)}"
    else:
        reason = ""
    return Trial(
        step=offer.step,
        target=None if offer.target is None else offer.target.name,
        before=scores[0],
        after=scores[1],
        better=better,
        worse=worse,
        kept=not reason,
        reason=reason or f"raises {whose} by {gain:.4f}; better in {better} cases, worse in {worse}",
    )


def _mean_dice(result: EvalResult, index: int | None) -> float:
    return result.mean_metrics["dice"] if index is None else result.class_means[index]["dice"]


def _case_dice(case: EvalCase, index: int | None) -> float:
    """Return the Dice of a case; 1 for a class in neither map, which is correct."""
    chosen = [metrics["dice"] for each, metrics in case.classes.items() if index in (None, each) and each != 0]
    return sum(1.0 if math.isnan(dice) else dice for dice in chosen) / len(chosen)


def _falls(before: EvalResult, after: EvalResult) -> list[str]:
    """Return the classes whose mean Dice decreases."""
    return [
        after.class_names.get(index, str(index))
        for index, means in before.class_means.items()
        if index != 0 and after.class_means[index]["dice"] < means["dice"] - LEAST_GAIN
    ]
