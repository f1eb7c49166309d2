"""Several experiments as one predictor, which averages their probabilities."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from monai.data import MetaTensor
from torch.nn import functional as F
from typing_extensions import override

from candy_monai.data.images.geometry import Geometry
from candy_monai.data.pipelines.description import Entry, OwnTransforms
from candy_monai.errors import BadInputError
from candy_monai.inference.buffers import MemoryEstimate, Tile
from candy_monai.inference.cases import CasePredictor
from candy_monai.inference.expected_overlap import ExpectedOverlap
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.inference.prediction import Prediction, PredictionListener, PreparedCase, build_prediction
from candy_monai.inference.quality import judge
from candy_monai.transforms.painting import label_ids, probabilities_of


class EnsemblePredictor(CasePredictor):
    """Predicts with several experiments, usually the folds of one plan, by the mean of their probabilities.

    Members with the same plan process an image in parallel: memory grows with their number and not with the image.
    Members with other plans use different grids and are averaged on the file's own grid, with the probabilities of all
    classes in memory.

    Args:
        members: The experiments' predictors.
        largest_component: Keep only the largest connected part of each class.
        memory: Bytes that a case may use in addition to the process's memory before; None for no limit.
        channels: The channels of the files or images to use; None for those of the first member.
        postprocessing: Transforms on the label map, at ``pred``, after the members' own; see `OwnTransforms`.
        thresholds: The probability that each region, or a single foreground class, must exceed, between 0 and 1; empty
            for 0.5. The probabilities of all classes are then held in memory.

    Raises:
        BadInputError: If there are no members, if their classes or channels differ, or if the number of thresholds is
            not that of the regions.
    """

    def __init__(
        self,
        members: Sequence[NetworkPredictor],
        *,
        largest_component: bool = False,
        memory: int | None = None,
        channels: Sequence[int] | None = None,
        postprocessing: Sequence[Entry] = (),
        thresholds: Sequence[float] = (),
    ) -> None:
        if not members:
            raise BadInputError("an ensemble needs at least one experiment")
        channels = members[0].channels.numbers if channels is None else channels
        super().__init__(largest_component=largest_component, memory=memory, channels=channels)
        self.members = tuple(members)
        self.thresholds = tuple(thresholds)
        self._postprocessing = tuple(postprocessing)
        first = members[0]
        for member in members[1:]:
            _check_alike(first, member)
        for member in members:
            member._limit_first_stage(memory)
        _ = self.channels
        num_thresholds = len(first.paints) or int(first.num_classes == 1)
        if self.thresholds and len(self.thresholds) != num_thresholds:
            raise BadInputError(
                f"{first.folder}: found {len(self.thresholds)} thresholds, expected {num_thresholds}, one for each "
                "region or for a single foreground class"
            )
        self._side_by_side = not self.thresholds and all(_same_grid(first, member) for member in members)
        for member in () if self._side_by_side else members:
            if member.preprocessor.own_postprocessing is None:
                raise BadInputError(
                    f"{member.folder}: its custom postprocessing needs logits on a single grid, but these experiments "
                    "preprocess images differently or use different windows, or thresholds were given: they cannot be "
                    "averaged"
                )

    @override
    def _warn_of_files(self) -> None:
        for member in self.members:
            member._warn_of_files()

    @property
    @override
    def num_channels(self) -> int:
        return self.members[0].num_channels

    @property
    @override
    def channel_names(self) -> tuple[str, ...]:
        return self.members[0].channel_names

    @property
    @override
    def num_dims(self) -> int | None:
        return self.members[0].num_dims

    @property
    @override
    def own_postprocessing(self) -> OwnTransforms:
        own = self.members[0].own_postprocessing
        return replace(own, postprocessing=[*own.postprocessing, *self._postprocessing])

    @property
    @override
    def classes(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        return self.members[0].classes

    @override
    def describe_models(self) -> list[dict[str, object]]:
        return [described for member in self.members for described in member.describe_models()]

    @override
    def prepare(self, case_id: str, image: MetaTensor) -> PreparedCase:
        prepared = self.members[0].prepare(case_id, image)
        others = () if self._side_by_side else self.members[1:]
        return replace(prepared, cases=(*prepared.cases, *(other.prepare(case_id, image).cases[0] for other in others)))

    @override
    def run(
        self, case: PreparedCase, *, probabilities: bool = False, listener: PredictionListener | None = None
    ) -> Prediction:
        models = [member.quality for member in self.members if member.quality is not None]
        if len(models) < len(self.members):
            return self._run(case, None, probabilities=probabilities, listener=listener)
        overlap = ExpectedOverlap(self.members[0].paints, thresholds=self.thresholds)
        prediction = self._run(case, overlap, probabilities=probabilities, listener=listener)
        images = [own.cases[0].image for _, own in self._own_cases(case)]
        return replace(prediction, quality=judge(overlap, prediction.labels, models, images))

    def _run(
        self,
        case: PreparedCase,
        overlap: ExpectedOverlap | None,
        *,
        probabilities: bool,
        listener: PredictionListener | None,
    ) -> Prediction:
        """Predict a preprocessed case, and add its mean scores to the overlap."""
        on_disk = self._goes_to_disk(case, probabilities=probabilities)
        told = [listener, *[None] * (len(self.members) - 1)]
        if not self._side_by_side:
            total: torch.Tensor | None = None
            for (member, own), listener in zip(self._own_cases(case), told, strict=True):
                part = member.run(own, on_disk=on_disk, probabilities=True, listener=listener).probabilities
                assert isinstance(part, MetaTensor)
                total = part.as_tensor() if total is None else total.add_(part.as_tensor())
                del part  # otherwise it stays in memory while the next one is computed
            assert total is not None
            whole = total.div_(len(self.members))
            if overlap is not None:
                overlap.add(whole, are_probabilities=True)
            return self._painted(case, whole, probabilities=probabilities)
        first = self.members[0]
        # Logits are resampled, and are the input of custom postprocessing.
        as_logits = case.cases[0].is_resampled or not first.preprocessor.paints_in_parts
        mean = _mean_as_logits if as_logits else _mean_probabilities
        tiles = [
            member.tiles(case, on_disk=on_disk, listener=listener)
            for member, listener in zip(self.members, told, strict=True)
        ]
        means = (mean(of_one_place, first.paints) for of_one_place in zip(*tiles, strict=True))
        return build_prediction(
            case,
            means if overlap is None else overlap.watched(means, are_probabilities=not as_logits),
            first.preprocessor,
            axis=first.slowest_axis(case.cases[0].image.shape[1:]),
            are_probabilities=not as_logits,
            with_probabilities=probabilities,
            device=first.device(),
        )

    def run_groups(
        self, case: PreparedCase, groups: Sequence[Sequence[int]], *, probabilities: bool = False
    ) -> Iterator[tuple[int, Prediction]]:
        """Predict a preprocessed case with several ensembles of members, running each member once.

        Args:
            case: From `prepare`.
            groups: The numbers of the members of each ensemble.
            probabilities: Whether class probabilities are returned, too.

        Yields:
            The number of a group with its prediction, as soon as its last member was run. The probabilities of each
            incomplete group are held in memory.
        """
        all_held = probabilities or any(len(group) > 1 for group in groups)
        on_disk = self._goes_to_disk(case, probabilities=all_held)
        totals: dict[int, torch.Tensor] = {}
        for number, (member, own) in enumerate(self._own_cases(case)):
            mine = [index for index, group in enumerate(groups) if number in group]
            shared = any(len(groups[index]) > 1 for index in mine)
            prediction = member.run(own, on_disk=on_disk, probabilities=probabilities or shared)
            for index in mine:
                if len(groups[index]) == 1:
                    yield index, self._finished(prediction, case)
                    continue
                part = prediction.probabilities
                assert isinstance(part, MetaTensor)
                if index in totals:
                    totals[index] += part.as_tensor()
                else:
                    totals[index] = part.as_tensor().clone()
                if number == max(groups[index]):
                    mean = totals.pop(index).div_(len(groups[index]))
                    yield index, self._finished(self._painted(case, mean, probabilities=probabilities), case)

    @override
    def estimate(self, geometry: Geometry) -> MemoryEstimate | None:
        return self._estimated(member.estimate(geometry) for member in self.members)

    @override
    def estimate_prepared(self, case: PreparedCase) -> MemoryEstimate | None:
        return self._estimated(member.estimate_prepared(own) for member, own in self._own_cases(case))

    def _estimated(self, of_members: Iterable[MemoryEstimate | None]) -> MemoryEstimate | None:
        estimates = list(of_members)
        known = [needed for needed in estimates if needed is not None]
        if len(known) < len(estimates):
            return None
        most = functools.reduce(MemoryEstimate.or_more, known)
        return most.with_members(len(known)) if self._side_by_side else most.with_probabilities()

    def _own_cases(self, case: PreparedCase) -> Iterator[tuple[NetworkPredictor, PreparedCase]]:
        """Yield each member with the case as preprocessed for that member."""
        for index, member in enumerate(self.members):
            yield member, replace(case, cases=(case.cases[0 if self._side_by_side else index],))

    def _painted(self, case: PreparedCase, mean: torch.Tensor, *, probabilities: bool) -> Prediction:
        """Return the prediction from probabilities on the file's grid."""
        ids = label_ids(mean, paints=self.members[0].paints, threshold=self.thresholds or 0.5)
        return Prediction(
            case_id=case.case_id,
            labels=MetaTensor(ids[None], meta=dict(case.image)),
            probabilities=MetaTensor(mean, meta=dict(case.image)) if probabilities else None,
        )


