"""Runs as jobs of a cluster, submitted by ``submitit`` and requeued at their time limit.

A job starts or resumes its run in a child process. SLURM signals the job before its time limit: the run finishes its
step and saves, and the job is requeued. The information about a job is in the folder of its run, so that the command
that submitted it finds it again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from candy_monai.aliases import PathLike
from candy_monai.errors import BadInputError, RunFailedError, SettingsError, did_you_mean
from candy_monai.experiment.durations import seconds_of
from candy_monai.files import atomic_write_json
from candy_monai.optional import require
from candy_monai.recipes.launching import PATIENCE_S, SeparateRun, start_run
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.prepare import store_of
from candy_monai.recipes.train import Parts
from candy_monai.text import read_json

LauncherName = Literal["slurm", "local"]

JOB = "job.json"
"""The file in a run's folder with the last job that was submitted for it."""

_MOST_AT_ONCE = 1000
"""Maximum number of submitted jobs, more than there are folds or trials: the queue decides how many run."""
_MOST_RESTARTS = 1000
"""Maximum number of times that a job is requeued: practically unlimited."""
_ASK_EVERY_S = 30.0
"""Interval between two queries of the queue, which all users of a cluster share."""
_SETTLE_S = 60.0
"""How long a shared file system may take to show here what a job wrote elsewhere."""
_INTERRUPTED = 130
_DAYS_OF_LOCAL_JOBS = 365

_OURS = ("ntasks", "array", "output", "error", "signal", "open_mode")
"""Options of sbatch that are derived from the job itself."""
_WHOLE = ("nodes", "ntasks_per_node", "signal_delay_s")
_OF_LOCAL = ("time", "gpus_per_node")
_OF_A_JOB = re.compile(r"SLURM_(?!CONF$)|SLURMD_|SRUN_|SUBMITIT_|MASTER_|((LOCAL_)?(RANK|WORLD_SIZE)$)")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


class RunInJob:
    """The work of a job: it starts or resumes a run.

    Args:
        run: The run.
    """

    def __init__(self, run: SeparateRun) -> None:
        self._run = run
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Train until the run is done.

        Raises:
            RunFailedError: If it failed.
        """
        run = self._run
        # SLURM signals every process of a job; that the time is up is for this one, which then asks the run to save.
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        try:
            self._process = start_run(run, os.environ)
        finally:
            signal.signal(signal.SIGUSR2, before)
        try:
            while (code := self._process.poll()) is None:  # wait() would hold a lock that checkpoint() needs
                time.sleep(0.5)
        except BaseException:
            self._process.terminate()
            raise
        if code == _INTERRUPTED:  # whoever asked for the end, ends this process, too
            time.sleep(PATIENCE_S)
        if code:
            raise RunFailedError(f"{run.name}: exit code {code}, see {run.log}")

    def checkpoint(self) -> Any:
        """Return, for submitit, the work of the requeued job, once the run has finished its step and saved."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.terminate()
            end = time.monotonic() + PATIENCE_S
            while self._process.poll() is None and time.monotonic() < end:
                time.sleep(0.1)
            self._process.kill()
        return DelayedSubmission(RunInJob(self._run))


class JobProcess:
    """A job, with the interface of the process of a run.

    Args:
        job: The submitit job.
        run: Its run.
        is_queued: Whether the job is pending or running.
        say: Called with messages about cancelled jobs.
    """

    def __init__(
        self, job: Any, run: SeparateRun, *, is_queued: Callable[[], bool], say: Callable[[str], None]
    ) -> None:
        self.job, self._run, self._is_queued, self._say = job, run, is_queued, say
        self._code: int | None = None
        self._asked_at = time.monotonic()
        self._ended_at: float | None = None
        self._ask_every_s = _ASK_EVERY_S

    def poll(self) -> int | None:
        """Return 0 if the run was finished and 1 if it failed; None while the job is pending or running."""
        if self._code is None:
            self._code = self._found()
        return self._code

    def _found(self) -> int | None:
        results = [self.job.task(number).paths.result_pickle for number in range(self.job.num_tasks)]
        if all(map(Path.exists, results)):
            if self.job.exception() is not None:
                return 1
            return 0 if self._run.scores is not None or self._has_settled() else None
        if time.monotonic() - self._asked_at > self._ask_every_s:
            self._asked_at = time.monotonic()
            if self._is_queued():
                self._ended_at = None
            elif self._has_settled():
                return 1
        return None

    def _has_settled(self) -> bool:
        self._ended_at = self._ended_at or time.monotonic()
        return time.monotonic() - self._ended_at > _SETTLE_S

    def terminate(self) -> None:
        """Cancel the job: its run finishes its step and saves, if there is time for it."""
        self._say(f"{self._run.name}: job {self.job.job_id} is cancelled")
        self.job.cancel(check=False)
        self._ask_every_s = 1.0

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when the job is no longer queued.

        Raises:
            subprocess.TimeoutExpired: After so many seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None and self._is_queued():
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self._run.name, timeout or 0.0)
            time.sleep(0.5)
        return 1 if self._code is None else self._code

    def kill(self) -> None:
        """Return at once: the cluster kills cancelled jobs that do not end."""


