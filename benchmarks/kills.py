"""Check that a killed run is continued to an identical result; print one JSON line.

A small run with augmentation, dropout, a moving average and saves within epochs is killed (SIGKILL)

- at each of its file operations, as Python sees them: opening, flushing, linking, renaming, removing;
- at each system call that writes, flushes, renames, links or removes, by the thread that saves and by the one that
  trains, if ``strace`` is available (``--syscalls``);
- at random moments, both in the first run and in the continued one (``--random``).

With ``--processes 2`` the run consists of two processes under the agent of ``torchrun``: the first process, which
writes, is killed at its operations and system calls, and either one at random moments; the agent must end the other
process.

Every killed run is continued, and its weights, state and metrics are compared with those of an uninterrupted run.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from killed_run import experiment_in, result_of, same, train
from launched import by_processes, in_a_child, killed_after, still_running

from candy_monai.errors import ExperimentError
from candy_monai.experiment.saving import Writer
from candy_monai.observers.pictures import CurvesObserver

EVENTS = {"open", "os.rename", "os.remove", "os.link", "os.truncate"}
CALLS = "write,pwrite64,writev,fsync,fdatasync,ftruncate,rename,renameat,renameat2,link,linkat,unlink,unlinkat"


def killed_at(count: int | None) -> Callable[[], int]:
    """Kill this process at its file operation of this number, below the experiments; return the counter."""
    counter = itertools.count(1)
    done = 0

    def meet(path: object) -> None:
        nonlocal done
        if "KilledTrainer" in str(path):
            done = next(counter)
            if done == count:
                os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in EVENTS:
            meet(arguments[0])

    flush = os.fsync

    def fsync(handle: int) -> None:
        meet(os.readlink(f"/proc/self/fd/{handle}"))
        flush(handle)

    sys.addaudithook(audit)
    os.fsync = fsync
    return lambda: done


@dataclass(frozen=True)
class Call:
    """A system call of a run.

    Attributes:
        save: The save whose thread makes it, counted from 1; 0 for the thread that trains.
        name: Its name.
        count: Its number among the calls with this name of its thread.
    """

    save: int
    name: str
    count: int


def traced(options: list[str]) -> None:
    """Trace this process with ``strace`` from now on, including its threads and children."""
    command = ["strace", "-f", "-qq", "-e", f"trace={CALLS}", *options, "-p", str(os.getpid())]
    tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while "TracerPid:\t0" in Path("/proc/self/status").read_text():
        if tracer.poll() is not None:
            raise RuntimeError("strace cannot trace this process")
        time.sleep(0.005)


def killed_at_call(call: Call) -> None:
    """Kill this process at a system call."""
    options = ["-o", os.devnull, "-e", f"inject={call.name}:signal=KILL:when={call.count}"]
    begun, start = itertools.count(1), Writer.start

    def counted(self: Writer, work: Callable[[], None]) -> None:
        self.wait()
        if next(begun) == call.save:
            traced(options)
        start(self, work)

    Writer.start = counted  # type: ignore[method-assign]
    if call.save == 0:
        traced(options)


def calls_noted(to: Path) -> Callable[[], list[tuple[int, str, int]]]:
    """Record this process's system calls in a file; return a function that reads each possible `Call` from it."""
    savers: list[int] = []
    start = Writer.start

    def noted(self: Writer, work: Callable[[], None]) -> None:
        def named() -> None:
            savers.append(threading.get_native_id())
            work()

        start(self, named)

    Writer.start = noted  # type: ignore[method-assign]
    traced(["-o", str(to)])

    def calls() -> list[tuple[int, str, int]]:
        lines = (line.split(maxsplit=1) for line in to.read_text().splitlines())
        made = collections.Counter((int(thread), what.split("(")[0]) for thread, what in lines if what[0] not in "<+-")
        saves = {thread: save for save, thread in enumerate((os.getpid(), *savers))}
        return [
            (saves[thread], name, n)
            for (thread, name), count in made.items()
            if thread in saves
            for n in range(1, count + 1)
        ]

    return calls


def why_no_calls() -> str | None:
    """Return why no process can be killed at a system call; None if it is possible."""
    if shutil.which("strace") is None:
        return "there is no strace here"
    return None if in_a_child(lambda: traced(["-o", os.devnull])) == 0 else "strace may not trace processes here"


@dataclass(frozen=True, kw_only=True)
class Kill:
    """A description of how a run is killed.

    Attributes:
        kind: ``operation``, ``call`` or ``moment``.
        name: Which one.
        prepare: Called in the run's process before the run begins.
        seconds: Kill the run after this time, and the continued run after the same time once more.
        rank: Which of several processes is killed.
    """

    kind: str
    name: str
    prepare: Callable[[], object] | None = None
    seconds: float | None = None
    rank: int = 0


