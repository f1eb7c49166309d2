"""Predictions of the cases of a cross-validation by the models that were not trained on them, stored compactly on disk.

`CrossValidation` reads which models these are and refuses folds that do not belong together; `OutOfFold` predicts, and
reads what was predicted.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.datasets.nnunet_description import NNUNetCase
from candy_monai.data.images.reading import load_image
from candy_monai.data.inspection.digest import Digests, file_digests
from candy_monai.data.planning.files import plan_of
from candy_monai.data.values import join_names, repeated
from candy_monai.data.workers import locked
from candy_monai.errors import BadInputError, ExperimentError
from candy_monai.evaluation.measuring import ComparedCase
from candy_monai.experiment.checkpoints import BEST
from candy_monai.experiment.description import DESCRIPTION, ExperimentDescription, read_description
from candy_monai.experiment.runs import (
    configurations_below,
    cross_validations_below,
    folds_below,
    summarize,
    what_is_below,
)
from candy_monai.experiment.state import weight_file
from candy_monai.files import atomic_path, digest_of_file
from candy_monai.inference.ensemble import EnsemblePredictor
from candy_monai.inference.inputs import CaseFiles, input_case
from candy_monai.inference.network_predictor import NetworkPredictor
from candy_monai.inference.prediction import Prediction
from candy_monai.recipes.predict import load_experiments
from candy_monai.recipes.trained_on import change_in_words, dataset_again
from candy_monai.transforms.painting import label_ids

THRESHOLDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
"""The thresholds that are tried for regions. For each voxel, only the number of exceeded thresholds is stored."""

PLACE = "out_of_fold"
"""The folder of predictions in that of a cross-validation."""

_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, kw_only=True)
class CrossValidation:
    """The models of a finished cross-validation, and the cases that each fold left out.

    Attributes:
        folder: Its folder.
        configurations: The configurations that were trained on each fold.
        experiments: Of each fold by its number: the experiment of each configuration, in their order.
        left_out: For each fold the cases that its models were not trained on.
        dataset: The dataset.
        digests: The digests of its present content.
        change: A warning if this is not the content that the models were trained on; otherwise None.
        paints: The id that each overlapping region paints, in the order of painting; empty without regions.
    """

    folder: Path
    configurations: tuple[str, ...]
    experiments: Mapping[int, tuple[Path, ...]]
    left_out: Mapping[int, tuple[str, ...]]
    dataset: NNUNetDataset
    digests: Digests
    change: str | None
    paints: tuple[int, ...]

    @classmethod
    def read(cls, folder: PathLike, *, dataset: PathLike | None = None) -> Self:
        """Read a folder written by ``candy-monai crossval``, and check that its folds belong together.

        The dataset's folder is None for its original path.

        Raises:
            ExperimentError: If the folder is not a cross-validation, a fold has no finished run, or folds have
                different datasets, classes or cases.
            BadInputError: If the dataset is not there, or lacks a case.
        """
        folder = Path(folder)
        places = configurations_below(folder) or ({"": folder} if folds_below(folder) else {})
        if not places:
            found = cross_validations_below(folder)
            below = (
                f"; in it are {join_names([str(path) for path in found])}: give one" if found else what_is_below(folder)
            )
            raise ExperimentError(
                f"{folder}: not a cross-validation, expected a folder that candy-monai crossval wrote{below}"
            )
        runs = {name: _finished_folds(place) for name, place in places.items()}
        described = {run: read_description(run) for folds in runs.values() for run in folds.values()}
        _check_same_task(described)
        first_name, first = next(iter(runs.items()))
        left_out = {number: _validation_of(run, described[run]) for number, run in first.items()}
        for name, folds in runs.items():
            theirs = {number: _validation_of(run, described[run]) for number, run in folds.items()}
            if {n: set(cases) for n, cases in theirs.items()} != {n: set(cases) for n, cases in left_out.items()}:
                raise ExperimentError(
                    f"{folder}: the folds of {name} leave out other cases than those of {first_name}: train all "
                    "configurations on the same folds, with one candy-monai crossval --configurations"
                )
        _check_left_out_once(left_out)
        one = described[next(iter(first.values()))]
        records = [each.dataset for each in described.values() if each.dataset is not None]  # others are refused
        opened = dataset_again(records, dataset)
        digests = file_digests(opened.description, opened.cases)
        plan = None if one.plan is None else plan_of(one.plan, next(iter(first.values())) / DESCRIPTION)
        names = list(places) if first_name else [_configuration_of(described)]
        return cls(
            folder=folder,
            configurations=tuple(names),
            experiments={number: tuple(folds[number] for folds in runs.values()) for number in first},
            left_out=left_out,
            dataset=opened,
            digests=digests,
            change=change_in_words(records[0], opened, digests),
            paints=() if plan is None else tuple(region.paints for region in plan.regions),
        )

    @property
    def cases(self) -> dict[str, NNUNetCase]:
        """The cases that were left out by a fold, by their ids, in the order of the dataset."""
        wanted = {case_id for cases in self.left_out.values() for case_id in cases}
        return {case.case_id: case for case in self.dataset.cases if case.case_id in wanted}

    def experiments_of(self, configurations: Sequence[str]) -> list[Path]:
        """Return the experiments of some configurations, fold by fold."""
        chosen = [self.configurations.index(name) for name in configurations]
        return [experiments[place] for place in chosen for experiments in self.experiments.values()]


@dataclass(frozen=True, kw_only=True)
class OutOfFold:
    """Predictions on disk, in one compressed file for each candidate and case.

    A file holds label ids, and for regions also how many of `THRESHOLDS` each probability exceeds.

    Attributes:
        crossval: Whose models predict.
        candidates: The configurations that are averaged, for each candidate by its name.
    """

    crossval: CrossValidation
    candidates: Mapping[str, tuple[str, ...]]

    def predict(
        self,
        *,
        memory: int | None = None,
        rank: int = 0,
        on_progress: Callable[[str], None],
        **options: Any,
    ) -> None:
        """Predict the cases that are not yet predicted with these weights from these files.

        Each network is run once per case. A fold is locked meanwhile: other processes wait for its predictions.

        Args:
            memory: As for `load_experiments`.
            rank: The number of this process among those that predict together; each begins with another fold.
            on_progress: Called with a line of text for each fold.
            **options: Further keywords of `load_experiments`.
        """
        place, numbers = self.crossval.folder / PLACE, list(self.crossval.experiments)
        place.mkdir(parents=True, exist_ok=True)
        for index in range(len(numbers)):
            number = numbers[(rank + index) % len(numbers)]
            lock = place / f".fold-{number}.lock"
            with locked(lock):
                self._predict_fold(number, memory, on_progress, options)
                with suppress(OSError):  # processes that wait for it find everything done
                    lock.unlink()

    def _predict_fold(
        self, number: int, memory: int | None, say: Callable[[str], None], options: Mapping[str, Any]
    ) -> None:
        cases, digests = self.crossval.cases, self.crossval.digests.cases
        experiments = self.crossval.experiments[number]
        weights = " ".join(digest_of_file(weight_file(run, BEST)) for run in experiments)
        wanted = {case_id: f"{weights} {digests[case_id]}" for case_id in self.crossval.left_out[number]}
        left = [
            cases[case_id]
            for case_id, made in wanted.items()
            if not all(made_by(self.file(name, case_id)) == made for name in self.candidates)
        ]
        if not left:
            say(f"Fold {number}: all cases are predicted already")
            return
        say(f"Fold {number}: predicting {len(left)} case{'s' * (len(left) != 1)}")
        members = [load_experiments([run], on_progress=lambda _: None, **options) for run in experiments]
        ensemble = EnsemblePredictor(
            [member for member in members if isinstance(member, NetworkPredictor)], memory=memory
        )
        for case in left:
            self._predict_case(case, ensemble, wanted[case.case_id])

    def labels(self, candidate: str, case_id: str, *, thresholds: Sequence[float] = ()) -> MetaTensor:
        """Return a predicted label map ``(1, *spatial)`` on the grid of its reference.

        Each region has a threshold, one of `THRESHOLDS`; without them the label map is as it was predicted.

        Raises:
            BadInputError: If its file cannot be read.
        """
        file = self.file(candidate, case_id)
        try:
            with np.load(file) as found:
                affine, values = found["affine"], found["levels" if thresholds else "labels"]
        except _UNREADABLE as error:
            raise BadInputError(
                f"{file}: cannot be read ({type(error).__name__}: {error}); remove it, and the same "
                "command predicts the case again"
            ) from error
        affine, levels = torch.from_numpy(affine), torch.from_numpy(values)
        if not thresholds:
            return MetaTensor(levels[None], affine=affine)
        exceeded = [THRESHOLDS.index(threshold) for threshold in thresholds]
        ids = label_ids(levels, paints=self.crossval.paints, threshold=exceeded)
        return MetaTensor(ids[None], affine=affine)

    def reference(self, case_id: str) -> Tensor:
        """Return the reference of a case, label ids ``(1, *spatial)``."""
        label = self.crossval.cases[case_id].label
        assert label is not None  # training cases have one
        reference: Tensor = load_image(label, is_label=True)
        return reference

    def _predict_case(self, case: NNUNetCase, ensemble: EnsemblePredictor, made: str) -> None:
        found = input_case(CaseFiles(case.images), channels=ensemble.channels, num_dims=ensemble.num_dims)
        prepared = ensemble.prepare(case.case_id, found.load(ensemble.channels, num_dims=ensemble.num_dims))
        names = list(self.candidates)
        places = [[self.crossval.configurations.index(each) for each in self.candidates[name]] for name in names]
        for index, prediction in ensemble.run_groups(prepared, places, probabilities=self.has_thresholds):
            self._write(names[index], case, prediction, made)

    @property
    def has_thresholds(self) -> bool:
        """Whether classes are overlapping regions, whose thresholds can be chosen."""
        return bool(self.crossval.paints)

    def _write(self, candidate: str, case: NNUNetCase, prediction: Prediction, made: str) -> None:
        reference = self.reference(case.case_id)
        labels = _on_grid_of(prediction.labels, reference, case.case_id)
        arrays = {
            "labels": labels.as_tensor()[0].numpy(),
            "affine": labels.affine.numpy(),
            "made_by": np.array(made),
        }
        if prediction.probabilities is not None:
            probabilities = _on_grid_of(prediction.probabilities, reference, case.case_id).as_tensor()
            levels = torch.zeros_like(probabilities, dtype=torch.uint8)
            for threshold in THRESHOLDS:
                levels += probabilities > threshold
            # From how many thresholds a probability exceeds follows which: of level n the first n.
            arrays["levels"] = levels.numpy()
        file = self.file(candidate, case.case_id)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file, durable=False) as apart, apart.open("wb") as stream:
            np.savez_compressed(stream, **arrays)

    def file(self, candidate: str, case_id: str) -> Path:
        """Return the file of a candidate's prediction of a case."""
        return self.crossval.folder / PLACE / candidate / f"{case_id}.npz"


