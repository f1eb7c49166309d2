"""Real processes under torchrun, on Gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from candy_monai.experiment.history import load_metrics
from candy_monai.experiment.state import load_state

SCRIPT = Path(__file__).with_name("trained_by_processes.py")


def _start(*arguments, count, script=SCRIPT):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    command = command if count > 1 else [sys.executable]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, str(script), *map(str, arguments)], env=environment, **pipes)


def _run(*arguments, count, script=SCRIPT):
    process = _start(*arguments, count=count, script=script)
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def _folder(out):
    (folder,) = (path for path in (out / "ByProcesses").iterdir() if not path.name.startswith("."))
    return folder


def _weights(folder, name="checkpoint_latest.pth"):
    return torch.load(folder / name, weights_only=True)


@pytest.mark.slow
def test_two_processes_follow_one_with_a_batch_of_twice_the_size(tmp_path):
    for name, batch_size, count in (("one", 4, 1), ("two", 2, 2)):
        code, output = _run(tmp_path / name, batch_size, count=count)
        assert code == 0, output
    one, two = _folder(tmp_path / "one"), _folder(tmp_path / "two")
    first, second = _weights(one), _weights(two)
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    metrics = load_metrics(one / "metrics.csv"), load_metrics(two / "metrics.csv")
    assert metrics[0].keys() == metrics[1].keys()
    for name in ("combined loss", "val score", "val brightness"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], abs=1e-6)


@pytest.mark.slow
def test_samples_are_disjoint_and_each_case_is_scored_once(tmp_path):
    code, output = _run(tmp_path, 2, count=2)
    assert code == 0, output
    seen = [json.loads((tmp_path / f"seen {rank}.json").read_text()) for rank in (0, 1)]
    training = seen[0]["training"] + seen[1]["training"]
    assert len(seen[0]["training"]) == len(seen[1]["training"]) == 3 * 4
    for epoch in range(3):
        of_epoch = [name for part in seen for name in part["training"][4 * epoch : 4 * epoch + 4]]
        assert sorted(of_epoch) == sorted(set(training))
    assert sorted(seen[0]["validation"] + seen[1]["validation"]) == sorted(3 * ["v0", "v1", "v2"])


@pytest.mark.slow
def test_one_process_that_fails_ends_all_and_the_run_can_go_on_to_the_same_result(tmp_path):
    code, output = _run(tmp_path / "whole", 2, count=2)
    assert code == 0, output
    expected = _weights(_folder(tmp_path / "whole"))
    for how in ("raise", "kill"):
        code, output = _run(tmp_path / how, 2, how, count=2)
        assert code != 0, output
        halted = _folder(tmp_path / how)
        assert load_state(halted).progress.epoch >= 1
        code, output = _run(tmp_path / how, 2, "resume", halted.name, count=2)
        assert code == 0, output
        weights = _weights(halted)
        assert all(torch.equal(expected[name], weights[name]) for name in expected)


@pytest.mark.slow
def test_a_sharded_optimizer_trains_the_same_weights_and_its_saved_state_is_whole(tmp_path):
    folders = []
    for name, how in (("plain", ""), ("sharded", "sharded "), ("killed", "sharded kill")):
        code, output = _run(tmp_path / name, 2, how, count=2)
        assert (code != 0) == (name == "killed"), output
        folders.append(_folder(tmp_path / name))
    code, output = _run(tmp_path / "killed", 2, "resume", folders[-1].name, count=2)
    assert code == 0, output
    plain, *others = [(_weights(folder), load_state(folder).trainer.optimizer) for folder in folders]
    for weights, optimizer in others:
        assert all(torch.allclose(plain[0][name], weights[name], atol=1e-6) for name in weights)
        assert optimizer["param_groups"] == plain[1]["param_groups"]
        assert optimizer["state"].keys() == plain[1]["state"].keys() != set()
        for place, of_parameter in optimizer["state"].items():
            torch.testing.assert_close(of_parameter, plain[1]["state"][place])
    assert all(torch.equal(others[0][0][name], others[1][0][name]) for name in plain[0])
    total = sum(weight.numel() for weight in plain[0].values())
    for name in ("plain", "sharded", "killed"):
        seen = [json.loads((tmp_path / name / f"seen {rank}.json").read_text()) for rank in (0, 1)]
        shares = [part["optimized"] for part in seen]
        assert shares == [total, total] if name == "plain" else sum(shares) == total > max(shares)


@pytest.mark.slow
def test_a_request_to_end_is_agreed_on_and_saved(tmp_path):
    process = _start(tmp_path, 2, "slowly", count=2)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list(tmp_path.glob("ByProcesses/2*/metrics.csv")):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # torchrun passes it on to its processes
    output, _ = process.communicate(timeout=120)
    folder = _folder(tmp_path)
    assert "SIGTERM" in (folder / "logs.txt").read_text(), output
    assert load_state(folder).progress.epoch >= 1


@pytest.mark.slow
def test_gradients_sent_while_they_are_computed_are_those_averaged_afterwards_whatever_backward_does(tmp_path):
    code, output = _run(tmp_path, count=2, script=SCRIPT.with_name("averaged_by_processes.py"))
    assert code == 0, output
    of_ranks = [json.loads((tmp_path / f"found {rank}.json").read_text()) for rank in (0, 1)]
    assert all(each["same"] for found in of_ranks for each in found), of_ranks
    plain, accumulated, half, reordered, left_out, twice, clipped, not_finite, own_loop = of_ranks[0]
    for each in (plain, accumulated, half, reordered, not_finite):
        assert "averaged by DistributedDataParallel while they are computed, in 3 messages" in each["said"][0]
    # Between two steps nothing is sent but the three parts of the gradients; the first two make ready.
    assert plain["sent"][2:4] == [["all_reduce"] * 3] * 2
    assert accumulated["sent"][3] == ["all_reduce"] * 3
    assert "side.weight had no gradient" in left_out["said"][1]
    assert "backward makes several passes" in twice["said"][1]
    assert "backward changes gradients after its pass" in clipped["said"][1]
    assert left_out["sent"][6] == ["all_reduce"]
    assert "OwnLoop.train_epoch does not call super().train_epoch()" in own_loop["said"][0]
    assert len(not_finite["sent"]) == len(plain["sent"]) - 2  # a step of each epoch is left out