class Harness:
    """Kills runs in a folder, continues them, and counts the outcomes.

    Args:
        folder: The folder of the runs.
        num_epochs: Epochs of each run.
        num_workers: Processes that load its batches.
        num_processes: Processes that train it.
    """

    def __init__(self, folder: Path, num_epochs: int, num_workers: int, num_processes: int) -> None:
        self._folder, self._num_epochs, self._num_workers = folder, num_epochs, num_workers
        self._num_processes = num_processes
        self.kills: collections.Counter[str] = collections.Counter()
        self.not_reached = 0
        self.different: list[str] = []
        self.unreadable: list[str] = []
        self.hung: list[str] = []
        self.left_running: list[str] = []
        started = time.monotonic()
        counted = self._told("whole", lambda: killed_at(None))
        assert isinstance(counted, int)
        self.num_operations, self.whole_s = counted, time.monotonic() - started
        whole = experiment_in(folder / "whole")
        assert whole is not None
        self._expected = result_of(whole)

    def calls(self) -> list[Call]:
        """Return every system call of a run at which it can be killed."""
        calls = self._told("noted", lambda: calls_noted(self._folder / "trace"))
        assert isinstance(calls, list)
        return [Call(*pair) for pair in calls]

    def kill(self, kill: Kill) -> None:
        """Kill a run, continue it to its end, and compare it with the uninterrupted one."""
        name = f"{kill.kind} {kill.name}"
        try:
            for _ in range(1 if kill.seconds is None else 2):
                if self._run(name, kill) == 0:
                    self.not_reached += 1
                elif (self._folder / f"{name} raised").exists():
                    self.unreadable.append(name)
                    return
                else:
                    self.kills[kill.kind] += 1
            code = self._run(name)
        except TimeoutError:
            self.hung.append(name)
            return
        experiment = experiment_in(self._folder / name)
        try:
            if code or experiment is None:
                self.unreadable.append(name)
            elif not same(result_of(experiment), self._expected):
                self.different.append(name)
            else:
                shutil.rmtree(self._folder / name)
        except ExperimentError:
            self.unreadable.append(name)

    def _run(self, name: str, kill: Kill | None = None) -> int:
        """Train or continue a run, and return the exit code."""

        @contextmanager
        def around() -> Iterator[None]:
            if kill is None or not self._is_rank(kill.rank):
                yield
                return
            if kill.prepare is not None:
                kill.prepare()
            try:
                with nullcontext() if kill.seconds is None else killed_after(kill.seconds):
                    yield
            except BaseException:  # it should have been killed, without an exception
                (self._folder / f"{name} raised").touch()
                raise

        return self._launch(name, around)

    def _told(self, name: str, watch: Callable[[], Callable[[], object]]) -> object:
        """Train a run, and return what was observed by a watcher in the process that writes."""

        @contextmanager
        def around() -> Iterator[None]:
            if not self._is_rank(0):
                yield
                return
            seen = watch()
            yield
            (self._folder / f"{name}.json").write_text(json.dumps(seen()))

        assert self._launch(name, around) == 0
        return json.loads((self._folder / f"{name}.json").read_text())

    def _is_rank(self, rank: int) -> bool:
        return int(os.environ.get("RANK", "0")) == rank

    def _launch(self, name: str, around: Callable[[], AbstractContextManager[None]]) -> int:
        out, notes = self._folder / name, self._folder / f"{name} processes"
        experiment = experiment_in(out)  # found once, since processes begin one after the other

        def work() -> None:
            with around():
                train(out, experiment, self._num_epochs, self._num_workers)

        if self._num_processes == 1:
            return in_a_child(work)
        code = in_a_child(lambda: by_processes(work, self._num_processes, notes=notes))
        if still_running(notes):
            self.left_running.append(name)
        return code


def main() -> None:
    """Kill runs, continue them, and compare the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="kill at every N-th file operation; 0 for none")
    parser.add_argument("--syscalls", type=int, default=0, metavar="N", help="also kill at every N-th system call")
    parser.add_argument("--random", type=int, default=0, metavar="N", help="also kill N runs at random moments, twice")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments, and of the order")
    parser.add_argument("--workers", type=int, default=0, help="processes that load the batches")
    parser.add_argument("--processes", type=int, default=1, help="processes that train the run")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no kill after this time")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    CurvesObserver.draw = lambda *_arguments: None  # type: ignore[method-assign]  # slow compared with the run
    torch.optim.AdamW([torch.zeros(1)])  # imports large parts of PyTorch, once for all runs
    skipped = why_no_calls() if arguments.syscalls else "not asked for"
    generator = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        harness = Harness(Path(scratch), arguments.epochs, arguments.workers, arguments.processes)
        counts = range(1, harness.num_operations + 1, arguments.every) if arguments.every else ()
        calls = [] if skipped else harness.calls()
        kills = [
            *(Kill(kind="operation", name=str(count), prepare=partial(killed_at, count)) for count in counts),
            *(
                Kill(kind="call", name=f"{call.name} {call.save}.{call.count}", prepare=partial(killed_at_call, call))
                for call in calls[:: arguments.syscalls or 1]
            ),
            *(
                Kill(
                    kind="moment",
                    name=str(index),
                    seconds=generator.uniform(0, harness.whole_s),
                    rank=generator.randrange(arguments.processes),
                )
                for index in range(arguments.random)
            ),
        ]
        generator.shuffle(kills)  # so that those left out for lack of time are of all kinds
        begun = 0
        while begun < len(kills) and time.monotonic() < until:
            harness.kill(kills[begun])
            begun += 1
    result = {
        "benchmark": "kills",
        "workers": arguments.workers,
        "processes": arguments.processes,
        "operations": harness.num_operations,
        "system_calls": skipped or len(calls),
        "kills": dict(harness.kills),
        "not_reached": harness.not_reached,
        "left_out": len(kills) - begun,
        "different": harness.different,
        "unreadable": harness.unreadable,
        "hung": harness.hung,
        "left_running": harness.left_running,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