class JobLauncher:
    """Starts runs as jobs.

    Args:
        name: ``"slurm"``, or ``"local"`` for jobs as processes of this machine, to try things out.
        arguments: The resources of the jobs: for SLURM the long options of sbatch without their dashes, such as
            ``{"partition": "gpu", "time": "12:00:00", "gpus-per-node": "1"}``, and ``setup``, shell commands to run
            first; for ``"local"`` only ``time`` and ``gpus-per-node``.
        say: Called with messages about submitted, found and cancelled jobs.

    Attributes:
        is_elsewhere: Whether the jobs run on other machines, and continue when the command that submitted them ends.
        num_parallel: Number of jobs that are submitted at once by default.

    Raises:
        SettingsError: If an argument is invalid, or SLURM is not available.
        MissingExtraError: If submitit is not installed.
    """

    def __init__(
        self, name: LauncherName, arguments: Mapping[str, str] | None = None, *, say: Callable[[str], None] = print
    ) -> None:
        require("submitit", extra="slurm", purpose="submit jobs")
        self.name, self.is_elsewhere, self._say = name, name == "slurm", say
        self.num_parallel = _MOST_AT_ONCE if self.is_elsewhere else 1
        self._parameters = _parameters_of(name, arguments or {})

    def start(self, run: SeparateRun, slot: int = 0) -> JobProcess:
        """Submit a job that starts or resumes a run, or find the one that was already submitted for it.

        Raises:
            RunFailedError: If the cluster does not take the job.
        """
        import submitit

        if (found := self.found(run)) is not None:
            self._say(f"{run.name} is job {found.job.job_id}, which was submitted before")
            return found
        kind = submitit.SlurmExecutor if self.is_elsewhere else submitit.LocalExecutor
        executor = kind(run.folder / "jobs", max_num_timeout=_MOST_RESTARTS)
        names = {"job_name": f"candy-monai {run.name}"} if self.is_elsewhere else {}
        try:
            executor.update_parameters(**{**names, **self._parameters})
            with _outside_of_this_job():
                job = executor.submit(RunInJob(run))
        except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise RunFailedError(f"{run.name}: the job was not accepted: {' '.join(str(error).split())}") from error
        record = {"launcher": self.name, "id": job.job_id, "num_tasks": job.num_tasks}
        atomic_write_json(run.folder / JOB, record)
        self._say(f"{run.name} is job {job.job_id}")
        return self._process(job, run)

    def found(self, run: SeparateRun) -> JobProcess | None:
        """Return the pending or running job of a run on the cluster; None if there is none."""
        import submitit

        try:
            record = read_json(run.folder / JOB)
            job_id, num_tasks = str(record["id"]), int(record["num_tasks"])
        except (OSError, ValueError, LookupError, TypeError):
            return None
        if not self.is_elsewhere or record.get("launcher") != self.name or not _is_queued(job_id):
            return None
        return self._process(submitit.SlurmJob(run.folder / "jobs", job_id, tasks=range(num_tasks)), run)

    def _process(self, job: Any, run: SeparateRun) -> JobProcess:
        is_queued = (lambda: _is_queued(job.job_id)) if self.is_elsewhere else (lambda: not job.done())
        return JobProcess(job, run, is_queued=is_queued, say=self._say)


