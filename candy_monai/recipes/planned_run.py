"""A run that follows a plan, from its first step to the scores of its best weights. Chooses no dataset and no fold."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from candy_monai.attachment import Precision
from candy_monai.data.datasets.folds import Fold, splits_as_text
from candy_monai.data.datasets.nnunet_description import NNUNetCase
from candy_monai.data.pipelines.description import OwnTransforms
from candy_monai.data.planning.plan import Plan
from candy_monai.evaluation.evaluator import Evaluator
from candy_monai.experiment.description import DatasetRecord, example_shape, read_description
from candy_monai.frontends.base import Frontend
from candy_monai.inference.found import CaseFiles
from candy_monai.inference.loading import load_predictor
from candy_monai.inference.predictor import Predictor
from candy_monai.processes import Processes
from candy_monai.recipes.candidates import choose
from candy_monai.recipes.loaders import case_loader, evenly, patch_loader
from candy_monai.recipes.prepare import Prepared, device_memory
from candy_monai.recipes.speed import (
    FROM_FILES,
    RESERVE_S,
    TIMES_FASTER,
    Speed,
    fit_to_time,
    measure_speed,
    num_scored,
    usable_s,
)
from candy_monai.training.resume import Continuation
from candy_monai.training.segmentation import SegmentationTrainer
from candy_monai.training.trainer import add_to_folder
from candy_monai.training.validation import certainty

VALIDATION_SCORES = "validation.json"
"""The scores of the best weights on whole cases, in the experiment folder; written last."""

SPLITS = "splits_final.json"
"""The folds of a run, in nnU-Net's format, in the experiment folder and the store."""


