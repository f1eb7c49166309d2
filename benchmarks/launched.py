"""Run functions like ``torchrun`` does, in forked processes that have everything imported."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

PATIENCE_S = 120.0


def in_a_child(work: Callable[[], None]) -> int:
    """Run in a forked process and return its exit code, which is negative for a signal.

    Raises:
        TimeoutError: If it does not end.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        finally:
            os._exit(code)
    for _ in range(int(PATIENCE_S / 0.01)):  # not by a clock, which continues while this process is stopped
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"process {child} did not end")


def by_processes(work: Callable[[], None], count: int, *, notes: Path) -> None:
    """Run in several processes under the agent that ``torchrun`` starts; to be called `in_a_child`.

    Args:
        work: The function that each process runs; the variable ``RANK`` gives its number.
        count: Number of processes.
        notes: A folder for the ids of the processes; see `still_running`.

    Raises:
        ChildFailedError: If one of them failed; the others were ended.
    """

    def one() -> None:
        (notes / str(os.getpid())).touch()
        torch.set_num_threads(1)
        work()

    notes.mkdir(exist_ok=True)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=notes.name,
        max_restarts=0,
        start_method="fork",
    )
    elastic_launch(config, one)()


def still_running(notes: Path) -> list[int]:
    """Remove the notes of a launch, and return those of its processes that have not ended."""
    numbers = [int(note.name) for note in notes.glob("*")]
    for number in numbers:
        (notes / str(number)).unlink()
    return [number for number in numbers if Path(f"/proc/{number}").exists()]


@contextmanager
def killed_after(seconds: float) -> Iterator[None]:
    """Kill this process from outside if the block takes longer than this time in seconds."""
    victim, killer = os.getpid(), os.fork()
    if killer == 0:
        time.sleep(seconds)
        if os.getppid() == victim:
            os.kill(victim, signal.SIGKILL)
        os._exit(0)
    try:
        yield
    finally:
        os.kill(killer, signal.SIGKILL)
        os.waitpid(killer, 0)
