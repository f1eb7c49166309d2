"""Kill -9 at file operations and at random moments, in a process of its own; the long form is in ``benchmarks``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_any_file_operation_goes_on_to_the_very_same_result(workers):
    options = ["--epochs", "2", "--every", "11" if workers == 0 else "40", "--random", "3", "--workers", str(workers)]
    done = subprocess.run([sys.executable, str(HARNESS), *options], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] > 6
    assert result["different"] == []
    assert result["unreadable"] == []