def submit_training(
    dataset: PathLike, options: TrainOptions | None = None, *, launcher: JobLauncher, **keywords: Any
) -> SeparateRun:
    """Submit a job that trains as `train_dataset` does, and return at once; the same call later continues its run.

    The dataset is not read before the job begins.

    Args:
        dataset: As for `train_dataset`.
        options: The same; None for the defaults.
        launcher: Submits the job.
        **keywords: Fields of `TrainOptions`, in place of those of ``options``.

    Returns:
        The run, in a separate folder in ``out`` whose name is derived from dataset and options. If the run is finished
        already, it has ``scores``, and no job is submitted.

    Raises:
        BadInputError: If there is no such dataset, or an option cannot work.
        RunFailedError: If the cluster does not take the job.
    """
    options = TrainOptions.of(options, keywords)
    Parts.of(options)
    place = Path(dataset).resolve()
    if not (place / "dataset.json").is_file():
        raise BadInputError(f"{dataset}: holds no dataset.json; give a dataset's folder in nnU-Net format")
    asked = hashlib.sha256(f"{place} {options.to_json()}".encode()).hexdigest()[:8]
    own = dataclasses.replace(
        options, out=Path(options.out) / f"train-{place.name}-{asked}", store=store_of(options).resolve()
    )
    run = SeparateRun(dataset=place, options=own, name=f"Training on {place.name}")
    if run.scores is None:
        launcher.start(run)
    return run


@contextmanager
def _outside_of_this_job() -> Iterator[None]:
    """Yield without the variables that SLURM and torchrun set in this job, which a submitted job would inherit."""
    set_in_it = [name for name in os.environ if _OF_A_JOB.match(name)] if "SLURM_JOB_ID" in os.environ else []
    hidden = {name: os.environ.pop(name) for name in set_in_it}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _parameters_of(name: LauncherName, arguments: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters of submitit's executor for the resources of the jobs, or refuse invalid ones."""
    found = {key.strip("-").replace("-", "_"): value for key, value in arguments.items()}
    known = _OF_LOCAL if name == "local" else ()
    for key in found:
        if key in _OURS:
            raise SettingsError(
                f"--launcher-args {key}: is set by candy-monai; for several processes per run, give nodes and "
                "ntasks-per-node"
            )
        if known and key not in known:
            raise SettingsError(
                f"--launcher-args {key}: local jobs accept only {', '.join(known)}.{did_you_mean(key, known)}"
            )
    minutes = None if "time" not in found else _minutes(found.pop("time"))
    if name == "local":
        gpus = _whole("gpus_per_node", found.get("gpus_per_node", "0"))
        return {"timeout_min": minutes or _DAYS_OF_LOCAL_JOBS * 24 * 60, "gpus_per_node": gpus}
    if minutes is None:
        raise SettingsError(
            "--launcher slurm: give the time limit of a job, --launcher-args time=12:00:00 or time=12h; a run that "
            "needs more goes back into the queue and continues"
        )
    if shutil.which("sbatch") is None or shutil.which("squeue") is None or shutil.which("srun") is None:
        raise SettingsError("--launcher slurm: sbatch, squeue and srun are not found; use it where SLURM is installed")
    parameters: dict[str, Any] = {"time": minutes}
    parameters |= {key: _whole(key, found.pop(key)) for key in _WHOLE if key in found}
    if "setup" in found:
        parameters["setup"] = [found.pop("setup")]
    if "cpus_per_task" in found:  # which srun does not take over from sbatch, from SLURM 22.05 on
        parameters["srun_args"] = [f"--cpus-per-task={found['cpus_per_task']}"]
    if "job_name" in found:
        parameters["job_name"] = found.pop("job_name")
    others = {key: True if value.lower() in ("", "true") else value for key, value in found.items()}
    return {**parameters, "additional_parameters": {"requeue": True, **others}}


def _whole(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise SettingsError(f"--launcher-args {name}={text}: expected a whole number")
    return int(text)


def _minutes(text: str) -> int:
    """Return the minutes of a time as sbatch reads it, such as 90, 12:00:00 or 2-12, or as ``--budget`` does."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return max(1, math.ceil(seconds_of(text) / 60))
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None and len(numbers) < 3:  # MINUTES or MINUTES:SECONDS
        numbers = [0, *numbers]
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    total = math.ceil(((int(days or 0) * 24 + hours) * 60) + minutes + seconds / 60)
    if not total:
        raise SettingsError(f"--launcher-args time={text}: expected a time above 0")
    return total


def _is_queued(job_id: str) -> bool:
    """Return whether a job is pending or running; True if SLURM does not answer."""
    command = ["squeue", "--noheader", "--jobs", job_id, "--format", "%T"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=_SETTLE_S, check=False)
    except subprocess.TimeoutExpired:
        return True
    if shown.returncode:
        return "Invalid job id" not in shown.stderr
    return bool(shown.stdout.strip())
