"""Requeue a SLURM job before its time limit, and find the run to continue when it starts again."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from candy_monai.aliases import PathLike
from candy_monai.errors import SettingsError
from candy_monai.experiment.description import DESCRIPTION, SLURM_JOB
from candy_monai.experiment.runs import experiments_in
from candy_monai.launched import is_first
from candy_monai.recipes.options import TrainOptions
from candy_monai.text import read_json
from candy_monai.training.signals import Interrupted, PromptStop, is_ctrl_c

_TIMEOUT_S = 60.0
_FACTS = ("JobState", "Reason")


@contextmanager
def requeued_if_interrupted(say: Callable[[str], None]) -> Iterator[None]:
    """Yield, and requeue this SLURM job if SIGTERM or SIGUSR1 ends the block, once its runs are saved; ``say`` is told.

    A cancelled job is not requeued: ``scancel`` sends SIGTERM just as the time limit does. With several processes, the
    first one requeues the job.

    Raises:
        SettingsError: If this is not a SLURM job, or ``scontrol`` is not available.
    """
    if (job := job_id()) is None:
        raise SettingsError("--requeue: this is not a SLURM job (SLURM_JOB_ID is not set); leave it out, or use sbatch")
    if shutil.which("scontrol") is None:
        raise SettingsError("--requeue: scontrol is not found, which puts a job back into the queue; add it to PATH")
    try:
        with PromptStop().listening():
            yield
    except Interrupted as error:
        if not is_ctrl_c(error) and is_first():
            with _undisturbed():
                say(_requeued(job))
        raise


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Yield while ignoring the signals that end the remaining processes of a requeued job."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _requeued(job: str) -> str:
    """Requeue a job and return a message about the result."""
    shown = _scontrol("show", "job", "--oneliner", job).stdout
    state, reason = (found[1] if (found := re.search(rf"\b{name}=(\w+)", shown)) else "" for name in _FACTS)
    if state in ("CANCELLED", "COMPLETING") and reason != "TimeLimit":
        return f"job {job} is being cancelled and is not put back into the queue"
    done = _scontrol("requeue", job)
    if done.returncode:
        return f"job {job} could not be put back into the queue: {done.stderr.strip() or done.returncode}"
    return f"job {job} is back in the queue; the same command continues when it starts again"


def _scontrol(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["scontrol", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def job_id() -> str | None:
    """Return the id of this process's SLURM job, ``JOB_TASK`` for one of an array; None outside of SLURM."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return os.environ.get("SLURM_JOB_ID") if array is None or task is None else f"{array}_{task}"


def job_facts(dataset: PathLike, options: TrainOptions) -> dict[str, Any]:
    """Return the entry of ``experiment.json`` about the job that starts a run, for what decides the run.

    It holds the job's id and the digest of dataset and options; outside of SLURM there is none.
    """
    if (job := job_id()) is None:
        return {}
    asked = json.dumps([str(Path(dataset).resolve()), vars(options)], default=str, sort_keys=True)
    return {SLURM_JOB: {"id": job, "asked": hashlib.sha256(asked.encode()).hexdigest()[:16]}}


def run_of_this_job(dataset: PathLike, options: TrainOptions) -> Path | None:
    """Return the run in ``options.out`` that this job started before it was requeued; None if there is none."""
    facts = job_facts(dataset, options)
    return next((run for run in experiments_in(options.out) if facts and _job_of(run) == facts[SLURM_JOB]), None)


def _job_of(run: Path) -> object:
    try:
        return read_json(run / DESCRIPTION).get(SLURM_JOB)
    except (ValueError, AttributeError, OSError):  # not of a run of this job, then
        return None
