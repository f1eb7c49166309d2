"""How this process was started: as one of several by ``torchrun`` or SLURM's ``srun``, or alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from candy_monai.errors import SettingsError

_FIRST_PORT, _NUM_PORTS = 15_000, 15_000
"""A range below the ports that Linux assigns to connections of other programs."""


def name_as_torchrun() -> None:
    """Write the variables that ``torchrun`` would have set, in a process that ``srun`` started as one of several tasks.

    These are RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT, which PyTorch needs to connect the processes,
    and LOCAL_WORLD_SIZE. Processes started by torchrun, also below ``srun``, are left unchanged. So are single
    processes of SLURM: the body of a batch script and the shell of ``salloc`` have the number of tasks of their job,
    but are not tasks of a step.

    Raises:
        SettingsError: If SLURM's variables contradict each other, or the tasks are those of a terminal.
    """
    variables = os.environ
    if "RANK" in variables or "WORLD_SIZE" in variables or "SLURM_STEP_ID" not in variables:
        return
    count, rank, local = (
        _number(variables, *names)
        for names in (("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), ("SLURM_PROCID",), ("SLURM_LOCALID",))
    )
    if count == 1:
        return
    if not 0 <= rank < count:
        raise SettingsError(f"SLURM_PROCID is {rank} of {count} tasks: start the processes with srun")
    if "SLURM_PTY_PORT" in variables:
        raise SettingsError(
            f"srun --pty started {count} tasks, of which this terminal is one: the run would wait for the others. "
            "Start the shell with --ntasks=1, or start the command itself by srun, without --pty"
        )
    variables["RANK"], variables["WORLD_SIZE"], variables["LOCAL_RANK"] = str(rank), str(count), str(local)
    nodes = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    variables.setdefault("MASTER_ADDR", first_host(nodes))
    variables.setdefault("MASTER_PORT", str(_port(variables)))
    tasks = _tasks_by_node(variables.get("SLURM_STEP_TASKS_PER_NODE", ""))
    node = variables.get("SLURM_NODEID", "0")
    if node.isdecimal() and int(node) < len(tasks):
        variables.setdefault("LOCAL_WORLD_SIZE", str(tasks[int(node)]))


def local_world_size() -> int:
    """Return the number of processes started together on this machine, which share its cores and its memory."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, int(count)) if count.isdecimal() else 1


def is_first() -> bool:
    """Return whether this process is the only one, or the first of those started together."""
    return os.environ.get("RANK", "0") == "0"


def refuse_several(command: str) -> None:
    """Raise a `SettingsError` if this process is one of several, each of which would do all the work of a command."""
    if (count := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise SettingsError(
            f"{command} runs in a single process, but {count} were started: start it without torchrun, or with srun "
            "--ntasks=1"
        )


def first_host(node_list: str) -> str:
    """Return the first host of a SLURM node list: names, numbers in brackets, such as ``gpu[03-05,9],login``."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", node_list.strip())
    assert first is not None  # it also matches the empty string
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def _tasks_by_node(counts: str) -> list[int]:
    """Return the number of tasks on each node, which SLURM writes as ``4(x2),3``; none for other formats."""
    if not re.fullmatch(r"\d+(\(x\d+\))?(,\d+(\(x\d+\))?)*", counts):
        return []
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(tasks) for tasks, repeated in found for _ in range(int(repeated or 1))]


def _port(variables: Mapping[str, str]) -> int:
    """Return the same port for all tasks of a step, and different ports for different jobs and steps."""
    job, step = (_number(variables, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return _FIRST_PORT + (7 * job + step) % _NUM_PORTS


def _number(variables: Mapping[str, str], *names: str) -> int:
    """Return the value of the first variable that is set, as a number."""
    name = next((name for name in names if name in variables), names[-1])
    try:
        return int(variables[name])
    except (KeyError, ValueError):
        found = repr(variables[name]) if name in variables else "nothing"
        raise SettingsError(f"srun sets {' or '.join(names)} to a number, and it holds {found}") from None
