"""Runs that each have a folder of their own and a process of their own: begun, gone on with, and ended together."""

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
from candy_monai.files import atomic_write_text
from candy_monai.recipes.options import TrainOptions
from candy_monai.training.signals import StopRequest, is_ctrl_c

PATIENCE_S = 60.0
"""How long runs that were asked to end may take to finish their step and save."""


@dataclass(frozen=True, kw_only=True)
class SeparateRun:
    """A run, such as that of a fold or of a trial, and where it lies.

    Attributes:
        dataset: The dataset's folder.
        options: What decides it; ``out`` is its own folder.
        name: What messages call it.
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
        """Its newest experiment; None before it has one."""
        found = sorted(self.folder.glob("*/[0-9]*/experiment.json"), key=lambda path: path.stat().st_mtime)
        return found[-1].parent if found else None

    @property
    def scores(self) -> Path | None:
        """The scores of a finished run; None while it is not."""
        path = None if self.experiment is None else self.experiment / VALIDATION_SCORES
        return path if path is not None and path.is_file() else None

    def command(self) -> list[str]:
        """Write the options to a file, and return the command that begins the run or goes on with it."""
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
    """The process of a run, as ``subprocess.Popen`` or a job of a cluster has it."""

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""

    def terminate(self) -> None:
        """Return at once; it finishes its step, saves and ends."""

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when it has ended; raise ``subprocess.TimeoutExpired`` after so many seconds."""

    def kill(self) -> None:
        """Return at once; it ends without saving."""


class Launcher(Protocol):
    """Starts the processes of runs."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether the runs are on other machines, and go on when a signal other than Ctrl-C ends this program."""

    @property
    def num_parallel(self) -> int:
        """How many run at the same time where the user does not say."""

    def start(self, run: SeparateRun, slot: int) -> RunningProcess:
        """Start the process that begins a run or goes on with it.

        Args:
            run: The run.
            slot: Its number among those that run at the same time.
        """


@dataclass(frozen=True)
class LauncherHere:
    """Starts runs as processes of this machine, each with its share of the cores, and of several GPUs one.

    Args:
        num_parallel: How many run at the same time.
        device: Where they compute, as ``--device`` says.
    """

    num_parallel: int
    device: str
    is_elsewhere: bool = False

    def start(self, run: SeparateRun, slot: int) -> subprocess.Popen[bytes]:
        """Start the process that begins a run or goes on with it."""
        return start_run(run, environment_of(slot, self.num_parallel, self.device))


def start_run(run: SeparateRun, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process that begins a run or goes on with it; its output goes to the run's log."""
    command = run.command()
    with run.log.open("ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )


@contextmanager
def ended_with_us(running: Mapping[int, tuple[Any, RunningProcess]], launcher: Launcher) -> Iterator[StopRequest]:
    """Yield what remembers Ctrl-C and signals; if a block raises, let the processes in it finish their step and save.

    Args:
        running: The processes, by their slots.
        launcher: What started them, which may have them go on after a signal.
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
    """Return how many cores each of several processes gets, 1 at least."""
    return max(1, usable_cores() // num_parallel)


def environment_of(slot: int, num_parallel: int, device: str) -> dict[str, str]:
    """Return a process's environment variables: its share of the cores, and of several GPUs one."""
    environment = dict(os.environ)
    if num_parallel > 1:
        environment["OMP_NUM_THREADS"] = str(share_of_cores(num_parallel))
        num_gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
        if num_gpus > 1:
            environment["CUDA_VISIBLE_DEVICES"] = str(slot % num_gpus)
    return environment
