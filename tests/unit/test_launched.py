import os

import pytest

from candy_monai.errors import SettingsError
from candy_monai.launched import first_host, local_world_size, name_as_torchrun, refuse_several
from candy_monai.processes import Processes

TASK = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_NODELIST": "gpu[05-08]",
}
"""Of the last of four tasks on two nodes, by a step of half of its job."""


@pytest.fixture
def started_with(monkeypatch):
    """Let this process have variables beside its own, without those that another launcher left."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}

    def start(**variables):
        monkeypatch.setattr(os, "environ", {**kept, **variables})
        return os.environ

    return start


def test_a_task_of_srun_has_the_variables_that_torchrun_sets(started_with):
    variables = started_with(**TASK)
    processes = Processes.from_environment()
    assert (processes.rank, processes.world_size, processes.local_rank) == (3, 4, 1)
    assert variables["MASTER_ADDR"] == "gpu07"
    assert 1024 < int(variables["MASTER_PORT"]) < 32768  # below the ports that Linux gives to others


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "8"}, 8),
        ({"LOCAL_WORLD_SIZE": "many"}, 1),
        ({**TASK, "SLURM_STEP_TASKS_PER_NODE": "1,3", "SLURM_NODEID": "1"}, 3),
        ({**TASK, "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_NODEID": "1"}, 2),
        ({**TASK, "SLURM_STEP_TASKS_PER_NODE": "2 each", "SLURM_NODEID": "1"}, 1),
        ({**TASK, "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_NODEID": "1"}, 1),
    ],
)
def test_processes_know_how_many_share_their_machine(started_with, variables, expected):
    started_with(**variables)
    name_as_torchrun()
    assert local_world_size() == expected


def test_steps_and_jobs_beside_each_other_have_ports_of_their_own_and_tasks_of_one_step_the_same(started_with):
    ports = []
    for job, step, rank in ((1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0)):
        numbers = {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step), "SLURM_PROCID": str(rank)}
        variables = started_with(**{**TASK, **numbers})
        name_as_torchrun()
        ports.append(variables["MASTER_PORT"])
    assert ports[0] == ports[1]
    assert len(set(ports[1:])) == 3


def test_an_address_that_the_user_gives_is_kept(started_with):
    variables = started_with(**TASK, MASTER_ADDR="head", MASTER_PORT="29500")
    name_as_torchrun()
    assert (variables["MASTER_ADDR"], variables["MASTER_PORT"]) == ("head", "29500")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # a batch script
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},  # salloc
        {
            **TASK,
            "SLURM_STEP_ID": "4294967290",
            "SLURM_STEP_NUM_TASKS": "1",
            "SLURM_PTY_PORT": "1",
        },  # salloc's own step
    ],
    ids=["no SLURM", "batch script", "salloc", "interactive step"],
)
def test_what_is_no_task_among_several_is_one_process(started_with, variables):
    started_with(**{**variables, **({"SLURM_PROCID": "0"} if "SLURM_PROCID" in variables else {})})
    assert Processes.from_environment().world_size == 1
    refuse_several("it")
    assert "RANK" not in os.environ


def test_what_torchrun_says_below_srun_holds(started_with):
    started_with(**TASK, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1")
    assert Processes.from_environment().world_size == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"SLURM_PROCID": "4"}, "SLURM_PROCID is 4 of 4 tasks"),
        ({"SLURM_PROCID": ""}, "SLURM_PROCID to a number, and it holds ''"),
        ({"SLURM_STEP_NUM_TASKS": "four"}, "SLURM_STEP_NUM_TASKS or SLURM_NTASKS to a number, and it holds 'four'"),
        ({"SLURM_PTY_PORT": "40000"}, "srun --pty started 4 tasks.*--ntasks=1"),
    ],
)
def test_tasks_that_cannot_be_one_run_are_refused_with_what_to_do(started_with, change, said):
    started_with(**{**TASK, **change})
    with pytest.raises(SettingsError, match=said):
        name_as_torchrun()


def test_a_variable_that_is_missing_is_named(started_with):
    started_with(**{name: value for name, value in TASK.items() if name != "SLURM_LOCALID"})
    with pytest.raises(SettingsError, match="SLURM_LOCALID to a number, and it holds nothing"):
        name_as_torchrun()


def test_what_one_process_does_is_refused_to_several(started_with):
    started_with(**TASK)
    name_as_torchrun()
    with pytest.raises(SettingsError, match=r"^'x' runs in a single process, but 4 were started.*srun --ntasks=1$"):
        refuse_several("'x'")


@pytest.mark.parametrize(
    ("node_list", "first"),
    [
        ("vm", "vm"),
        ("a1,a2", "a1"),
        ("gpu[07-08]", "gpu07"),
        ("gpu[3,7-9],login", "gpu3"),
        ("rack[2-3]n[001-004,9]-ib,x", "rack2n001-ib"),
        ("node[12].cluster", "node12.cluster"),
    ],
)
def test_the_first_host_of_slurm_s_lists(node_list, first):
    assert first_host(node_list) == first