def _mean_probabilities(tiles: Sequence[Tile], paints: Sequence[int]) -> Tile:
    """Return the mean probabilities of members with the same tiles."""
    mean = probabilities_of(tiles[0].scores(), paints=paints)
    for tile in tiles[1:]:
        mean += probabilities_of(tile.scores(), paints=paints)
    return Tile(place=tiles[0].place, sums=mean.div_(len(tiles)))


def _mean_as_logits(tiles: Sequence[Tile], paints: Sequence[int]) -> Tile:
    """Return the mean probabilities as logits for resampling, so that members that agree keep their prediction.

    Computed in logarithms to avoid the logarithm of a probability of 0.
    """
    first = tiles[0].scores()
    if len(first) > 1 and not paints:
        mean = first.log_softmax(0)
        for tile in tiles[1:]:
            mean = torch.logaddexp(mean, tile.scores().log_softmax(0))
        return Tile(place=tiles[0].place, sums=mean)
    yes, no = F.logsigmoid(first), F.logsigmoid(-first)
    for tile in tiles[1:]:
        scores = tile.scores()
        yes, no = torch.logaddexp(yes, F.logsigmoid(scores)), torch.logaddexp(no, F.logsigmoid(-scores))
    return Tile(place=tiles[0].place, sums=yes - no)


