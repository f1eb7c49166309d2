"""A run that follows a plan, from its loaders to the scores of its best weights."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from candy_monai.attachment import Precision
from candy_monai.data.datasets.folds import splits_as_text
from candy_monai.data.inspection.checks import SPLITS
from candy_monai.data.pipelines.description import PIPELINES, OwnTransforms, augmentation
from candy_monai.data.planning.explanation import explain
from candy_monai.data.planning.plan import ENTRIES, Plan
from candy_monai.data.samples.patches import EpochSampler, PatchDataset, StoredCases
from candy_monai.data.samples.store import CaseStore
from candy_monai.data.workers import usable_cores
from candy_monai.errors import BadInputError, ExperimentError, RunFailedError
from candy_monai.evaluation.results import EvalResult, interval
from candy_monai.evaluation.summaries import save_validation
from candy_monai.experiment.description import PREVIOUS, BudgetRecord, DatasetRecord, read_description
from candy_monai.experiment.events import Event, RunScored
from candy_monai.experiment.folder import VALIDATION_SCORES
from candy_monai.experiment.settings import TrainSettings
from candy_monai.frontends.base import Frontend
from candy_monai.inference.predictor import experiment_predictor
from candy_monai.metrics.interval import interval_as_text
from candy_monai.processes import Processes
from candy_monai.recipes.budget import (
    ENDING_S,
    FINAL_SHARE,
    FROM_FILES,
    TIMES_FASTER,
    Speed,
    allowances,
    fit_to_time,
    measure_speed,
    num_scored,
    usable_s,
)
from candy_monai.recipes.candidates import choose
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.prepare import Prepared, device_memory, evenly_spaced
from candy_monai.recipes.quality import Judged, in_words, uncalibrated
from candy_monai.recipes.slurm_job import job_facts
from candy_monai.recipes.trainers import network_again
from candy_monai.report.facts import FINDINGS, facts_of_data, findings_as_text
from candy_monai.report.observer import write_report_safely
from candy_monai.training.description import bundle_of
from candy_monai.training.options import SegmentationOptions
from candy_monai.training.planned import add_to_folder, forget_earlier_runs, observed_beyond_the_run
from candy_monai.training.resume import Continuation
from candy_monai.training.schedule import default_warm_up
from candy_monai.training.segmentation import SegmentationTrainer, own_criterion
from candy_monai.training.signals import Interrupted, how_to_resume, outlive_signals

TRAINER_ARGS = "trainer_args"
"""The entry of ``experiment.json`` with the trainer's attributes that the user set."""

FEWEST_USEFUL_STEPS = 50
"""With fewer steps in its budget a run says that it will have learned little."""

FEWEST_USEFUL_SHARE = 0.5
"""If less than this share of the time is left for training, a run warns that validation takes the rest."""

MAX_WORKERS = 8

_SLOWEST = 1 / 3
"""The lowest speed of the machine, as a share of the measured speed, at which a budget is still met."""

