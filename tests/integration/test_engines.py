"""The script of the documentation for MONAI's engines: alone, with our handlers, in two processes, killed, resumed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from candy_monai.experiment.history import load_metrics
from candy_monai.experiment.runs import summarize
from candy_monai.plotting.case.previews import PREVIEW_NAMES

PAGE = Path(__file__).parents[2] / "docs" / "in_monai_engines.md"
BLOCK = re.search(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
assert BLOCK is not None
SCRIPT = BLOCK[1]
ALONE = "".join(line for line in SCRIPT.splitlines(keepends=True) if not line.endswith("# added\n"))
KILLED = SCRIPT.replace(
    "trainer.run()",
    """from ignite.engine import Events
import signal, time
def kill(engine):
    time.sleep(1)  # the epoch before is written meanwhile
    if os.environ.get("RANK", "0") == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
trainer.add_event_handler(Events.EPOCH_STARTED(once=3), kill)
trainer.run()""",
)
FIRST_ONLY = "import candy_monai.handlers.engine_run as ours\nours.MEETING_S = 5\n" + SCRIPT.replace(
    "trainer = SupervisedTrainer(", "is_first = dist.get_rank() == 0\ntrainer = SupervisedTrainer("
).replace("    train_handlers=[", "    train_handlers=[one for one in [").replace(
    "        PreviewHandler(),  # added\n    ],",
    '        PreviewHandler(),  # added\n    ] if is_first or "candy" not in type(one).__module__],',
)


def run(script, folder, *, count=1):
    """Run a script in a folder; return the exit code and what it says."""
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(script)
    command = [sys.executable, "train.py"]
    if count > 1:
        command[1:1] = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    return done.returncode, done.stdout + done.stderr


def final_weights(folder):
    return torch.load(folder / "last.pt", weights_only=True)


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def whole(request, tmp_path_factory):
    """Return the folder of the script with our handlers, run to its end, and its number of processes."""
    folder = tmp_path_factory.mktemp("whole")
    code, output = run(SCRIPT, folder, count=request.param)
    assert code == 0, output
    return folder, request.param


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first) and first.keys() == second.keys()


def experiment(folder):
    (found,) = (folder / "experiments" / "SupervisedTrainer").iterdir()
    return found


def test_the_script_has_lines_of_ours_and_is_one_without_them():
    assert "candy_monai" not in ALONE
    compile(ALONE, "train.py", "exec")


@pytest.mark.slow
def test_the_weights_are_the_hosts_and_the_folder_is_full(whole, tmp_path):
    ours, count = whole
    code, output = run(ALONE, tmp_path, count=count)
    assert code == 0, output
    assert same(final_weights(tmp_path), final_weights(ours))
    folder = experiment(ours)
    assert {"logs.txt", "progress.png", "val score.png", "checkpoint_best.pth", "state.pt", *PREVIEW_NAMES} <= {
        path.name for path in folder.iterdir()
    }
    assert (folder / "best" / PREVIEW_NAMES[0]).is_file()
    assert len(load_metrics(folder / "metrics.csv")["val score"]) == 3
    raw = torch.load(folder / "checkpoint_latest.pth", weights_only=True)
    assert same(raw, {name.removeprefix("module."): value for name, value in final_weights(ours).items()})


@pytest.mark.slow
def test_a_script_that_was_killed_goes_on_to_the_same_bits(whole, tmp_path):
    expected, count = whole
    code, output = run(KILLED, tmp_path, count=count)
    assert code != 0, output
    summary = summarize(experiment(tmp_path))
    assert (summary.epochs_done, summary.is_finished) == (2, False)
    code, output = run(SCRIPT, tmp_path, count=count)
    assert code == 0, output
    assert same(final_weights(tmp_path), final_weights(expected))
    metrics = [load_metrics(experiment(folder) / "metrics.csv") for folder in (tmp_path, expected)]
    assert all(metrics[0][name] == metrics[1][name] for name in ("combined loss", "val score", "learning rate"))


@pytest.mark.slow
def test_handlers_in_the_first_process_only_are_refused(tmp_path):
    code, output = run(FIRST_ONLY, tmp_path, count=2)
    assert code != 0
    assert "put the same handlers into the train_handlers of every process" in output
