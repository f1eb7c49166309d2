"""``torchrun`` in front of ``preprocess`` and ``predict``: two processes share the cases, and one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from candy_monai.cli.main import main
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.recipes.trainers import find_trainer
from tests.toys import Squares, small_trainer

PATIENCE_S = 240
OWN = """
import time
import torch
from candy_monai import SegmentationTrainer

class Threshold(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images):
        time.sleep(0.1)  # so that there is time to kill it
        return images[:, :1] - 0.5 + 0 * self.weight

class Trainer(SegmentationTrainer):
    num_classes = 1

    def build_network(self, example_shape):
        return Threshold()
"""


def _alone(*words):
    assert main([*map(str, words), "--device", "cpu"]) == 0


def _start(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "candy_monai", *map(str, words), "--device", "cpu"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _end(process):
    output, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output


def _kill_one(launcher, pattern, folder, *, after):
    """Kill the second process once so many files are there; torchrun ends the other one."""
    deadline = time.monotonic() + PATIENCE_S
    while len(list(folder.glob(pattern))) < after:
        assert time.monotonic() < deadline
        assert launcher.poll() is None, launcher.communicate()
        time.sleep(0.005)
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        if b"RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            os.kill(int(child), signal.SIGKILL)
    code, output = _end(launcher)
    assert code != 0, output


def _content(folder, pattern):
    """Return what files hold, but for what a killed process had half written under a hidden name."""
    files = [path for path in folder.rglob(pattern) if not path.name.startswith(".")]
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_what_a_killed_process_leaves_is_preprocessed_by_the_same_command_to_the_same_bytes(tmp_path):
    phantom = write_phantom_dataset(tmp_path / "phantom", num_cases=16, shape=(40, 40, 40))
    _alone("preprocess", phantom, "--store", tmp_path / "whole")
    command = ("preprocess", phantom, "--store", tmp_path / "shared", "--jobs", 1)
    _kill_one(_start(*command), "*/case-*.json", tmp_path / "shared", after=2)
    assert len(list((tmp_path / "shared").glob("*/case-*.json"))) < 16
    code, output = _end(_start(*command))
    assert code == 0, output
    assert output.count("Preprocessing") <= 1  # none where the other process was done before the first one looked
    for pattern in ("case-*", "store-*.json"):
        made = _content(tmp_path / "shared", pattern)
        assert made == _content(tmp_path / "whole", pattern) != {}
    assert not list((tmp_path / "shared").rglob(".*.lock"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_what_a_killed_process_leaves_is_predicted_by_the_same_command_to_the_same_bytes(tmp_path):
    phantom = write_phantom_dataset(tmp_path / "phantom", num_cases=1, num_test_cases=16, shape=(16, 16, 16))
    own = tmp_path / "own.py"
    own.write_text(OWN)
    cls = find_trainer(own=f"{own}:Trainer")
    trainer = small_trainer(tmp_path / "runs", Squares(2, size=(16, 16, 16)), cls=cls)
    trainer.train(1, save_preview=False)

    def command(out):
        return ("predict", trainer.experiment_folder(), phantom / "imagesTs", out, "--trainer", f"{own}:Trainer")

    _alone(*command(tmp_path / "whole"))
    _kill_one(_start(*command(tmp_path / "shared")), "*.nii.gz", tmp_path / "shared", after=4)
    left = len(_content(tmp_path / "shared", "*.nii.gz"))
    assert left < 16
    code, output = _end(_start(*command(tmp_path / "shared")))
    assert code == 0, output
    assert output.count("16 label maps in") == 1
    assert _content(tmp_path / "shared", "*.nii.gz") == _content(tmp_path / "whole", "*.nii.gz") != {}
    assert len(json.loads((tmp_path / "shared" / "manifest.json").read_text())["cases"]) == 16
    assert not list((tmp_path / "shared").glob(".*.lock"))
