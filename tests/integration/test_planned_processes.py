"""``torchrun`` in front of the command line: a planned run by two processes on Gloo, killed and resumed."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.experiment.state import load_state
from tests.crashes import assert_same_run

SMALL = {"filters": "4,8,8", "iterations_per_epoch": "8", "batch_size": "2", "validate_every": "1"}
PATIENCE_S = 280


def _start(*words):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command += ["-m", "candy_monai", *map(str, words), "--device", "cpu"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _begin_training(dataset, out):
    overrides = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    return _start("train", dataset, "--epochs", 4, "--seed", 3, "--out", out, *overrides)


def _end(process):
    output, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output


def _folder(out):
    (folder,) = (out / "UNetTrainer").iterdir()  # one, and nothing hidden beside it
    return folder


def _ranks(launcher):
    """Return the process of each rank below ``torchrun``."""
    found = {}
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        found.update({int(one[5:]): int(child) for one in variables if one.startswith(b"RANK=")})
    return found


def _is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_a_planned_run_whose_process_is_killed_ends_and_is_resumed_to_the_same_result(tmp_path):
    phantom = write_phantom_dataset(tmp_path / "phantom", num_cases=6, shape=(24, 26, 16))
    code, output = _end(_begin_training(phantom, tmp_path / "whole"))
    assert code == 0, output
    whole = _folder(tmp_path / "whole")
    with (whole / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert all(value for row in rows for value in row.values())
    assert json.loads((whole / "experiment.json").read_text())["processes"] == 2
    expected = json.loads((whole / "validation.json").read_text())
    launched = _begin_training(phantom, tmp_path / "killed")
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and not list((tmp_path / "killed").glob("UNetTrainer/2*/metrics.csv")):
        time.sleep(0.01)
    ranks = _ranks(launched.pid)
    os.kill(ranks[0], signal.SIGKILL)  # the one that saves; test_processes.py kills the other
    code, output = _end(launched)
    assert code != 0, output
    assert not any(map(_is_running, ranks.values()))
    killed = _folder(tmp_path / "killed")
    assert 1 <= load_state(killed).progress.epoch < 4
    code, output = _end(_start("resume", killed))
    assert code == 0, output
    assert_same_run(whole, killed)
    assert json.loads((killed / "validation.json").read_text()) == expected