FEWEST_USEFUL_STEPS = 50
"""With fewer steps in its budget a run says that it will have learned little."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """Everything that decides a run, before its first step."""

    prepared: Prepared
    plan: Plan
    training: tuple[str, ...]
    validation: tuple[str, ...]
    trainer_class: type[SegmentationTrainer]
    seed: int
    device: torch.device
    out: Path
    frontend: type[Frontend] | None = None
    processes: Processes = dataclasses.field(default_factory=Processes)
    amp: Precision = None
    time_limit_s: float | None = None
    save_every: int | str | None = None
    num_scored: int | None = None
    folds: tuple[Fold, ...] = ()
    own: OwnTransforms = dataclasses.field(default_factory=OwnTransforms)
    seconds_left: Callable[[], float] | None = None
    speed: Speed | None = None

    def fitted_to(self, seconds_left: Callable[[], float], on_progress: Callable[[str], None]) -> PlannedRun:
        """Return this run with as many steps as fit into the time."""
        num_cases = len(self.validation)
        plan, speed = choose(
            self.plan,
            measure=lambda plan, precisions: measure_speed(
                dataclasses.replace(self, plan=plan)._trainer(), precisions=precisions
            ),
            num_steps=lambda speed: usable_s(speed, seconds_left(), num_cases) / speed.step_s,
            memory_bytes=device_memory(str(self.device)),
            may_resize=self.trainer_class.follows_filters,
        )
        seconds = seconds_left()
        plan = fit_to_time(
            plan,
            speed,
            seconds=seconds,
            num_cases=num_cases,
            num_training_cases=math.ceil(len(self.training) / self.processes.count),
        )
        num_epochs = plan.num_epochs // TIMES_FASTER
        on_progress(
            f"One step of {_step_as_text(plan)} takes {speed.step_s:.2f} s in {speed.amp or 'float32'}: "
            f"about {num_epochs} epochs of {plan.iterations_per_epoch} steps fit into the budget"
        )
        if num_cases and plan.num_validation_cases is not None:
            every = "each epoch" if plan.validate_every == 1 else f"every {plan.validate_every} epochs and at the end"
            on_progress(f"Validating on {plan.num_validation_cases} of {num_cases} cases, {every}")
        if num_epochs * plan.iterations_per_epoch < FEWEST_USEFUL_STEPS:
            on_progress("Warning: so few steps teach a network little; give a longer budget")
        limit = usable_s(speed, seconds, num_cases)
        scored = num_scored(speed, seconds, num_cases)
        # Each process has measured by itself; the first one's word counts for all.
        plan, amp, limit, scored = self.processes.broadcast((plan, speed.amp, limit, scored))
        return dataclasses.replace(
            self, plan=plan, amp=amp, time_limit_s=limit, num_scored=scored, seconds_left=seconds_left, speed=speed
        )

    def train(self, note: str) -> Path:
        """Train, score the best weights on whole cases from their files, and return the experiment folder."""
        trainer = self._trainer()
        self._prepare(trainer)
        limit_s = self.time_limit_s
        if limit_s is not None and self.seconds_left is not None and self.speed is not None:
            # What was decided meanwhile has taken time, too.
            limit_s = max(self.speed.step_s, usable_s(self.speed, self.seconds_left(), len(self.validation)))
        trainer.train(
            self.plan.num_epochs,
            note=note,
            seed=self.seed,
            amp=self.amp,
            early_stop_tolerance=None,
            validate_every=self.plan.validate_every,
            time_limit_s=self.processes.broadcast(limit_s),
            save_every=self.save_every,
        )
        return self._scored(trainer)

    def resume(self, folder: Path, num_epochs: int | None, schedule: Continuation | None, *, force: bool) -> Path:
        """Go on with this run where it was last saved, and end as `train` does."""
        trainer = self._trainer()
        self._prepare(trainer)
        trainer.recover_from(folder).continue_training(num_epochs, schedule=schedule, force=force)
        return self._scored(trainer)

    def _prepare(self, trainer: SegmentationTrainer) -> None:
        files = {SPLITS: splits_as_text(self.folds)} if self.folds else {}
        add_to_folder(trainer, facts={"dataset": self._record().to_dict()}, files=files)
        if self.frontend is not None:
            trainer.set_frontend(self.frontend)

    def _scored(self, trainer: SegmentationTrainer) -> Path:
        folder = trainer.experiment_folder()
        if not self.validation or not self.processes.is_first:
            return folder
        predictor = self._predictor(trainer, folder)
        cases = self._affordable(predictor)
        images = {case.case_id: CaseFiles(case.images) for case in cases}  # in the order of the dataset
        references = {case.case_id: case.label for case in cases if case.label is not None}
        result = Evaluator().predict_and_evaluate(images, references, predictor)
        result.save(folder / VALIDATION_SCORES)
        is_all = len(cases) == len(self.validation)
        number = f"all {len(cases)}" if is_all else f"{len(cases)} of {len(self.validation)}"
        few = "" if is_all else " (the budget holds no more)"
        _, error = certainty([[case.metrics["dice"] for case in result]])
        noise = f" (standard error {error:.4f})" if math.isfinite(error) else ""
        dice = result.mean_metrics["dice"]
        trainer.log(
            f"The best weights on {number} validation cases{few}, in their own geometry: Dice {dice:.4f}{noise}"
        )
        return folder

    def _affordable(self, predictor: Predictor) -> list[NNUNetCase]:
        """Return the validation cases to score at the end: all, unless the budget has no time left for them."""
        count = len(self.validation) if self.num_scored is None else self.num_scored
        if self.seconds_left is not None and self.speed is not None:
            left_s, case_s = self.seconds_left() - RESERVE_S, FROM_FILES * self.speed.case_s
            if count > 1 and count * case_s > 0.5 * left_s:  # the machine may be slower by now
                started = time.monotonic()
                first = next(case for case in self.prepared.dataset.cases if case.case_id in self.validation)
                predictor.predict(CaseFiles(first.images))
                left_s, case_s = self.seconds_left() - RESERVE_S, time.monotonic() - started
            count = max(1, min(count, math.floor(left_s / max(case_s, 1e-9))))
        chosen = set(evenly(self.validation, count))
        return [case for case in self.prepared.dataset.cases if case.case_id in chosen]

    def _predictor(self, trainer: SegmentationTrainer, folder: Path) -> Predictor:
        network = trainer.build_network(example_shape(folder, read_description(folder)))
        return load_predictor(folder, network=network, device=self.device, trust=self.own.trust)

    def _trainer(self) -> SegmentationTrainer:
        store = self.prepared.store
        trainer = self.trainer_class(
            self.out,
            patch_loader(
                store,
                self.training,
                self.plan,
                seed=self.seed,
                device=self.device,
                num_processes=self.processes.count,
                own=self.own,
            ),
            case_loader(store, evenly(self.validation, self.plan.num_validation_cases), device=self.device),
            device=self.device,
        )
        trainer.use_plan(self.plan)
        trainer.preprocessing, trainer.augmentation = self.own.preprocessing, self.own.augmentation
        trainer.postprocessing = self.own.postprocessing
        return trainer

    def _record(self) -> DatasetRecord:
        description, precision = self.prepared.dataset.description, self.prepared.store.precision
        return DatasetRecord(
            name=description.name,
            folder=str(self.prepared.dataset.folder.resolve()),
            store=str(self.prepared.store_folder.parent.resolve()),
            digest=self.prepared.fingerprint.digest,
            channel_names=tuple(description.channel_names),
            labels=dict(description.labels),
            file_ending=description.file_ending,
            training=tuple(self.training),
            validation=tuple(self.validation),
            num_scored=self.num_scored,
            store_precision=None if precision == "float32" else precision,
        )


def _step_as_text(plan: Plan) -> str:
    """Say what a step trains: the choices that a time decides."""
    patch = "x".join(map(str, plan.patch_shape))
    return f"{plan.batch_size} patches of {patch} through {plan.filters[0]} filters and more"
