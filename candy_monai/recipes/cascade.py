"""The first stage of a cascade: what it predicted for the training cases, and its models for the second stage.

A cascade's second network learns from label maps that models at a lower resolution predicted for cases that they were
not trained on, since those of training cases would be too good. Each fold of the second stage predicts with the model
of the first stage that left out the same cases, so that its own scores are those of unseen cases.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from monai.data import MetaTensor

from candy_monai.aliases import PathLike
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.inspection.digest import Digests
from candy_monai.data.pipelines.description import OwnTransforms
from candy_monai.data.planning.files import plan_of
from candy_monai.data.planning.plan import Plan
from candy_monai.data.values import join_names
from candy_monai.errors import BadInputError, SettingsError
from candy_monai.experiment.checkpoints import BEST
from candy_monai.experiment.description import DESCRIPTION, read_description
from candy_monai.experiment.runs import configurations_below
from candy_monai.experiment.state import weight_file
from candy_monai.files import digest_of_file
from candy_monai.inference.predictor import PREVIOUS_STAGE
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.out_of_fold import CrossValidation, OutOfFold, made_by
from candy_monai.registry import bundle_of_network

FIRST: Final = "3d_lowres"
"""The configuration of the first stage."""
SECOND: Final = "3d_cascade"
"""The configuration of the second stage."""


@dataclass(frozen=True, kw_only=True)
class FirstStage:
    """A cross-validation at a lower resolution.

    Attributes:
        crossval: The cross-validation, of one configuration.
        predictions: Its predictions of the cases that each fold left out.
    """

    crossval: CrossValidation
    predictions: OutOfFold

    @classmethod
    def open(cls, folder: PathLike, dataset: NNUNetDataset, plan: Plan) -> Self:
        """Open the first stage for a second one with this dataset and plan.

        The folder is that of the cross-validation, or of one of several configurations which has it.

        Raises:
            BadInputError: If it is not a finished cross-validation of this dataset whose models have the same classes.
        """
        folder = Path(folder)
        crossval = CrossValidation.read(configurations_below(folder).get(FIRST, folder), dataset=dataset.folder)
        if len(crossval.configurations) > 1:
            raise BadInputError(
                f"{folder}: a cross-validation of {', '.join(crossval.configurations)}, none of which is {FIRST}: give "
                f"one with candy-monai crossval {dataset.folder} --configuration {FIRST}"
            )
        for run in crossval.experiments_of(crossval.configurations):
            description = read_description(run)
            theirs = plan_of(description.plan or {}, run / DESCRIPTION)
            if theirs.num_previous or (theirs.class_names, theirs.regions) != (plan.class_names, plan.regions):
                found = "is a second stage itself" if theirs.num_previous else "has other classes"
                raise BadInputError(
                    f"{run}: cannot be the first stage of a cascade for {dataset.folder}, since it {found}; give a "
                    f"cross-validation of the configuration {FIRST}"
                )
            if description.bundle is None:
                raise BadInputError(
                    f"{run}: trained by {description.trainer}, whose network only its own file builds, and the second "
                    "stage must open it by itself: train the first stage with a bundle"
                )
        if missing := sorted(set(dataset.case_ids) - crossval.cases.keys()):
            raise BadInputError(
                f"{folder}: no fold left out {join_names(missing)}, so there is no prediction of the first stage to "
                "train the second one on: cross-validate all cases of the dataset"
            )
        (name,) = crossval.configurations
        return cls(crossval=crossval, predictions=OutOfFold(crossval=crossval, candidates={name: (name,)}))

    def predict(self, *, device: str, rank: int = 0, on_progress: Callable[[str], None]) -> None:
        """Predict the cases that are not yet predicted; arguments are those of `OutOfFold.predict`."""
        on_progress(f"First stage of the cascade: {self.crossval.folder}")
        if self.crossval.change is not None:
            on_progress(self.crossval.change)
        self.predictions.predict(device=device, rank=rank, on_progress=on_progress)

    def label_map(self, case_id: str) -> MetaTensor:
        """Return what the first stage predicted for a case, ids ``(1, *spatial)`` on the grid of its label's file."""
        return self.predictions.labels(self._name, case_id)

    def digests(self, digests: Digests) -> Digests:
        """Return the digests of a dataset, changed by the weights with which the first stage predicted each case."""
        cases = {
            case_id: _digest(digest, str(made_by(self.predictions.file(self._name, case_id))))
            for case_id, digest in digests.cases.items()
        }
        return replace(digests, whole=_digest(digests.whole, *cases.values()), cases=cases)

    @property
    def weights_digest(self) -> str:
        """The digest of the weights of all its models."""
        runs = self.crossval.experiments_of(self.crossval.configurations)
        return _digest(*(digest_of_file(weight_file(run, BEST)) for run in runs))

    def files_for(self, validation: Sequence[str]) -> dict[str, Path]:
        """Return the files of the model that left out these cases, by their names in the experiment that needs them.

        Raises:
            BadInputError: If there is none.
        """
        for number, left_out in self.crossval.left_out.items():
            if set(left_out) == set(validation):
                (run,) = self.crossval.experiments[number]
                found = {DESCRIPTION: run / DESCRIPTION, BEST: weight_file(run, BEST)}
                return {f"{PREVIOUS_STAGE}/{name}": file for name, file in found.items()}
        raise BadInputError(
            f"{self.crossval.folder}: none of its folds left out exactly {join_names(validation)}, the validation "
            "cases of the second stage: train both stages on the same folds (--splits, --num-folds, --groups, "
            "--stratify)"
        )

    @property
    def _name(self) -> str:
        return self.crossval.configurations[0]


