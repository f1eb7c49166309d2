"""The Optuna study of a sweep: its storage, the settings that its trials share, and its results as files."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, Trial, TrialState

from candy_monai.data.datasets.folds import Fold
from candy_monai.errors import SettingsError
from candy_monai.experiment.description import differences
from candy_monai.files import atomic_write_json, atomic_write_text
from candy_monai.optuna.forecast_pruner import HORIZON
from candy_monai.optuna.study_page import study_page
from candy_monai.recipes.options import OF_A_MACHINE, TrainOptions
from candy_monai.recipes.prepare import given_files
from candy_monai.recipes.sweep_space import SearchSpace

SWEEP = "sweep.json"
"""The file in a sweep's folder with the results of its trials."""
PAGE = "sweep.html"
"""The file in a sweep's folder with Optuna's plots of the study."""
JOURNAL = "study.journal"
"""The file in a sweep's folder with the study, if no other storage is given."""
SETTINGS = "candy_monai:sweep"
"""The attribute of a study with the settings that its trials share."""
EXPERIMENT = "candy_monai:experiment"
"""The attribute of a trial with the folder of its run."""
FAILURE = "candy_monai:failure"
"""The attribute of a failed trial with the reason."""
IS_INTERRUPTED = "candy_monai:interrupted"
"""The attribute of a trial whose run is continued by another trial."""
CONTINUES = "candy_monai:goes_on_with"
"""The attribute of a trial with the number of the trial whose run it continues."""

_OF_LATER_VERSIONS = ("plan", "validation", "content of transforms", "content of trainer", "content of init_from")
_UNFINISHED = (TrialState.RUNNING, TrialState.WAITING)


def first_of(trial: Trial | FrozenTrial) -> int:
    """Return the number of the trial that started a trial's run: its own, unless it continues an interrupted one."""
    return int(trial.user_attrs.get(CONTINUES, trial.number))


def is_interrupted(trial: FrozenTrial) -> bool:
    """Return whether the run of a trial is continued by another trial."""
    return bool(trial.user_attrs.get(IS_INTERRUPTED))


def journal_in(folder: Path) -> BaseStorage:
    """Return the storage of a study in a file of the sweep's folder."""
    path = str(folder / JOURNAL)
    lock = JournalFileOpenLock(path) if os.name == "nt" else None  # links need rights there
    return JournalStorage(JournalFileBackend(path, lock_obj=lock))


def open_study(
    name: str, *, storage: str | BaseStorage, pruner: BasePruner, settings: Mapping[str, Any], seed: int | None
) -> optuna.Study:
    """Return the study of this name: a new one, or the existing one if it belongs to the same sweep.

    Raises:
        SettingsError: If it belongs to another sweep, or the storage cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(
            study_name=name, storage=storage, direction="maximize", pruner=pruner, load_if_exists=True
        )
    except Exception as error:  # of each database its own
        reason = " ".join(str(error).split())
        raise SettingsError(f"--storage {storage}: cannot be opened ({type(error).__name__}: {reason})") from error
    # A sampler that is seeded alike whenever the sweep goes on would propose the same again.
    number = len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=None if seed is None else (seed + number) % 2**32)
    kept = study.user_attrs.get(SETTINGS)
    if kept is None:
        if number:
            raise SettingsError(f"the study {name!r} in this storage was not created by a sweep; choose another --name")
        study.set_user_attr(SETTINGS, settings)
    elif changed := differences({name: settings[name] for name in _OF_LATER_VERSIONS} | kept, settings):
        lines = "".join(f"\n  - {line}" for line in changed)
        raise SettingsError(
            f"the study {name!r} was started with other settings:{lines}\nGive those again, or another --name"
        )
    return study


def settings_of(dataset: str, digest: str, space: SearchSpace, options: TrainOptions, fold: Fold) -> dict[str, Any]:
    """Return the settings that trials must have in common to be comparable, as plain values."""
    kept = {key: value for key, value in sorted(json.loads(options.to_json()).items()) if key not in OF_A_MACHINE}
    settings = {
        "dataset": dataset,
        "digest": digest,
        "space": space.to_dict(),
        "options": kept,
        **given_files(options),
        "validation": f"{len(fold.validation)} cases, {_digest_of(fold.validation)}",
    }
    return json.loads(json.dumps(settings))  # type: ignore[no-any-return]


def _digest_of(case_ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(case_ids)).encode()).hexdigest()[:16]


def write_results(study: optuna.Study, folder: Path, *, page: bool = True) -> list[FrozenTrial]:
    """Write the results of the trials and the plots, and return the trials that have ended."""
    trials = study.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state not in _UNFINISHED]
    completed = [trial for trial in ended if trial.state == TrialState.COMPLETE]
    best = max(completed, key=lambda trial: trial.value or 0.0, default=None)
    summary = {
        "study": study.study_name,
        "best": None if best is None else _as_dict(best),
        "trials": [_as_dict(trial) for trial in trials if trial.state != TrialState.WAITING],
    }
    atomic_write_json(folder / SWEEP, summary)
    if page and ended:
        atomic_write_text(folder / PAGE, study_page(study, title=study.study_name, value_name="Dice"))
    return ended


def _as_dict(trial: FrozenTrial) -> dict[str, Any]:
    scores = [score for score in trial.intermediate_values.values() if math.isfinite(score)]
    return {
        "trial": trial.number,
        "state": "interrupted" if is_interrupted(trial) else trial.state.name.lower(),
        # Of a pruned trial, Optuna's value is the last that it reported.
        "dice": trial.value if trial.state == TrialState.COMPLETE else None,
        "best_validation_score": max(scores, default=None),
        "epochs": max(trial.intermediate_values, default=0),
        "epochs_planned": trial.user_attrs.get(HORIZON),
        "seconds": None if trial.duration is None else round(trial.duration.total_seconds(), 1),
        "settings": trial.params,
        "experiment": trial.user_attrs.get(EXPERIMENT),
        "failure": trial.user_attrs.get(FAILURE),
        "goes_on_with": trial.user_attrs.get(CONTINUES),
    }
