"""Kill -9 at file operations, system calls and random moments; the long form is in ``benchmarks``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and finds its files in /proc")
@pytest.mark.parametrize(
    ("shape", "kills"),
    [
        ([], ["--every", "17", "--syscalls", "20", "--random", "3"]),
        (["--workers", "2"], ["--every", "40", "--syscalls", "60", "--random", "3"]),
        (["--processes", "2"], ["--every", "40", "--syscalls", "40", "--random", "4"]),
    ],
    ids=["alone", "workers", "torchrun"],
)
def test_a_run_killed_at_any_moment_goes_on_to_the_very_same_result(shape, kills):
    command = [sys.executable, str(HARNESS), "--epochs", "2", *shape, *kills]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"]["operation"] >= 2
    assert result["kills"]["moment"] >= 1
    if isinstance(result["system_calls"], int):  # otherwise it says why there are none
        assert result["kills"]["call"] >= 2
    for problem in ("different", "unreadable", "hung", "left_running"):
        assert result[problem] == [], problem
