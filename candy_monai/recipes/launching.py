"""Start, resume and end runs that each have their own folder and process."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from candy_monai.data.workers import usable_cores
from candy_monai.experiment.folder import VALIDATION_SCORES
from candy_monai.experiment.runs import experiments_in
from candy_monai.files import atomic_write_text
from candy_monai.recipes.options import TrainOptions
from candy_monai.training.signals import StopRequest, is_ctrl_c

PATIENCE_S = 60.0
"""Time for runs that were asked to end to finish their step and save."""


@dataclass(frozen=True, kw_only=True)
class SeparateRun:
    """A run with its own process, such as that of a fold or a trial, and its folder.

    Attributes:
        dataset: The dataset's folder.
        options: The options of the run; ``out`` is its own folder.
        name: The name used in messages.
    """

    dataset: Path
    options: TrainOptions
    name: str

    @property
    def folder(self) -> Path:
        """Its own folder of experiments."""
        return Path(self.options.out)

    @property
    def log(self) -> Path:
        """What its process printed."""
        return self.folder / "output.txt"

    @property
    def experiment(self) -> Path | None:
        """The newest experiment of the run; None before it has one."""
        return next(iter(experiments_in(self.folder)), None)

    @property
    def scores(self) -> Path | None:
        """The scores of a finished run; None while it is not."""
        experiment = self.experiment
        return None if experiment is None or not (path := experiment / VALIDATION_SCORES).is_file() else path

    def command(self) -> list[str]:
        """Write the options to a file, and return the command that starts or resumes the run."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file, options = self.folder / "options.json", self.options
        if self.experiment is None:
            words = ["train", str(self.dataset)]
        else:
            words = ["resume", str(self.experiment), "--dataset", str(self.dataset)]
            options = dataclasses.replace(options, num_epochs=None)  # as many as were planned
        atomic_write_text(file, options.to_json() + "\n")
        return [sys.executable, "-m", "candy_monai", *words, "--options", str(file)]


class RunningProcess(Protocol):
    """The interface of the process of a run, implemented by ``subprocess.Popen`` and by jobs of a cluster."""

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""

    def terminate(self) -> None:
        """Ask the process to finish its step, save and end; return at once."""

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended; raise ``subprocess.TimeoutExpired`` after a time-out in seconds."""

    def kill(self) -> None:
        """End the process without saving; return at once."""


class Launcher(Protocol):
    """Starts the processes of runs."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether the runs are on other machines, and continue when a signal other than Ctrl-C ends this program."""

    @property
    def num_parallel(self) -> int:
        """Default number of runs at the same time."""

    def start(self, run: SeparateRun, slot: int) -> RunningProcess:
        """Start the process that begins or continues a run; ``slot`` is its number among those at the same time."""


@dataclass(frozen=True)
class LauncherHere:
    """Starts runs as processes on this machine, each with its share of the cores and one of the GPUs.

    Args:
        num_parallel: How many run at the same time.
        device: The device for the runs, as for ``--device``.
    """

    num_parallel: int
    device: str
    is_elsewhere: bool = False

    def start(self, run: SeparateRun, slot: int) -> subprocess.Popen[bytes]:
        """Start the process that begins a run or goes on with it."""
        return start_run(run, environment_of(slot, self.num_parallel, self.device))


def start_run(run: SeparateRun, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process that starts or resumes a run; its output goes to the run's log."""
    command = run.command()
    with run.log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )


@contextmanager
def ended_with_us(running: Mapping[int, tuple[Any, RunningProcess]], launcher: Launcher) -> Iterator[StopRequest]:
    """Yield the record of Ctrl-C and signals; if the block raises, let the processes finish their step and save.

    After a signal, a launcher that is elsewhere lets them continue.
    """
    asked = StopRequest()
    with asked.listening():
        try:
            yield asked
        except BaseException as error:
            if launcher.is_elsewhere and not is_ctrl_c(error):
                raise
            for _, process in running.values():
                process.terminate()
            end = time.monotonic() + PATIENCE_S
            for _, process in running.values():
                try:
                    process.wait(max(0.0, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()
            raise


def share_of_cores(num_parallel: int) -> int:
    """Return the number of cores for each of several processes, at least 1."""
    return max(1, usable_cores() // num_parallel)


def environment_of(slot: int, num_parallel: int, device: str) -> dict[str, str]:
    """Return the environment variables of a process: its share of the cores, and one of the GPUs that are visible."""
    environment = dict(os.environ)
    if num_parallel > 1:
        environment["OMP_NUM_THREADS"] = str(share_of_cores(num_parallel))
        num_gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
        if num_gpus > 1:
            visible = environment.get("CUDA_VISIBLE_DEVICES")  # the GPUs of this process, under the machine's names
            names = [str(index) for index in range(num_gpus)] if visible is None else visible.split(",")
            environment["CUDA_VISIBLE_DEVICES"] = names[slot % num_gpus].strip()
    return environment