_SURELY = 0.25
"""If scoring takes at most this share of the time left, there is time for it even on a machine three times slower."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The time budget of a run, and the measured speed.

    Attributes:
        seconds_left: Returns the seconds of the budget that are left.
        speed: The measured speed.
        amp: The precision to train in.
        decided: Names of the plan's entries that it has decided.
    """

    seconds_left: Callable[[], float]
    speed: Speed
    amp: Precision
    decided: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """Everything that determines a run, before its first step."""

    prepared: Prepared
    options: TrainOptions
    trainer_class: type[SegmentationTrainer]
    own: OwnTransforms
    frontend: type[Frontend] | None
    seed: int
    device: torch.device
    processes: Processes
    num_scored: int | None = None
    fit: Fit | None = None
    budget: BudgetRecord | None = None

    def fitted_to(self, seconds_left: Callable[[], float], on_progress: Callable[[str], None]) -> PlannedRun:
        """Return this run with as many steps as fit into the time."""
        num_cases, budget_s = len(self.prepared.validation), self.options.budget_s or seconds_left()
        allowed_s, plan = allowances(budget_s), self.prepared.plan
        if self.options.init_from is not None:  # its weights are of this width
            plan = dataclasses.replace(plan, chosen=tuple(sorted({*plan.chosen, "filters"})))

        def measure(plan: Plan, precisions: Sequence[Precision] | None) -> Speed:
            timed = self.options.fixed_precisions or precisions
            return measure_speed(self._trainer(plan), precisions=timed, seconds=next(allowed_s))

        weighed = choose(
            plan,
            measure=measure,
            num_steps=lambda speed: usable_s(speed, seconds_left(), num_cases) / speed.step_s,
            memory_bytes=device_memory(self.device),
            may_resize=self.trainer_class.options.follows_filters,
            other=self.prepared.other,
        )
        speed, seconds = weighed.speed, seconds_left()
        plan = fit_to_time(
            weighed.plan,
            speed,
            seconds=seconds,
            num_cases=num_cases,
            num_training_cases=math.ceil(len(self.prepared.training) / self.processes.world_size),
            spent_s=budget_s - seconds,
        )
        num_epochs = plan.num_epochs // TIMES_FASTER
        on_progress(weighed.in_words())
        on_progress(
            f"Chosen: {weighed.candidates[0].in_words()}, {speed.step_s:.2f} s each in {speed.amp or 'float32'}: about "
            f"{num_epochs} epochs of {plan.iterations_per_epoch} steps fit into the budget"
        )
        if num_cases and plan.num_validation_cases is not None:
            every = "each epoch" if plan.validate_every == 1 else f"every {plan.validate_every} epochs and at the end"
            on_progress(f"Validating on {plan.num_validation_cases} of {num_cases} cases, {every}")
        if num_epochs * plan.iterations_per_epoch < FEWEST_USEFUL_STEPS:
            on_progress("Warning: so few steps are hardly enough to train a network; give a longer budget")
        training_s = num_epochs * plan.iterations_per_epoch * speed.step_s
        if training_s < FEWEST_USEFUL_SHARE * seconds:
            on_progress(
                f"Warning: only about {training_s:.0f} of the {seconds:.0f} s that are left are spent on training, "
                f"since scoring a case takes {speed.case_s:.1f} s; give a longer budget"
            )
        if (case_s := FROM_FILES * speed.case_s) > _SLOWEST * FINAL_SHARE * seconds:
            on_progress(
                f"Note: to score a single case at the end takes about {case_s:.0f} s: if the machine becomes slower "
                "meanwhile, the run may end later than its budget says"
            )
        # Each process has measured by itself; the result of the first one is used by all.
        plan, amp, scored = self.processes.broadcast((plan, speed.amp, num_scored(speed, seconds, num_cases)))
        decided = tuple(name for name in ENTRIES if getattr(plan, name) != getattr(self.prepared.plan, name))
        fit = Fit(seconds_left=seconds_left, speed=speed, amp=amp, decided=(*decided, "num_epochs"))
        record = BudgetRecord(
            budget_s=float(budget_s),
            usable_s=round(usable_s(speed, seconds, num_cases), 1),
            amp=amp,
            candidates=tuple(candidate.to_dict() for candidate in weighed.candidates),
        )
        prepared = dataclasses.replace(self.prepared, plan=plan)
        return dataclasses.replace(self, prepared=prepared, num_scored=scored, fit=fit, budget=record)

    def train(self) -> Path:
        """Train, score the best weights on whole cases from their files, and return the experiment folder."""
        trainer, plan, fit = self._ready_trainer(), self.prepared.plan, self.fit
        limit_s = None
        if fit is not None:
            # The decisions since then have taken time, too.
            left_s = usable_s(fit.speed, fit.seconds_left(), len(self.prepared.validation))
            if plan.validate_every >= plan.num_epochs // TIMES_FASTER:  # work done once has no known duration
                left_s -= (plan.num_validation_cases or len(self.prepared.validation)) * fit.speed.case_s
            limit_s = max(fit.speed.step_s, left_s)
        settings: dict[str, Any] = {
            name: getattr(self.options, name) for name in TrainSettings.names() if name in TrainOptions.names()
        } | {
            "num_epochs": plan.num_epochs,
            "seed": self.seed,
            "amp": (self.options.fixed_precisions or ("auto",))[0] if fit is None else fit.amp,
            "early_stop_tolerance": None,
            "save_report": not self.options.no_report,
            "validate_every": plan.validate_every,
            "time_limit_s": self.processes.broadcast(limit_s),
        }
        if fit is not None and self.options.init_from is not None and self.options.warm_up is None:
            settings["warm_up"] = default_warm_up(plan.num_epochs // TIMES_FASTER * plan.iterations_per_epoch)
        with _told_how_to_resume(trainer), observed_beyond_the_run(trainer) as tell:
            trainer.train(**settings)
            return self._scored(trainer, tell)

    def resume(self, folder: Path, num_epochs: int | None, schedule: Continuation | None, *, force: bool) -> Path:
        """Continue this run from its last saved state, and end as `train` does."""
        trainer = self._ready_trainer()
        with _told_how_to_resume(trainer), observed_beyond_the_run(trainer) as tell:
            trainer.resume(folder, num_epochs, schedule=schedule, force=force)
            return self._scored(trainer, tell)

    def _scored(self, trainer: SegmentationTrainer, tell: Callable[[Event], None]) -> Path:
        folder = trainer.experiment_folder()
        if not self.prepared.validation or not self.processes.is_main:
            return folder
        try:
            tell(self._score(trainer, folder))
        except BadInputError as error:  # a file that existed at the start: this is not bad input
            raise RunFailedError(
                f"{folder}: is trained, but its best weights could not be scored; once this is fixed, 'candy-monai "
                f"resume {folder}' scores them: {error}"
            ) from error
        return folder

    def _score(self, trainer: SegmentationTrainer, folder: Path) -> RunScored:
        description = read_description(folder)
        network = network_again(trainer, folder, description)
        predictor = experiment_predictor(folder, network=network, device=self.device, trust=self.own.trust)
        predictor.quality = uncalibrated(self.prepared, predictor.classes)
        judged = Judged(predictor)
        result, num_cases = self._evaluated(judged), len(self.prepared.validation)
        ends = interval(result)
        save_validation(folder, result, num_validation_cases=num_cases)
        if (calibration := judged.save(folder, result)) is not None:
            trainer.log(in_words(calibration), on_screen=False)
        is_all = len(result) == num_cases
        number = f"all {num_cases}" if is_all else f"{len(result)} of {num_cases}"
        scored = "the only validation case" if num_cases == 1 else f"{number} validation cases"
        few = "" if is_all else " (more do not fit into the budget)"
        noise = "" if ends is None else f" (95 % interval {interval_as_text(ends)})"
        dice = result.mean_metrics["dice"]
        score = "no Dice, since none of them has foreground" if math.isnan(dice) else f"Dice {dice:.4f}{noise}"
        trainer.log(f"The best weights on {scored}{few}, in the geometry of the files: {score}")
        if description.setting("save_report") is not False:
            write_report_safely(folder, trainer.log)  # once more, with these scores
        return RunScored(scores=result.named_means, num_cases=len(result), file=folder / VALIDATION_SCORES)

    def _evaluated(self, judged: Judged) -> EvalResult:
        """Score validation cases at the end: all, or as many as fit into the budget."""
        prepared = self.prepared
        order = {case.case_id: place for place, case in enumerate(prepared.dataset.cases)}
        count = len(prepared.validation) if self.num_scored is None else self.num_scored
        results: list[EvalResult] = []
        done: tuple[str, ...] = ()
        case_s: float | None = None
        while (number := self._affordable(count - len(done), case_s)) > 0:
            started = time.monotonic()
            chosen = evenly_spaced(prepared.validation, len(done) + number)
            added = set(chosen) - set(done)
            results.append(judged.score(case for case in prepared.dataset.cases if case.case_id in added))
            done, case_s = chosen, (time.monotonic() - started) / len(added)
        cases = sorted(itertools.chain.from_iterable(results), key=lambda case: order[case.case_id])
        return dataclasses.replace(results[0], cases=tuple(cases))

    def _affordable(self, most: int, case_s: float | None) -> int:
        """Return how many of the cases that are left to score next; ``case_s`` is None before the first is timed."""
        if self.fit is None or not most:
            return most
        left_s = self.fit.seconds_left() - ENDING_S
        if case_s is not None:
            return min(most, math.floor(max(0.0, 0.5 * left_s) / max(case_s, 1e-9)))
        # The machine may be slower by now: if time is short, one case is scored to find out.
        return most if most * FROM_FILES * self.fit.speed.case_s <= _SURELY * left_s else 1

    def _ready_trainer(self) -> SegmentationTrainer:
        trainer, folds = self._trainer(self.prepared.plan), self.prepared.folds
        facts: dict[str, Any] = {"dataset": self._record().to_dict()}
        facts |= job_facts(self.prepared.dataset.folder, self.options)
        if self.options.trainer_args:
            facts[TRAINER_ARGS] = dict(self.options.trainer_args)
        if self.budget is not None:
            facts["budget"] = self.budget.to_dict()
        files: dict[str, str | Path] = {FINDINGS: self._findings()}
        if folds:
            files[SPLITS] = splits_as_text(folds)
        if (stage := self.prepared.first_stage) is not None:
            files |= stage.files_for(self.prepared.validation)
            facts[PREVIOUS] = {"folder": str(stage.crossval.folder.resolve()), "weights": stage.weights_digest}
        add_to_folder(trainer, facts=facts, files=files)
        for note in self.prepared.notes:
            trainer.log(note, on_screen=False)
        if self.frontend is not None:
            trainer.set_frontend(self.frontend)
        return trainer

    def _trainer(self, plan: Plan) -> SegmentationTrainer:
        store, device = self.prepared.store, self.device
        patches = patch_loader(
            store,
            self.prepared.training,
            plan,
            seed=self.seed,
            device=device,
            num_processes=self.processes.world_size,
            own=self.own,
        )
        cases = case_loader(store, evenly_spaced(self.prepared.validation, plan.num_validation_cases), device=device)
        trainer = self.trainer_class(self.options.out, patches, cases, device=device)
        trainer.use_plan(plan)
        if self.options.no_references:
            forget_earlier_runs(trainer)
        trainer.options = SegmentationOptions(**{name: getattr(self.own, name) for name in PIPELINES})
        for name, value in (self.options.trainer_args or {}).items():
            setattr(trainer, name, tuple(value) if isinstance(value, list) else value)
        return trainer

    def _findings(self) -> str:
        prepared, fit = self.prepared, self.fit
        by_budget = () if fit is None else fit.decided
        choices = explain(
            prepared.plan, prepared.fingerprint, by_budget=by_budget, criterion_of=own_criterion(self.trainer_class)
        )
        return findings_as_text(prepared.warnings, choices, facts_of_data(prepared.fingerprint))

    def _record(self) -> DatasetRecord:
        description, precision = self.prepared.dataset.description, self.prepared.store.precision
        return DatasetRecord(
            name=description.name,
            folder=str(self.prepared.dataset.folder.resolve()),
            store=str(self.prepared.store.folder.parent.resolve()),
            digest=self.prepared.fingerprint.digest,
            channel_names=tuple(description.channel_names),
            labels=dict(description.labels),
            file_ending=description.file_ending,
            training=tuple(self.prepared.training),
            validation=tuple(self.prepared.validation),
            num_scored=self.num_scored,
            store_precision=None if precision == "float32" else precision,
        )


def num_workers(device: torch.device) -> int:
    """Return the number of processes that prepare batches: none on a CPU, where they would compete with the network."""
    return 0 if device.type == "cpu" else min(MAX_WORKERS, max(0, usable_cores() - 1))


@contextmanager
def _told_how_to_resume(trainer: SegmentationTrainer) -> Iterator[None]:
    """Log how to resume after Ctrl-C at the end of a run or while it is scored; before, the run does so itself."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        with suppress(ExperimentError):  # there is no folder yet
            folder = trainer.experiment_folder()
            trainer.log(how_to_resume(type(trainer), folder, is_planned=True, bundle=bundle_of(trainer)))
        raise


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

    Every patch is a function of the seed, the epoch and its position; the processes share the patches of an epoch.
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
        worker_init_fn=outlive_signals,
    )


def case_loader(store: CaseStore, case_ids: Sequence[str], *, device: torch.device) -> DataLoader[Any] | None:
    """Return a loader of whole preprocessed cases, one at a time; None if there is no case."""
    if not case_ids:
        return None
    workers = min(2, num_workers(device))
    return DataLoader(
        StoredCases(store, case_ids),
        batch_size=1,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=outlive_signals,
    )
