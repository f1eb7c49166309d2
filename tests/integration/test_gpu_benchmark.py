"""The benchmark of GPUs, where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def _run(*options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(BENCHMARK), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.slow
def test_each_figure_is_a_line_also_on_a_cpu():
    done = _run("--device", "cpu", "--quick")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["figure"] for line in lines] == ["step", "loader", "windows", "dice"]
    step, loader, windows, dice = lines
    assert min(step["ours_s"], step["bare_s"], windows["ours_s"], windows["monai_s"], dice["s"]) > 0
    assert 0 < loader["share"] < 1


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so():
    done = _run()
    assert done.returncode == 2
    assert "PyTorch finds 0 CUDA device(s)" in done.stdout