def first_stage_of(
    options: TrainOptions,
    dataset: NNUNetDataset,
    plan: Plan,
    own: OwnTransforms | None,
    left_out: Iterable[Sequence[str]],
) -> FirstStage | None:
    """Return the first stage of runs with this plan, before it has predicted anything; None for other plans.

    A fold of it must have left out the validation cases of each run, ``left_out``, too.

    Raises:
        BadInputError: If it is missing or does not fit, or other options do not fit a cascade.
    """
    if plan.num_previous == 0:
        if options.previous is not None:
            raise SettingsError(f"--previous is for the second stage of a cascade: give --configuration {SECOND}, too")
        return None
    check_second_stage(options, own)
    if options.previous is None:
        raise SettingsError(
            f"the configuration {SECOND} needs a first stage: give --previous with the folder of a cross-validation of "
            f"{FIRST}, or train both with candy-monai crossval {dataset.folder} --configurations {FIRST},{SECOND}"
        )
    stage = FirstStage.open(options.previous, dataset, plan)
    for validation in left_out:
        stage.files_for(validation)
    return stage


def check_second_stage(options: TrainOptions, own: OwnTransforms | None, first: type[object] | None = None) -> None:
    """Refuse options and transforms of the user's own that a cascade's second stage cannot be trained with.

    ``first`` is the trainer of the first stage, if it is trained by the same command.

    Raises:
        SettingsError: With the reason.
    """
    reason = None
    if options.init_from is not None:
        reason = "it starts from new weights: leave out --init-from"
    elif own is not None and (own.preprocessing or own.augmentation):
        reason = (
            "it takes no preprocessing or augmentation of your own, which would not know the label map of the first "
            "stage: leave them out (--transforms)"
        )
    elif first is not None and bundle_of_network(first) is None:
        reason = f"{first.__name__} builds its network itself, and the first stage must be a bundle's"
    if reason is not None:
        raise SettingsError(f"the configuration {SECOND} cannot be trained, since {reason}")


def _digest(*parts: str) -> str:
    return hashlib.blake2b(" ".join(parts).encode(), digest_size=8).hexdigest()