def _on_grid_of(prediction: MetaTensor, reference: Tensor, case_id: str) -> MetaTensor:
    placed = ComparedCase(case_id=case_id, prediction=prediction, reference=reference).on_one_grid().prediction
    assert isinstance(placed, MetaTensor)
    return placed


def made_by(file: Path) -> str | None:
    """Return the digests of the weights and the case from which a file was made; None if it is missing or damaged."""
    try:
        with np.load(file) as found:
            return str(found["made_by"])
    except _UNREADABLE:
        return None


def _finished_folds(folder: Path) -> dict[int, Path]:
    """Return the experiment of each fold; refuse a cross-validation that lacks one."""
    folds = folds_below(folder)
    lacking = [str(number) for number, run in folds.items() if run is None]
    lacking += [str(n) for n, run in folds.items() if run is not None and summarize(run).is_finished is not True]
    if lacking or not folds:
        which = f"fold {', '.join(lacking)}" if folds else "every fold"
        raise ExperimentError(
            f"{folder}: {which} has no finished run, and every case must be predicted by a model that was not trained "
            "on it: the same candy-monai crossval command trains what is missing"
        )
    return {number: run for number, run in folds.items() if run is not None}


def _check_same_task(described: Mapping[Path, ExperimentDescription]) -> None:
    """Raise ExperimentError if experiments have different datasets or classes."""
    (first, one), *others = described.items()
    for run, other in described.items():
        if other.dataset is None or other.plan is None:
            raise ExperimentError(
                f"{run}: was not trained with a plan (candy-monai train), so its dataset and its cases are unknown"
            )
    for run, other in others:
        mine, its = one.dataset, other.dataset
        assert mine is not None
        assert its is not None
        for what, expected, found in (
            ("the dataset", mine.name, its.name),
            ("the dataset's content (digest)", mine.digest, its.digest),
            ("channels", mine.channel_names, its.channel_names),
            ("labels", mine.labels, its.labels),
        ):
            if expected != found:
                raise ExperimentError(
                    f"{run}: {what} is {found}, but for {first} it is {expected}: folds of different data have no "
                    "common score; train them again on one dataset"
                )


def _validation_of(run: Path, description: ExperimentDescription) -> tuple[str, ...]:
    dataset = description.dataset
    validation = (dataset and dataset.validation) or ()
    if not validation:
        raise ExperimentError(f"{run}: has no validation cases, so it cannot be scored")
    if seen := sorted(set(validation) & set((dataset and dataset.training) or ())):
        raise ExperimentError(f"{run}: was trained on {join_names(seen)}, which are also among its validation cases")
    return tuple(validation)


def _configuration_of(described: Mapping[Path, ExperimentDescription]) -> str:
    """Return the configuration of folds that were trained without naming one; they may have taken different ones."""
    plans = {plan_of(each.plan, run / DESCRIPTION).configuration for run, each in described.items() if each.plan}
    return "_".join(sorted(plans))


def _check_left_out_once(left_out: Mapping[int, Sequence[str]]) -> None:
    if twice := repeated(case_id for cases in left_out.values() for case_id in cases):
        raise ExperimentError(f"{join_names(twice)} is left out by several folds: its score would count twice")