def _check_alike(first: NetworkPredictor, other: NetworkPredictor) -> None:
    named = (first.channel_names, other.channel_names)
    for what, mine, theirs in (
        ("channels", first.num_channels, other.num_channels),
        ("channels", *(p.channel_names if all(map(any, named)) else () for p in (first, other))),
        ("spatial axes", first.num_dims, other.num_dims),
        ("classes", first.num_classes, other.num_classes),
        ("ids of regions", first.paints, other.paints),
        ("postprocessing", *(list(p.own_postprocessing.postprocessing) for p in (first, other))),
        ("names of the classes", *(p.plan.class_names if p.plan else () for p in (first, other))),
    ):
        if mine != theirs:
            raise BadInputError(
                f"{other.folder}: found {what} {theirs}, but {first.folder} has {mine}: they cannot be averaged"
            )


def _same_grid(first: NetworkPredictor, other: NetworkPredictor) -> bool:
    """Return whether two predictors have the same inputs and windows, so that a case can be preprocessed for both."""
    if first.plan is not None and first.plan.num_previous:
        return False  # each has the prediction of its own first stage

    def what_counts(member: NetworkPredictor) -> tuple[object, ...]:
        plan, pipelines = member.plan, member.preprocessor.pipelines
        of_plan = () if plan is None else (plan.resampling, plan.patch_shape, plan.divisor, plan.regions)
        return pipelines["preprocessing"], pipelines["postprocessing"], *of_plan, member.describe_windows()

    return what_counts(first) == what_counts(other)
