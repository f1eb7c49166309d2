import json
import os
import signal

import pytest

from candy_monai.cli.main import main
from candy_monai.errors import SettingsError
from candy_monai.recipes.options import TrainOptions
from candy_monai.recipes.slurm_job import job_facts, requeued_if_interrupted, run_of_this_job
from candy_monai.training.signals import Interrupted
from tests.slurm import Slurm

RUNNING = "JobId=4711 JobName=train UserId=me(1) JobState=RUNNING Reason=None Dependency=(null)"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    programs = Slurm(tmp_path / "bin", monkeypatch)
    programs.add("scontrol", prints=RUNNING)
    return programs


def _interrupted_by(error):
    said = []
    with pytest.raises(type(error)), requeued_if_interrupted(said.append):
        raise error
    return said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_block_and_puts_the_job_back(slurm, number):
    said = []
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(Interrupted, match=number.name), requeued_if_interrupted(said.append):
        os.kill(os.getpid(), number)
    assert slurm.calls("scontrol")[-1] == "requeue 4711"
    assert said == ["job 4711 is back in the queue; the same command continues when it starts again"]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_task_of_an_array_goes_back_by_itself(slurm, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "4711")  # the id of the whole array, and of its last task
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    _interrupted_by(Interrupted("SIGTERM"))
    assert slurm.calls("scontrol")[-1] == "requeue 4711_3"


@pytest.mark.parametrize(
    ("state", "reason", "goes_back"),
    [("COMPLETING", "None", False), ("CANCELLED", "None", False), ("COMPLETING", "TimeLimit", True)],
)
def test_a_job_that_is_cancelled_stays_so_and_one_whose_time_is_up_goes_back(slurm, state, reason, goes_back):
    slurm.add("scontrol", prints=RUNNING.replace("RUNNING", state).replace("Reason=None", f"Reason={reason}"))
    (said,) = _interrupted_by(Interrupted("SIGTERM"))
    assert ("requeue 4711" in slurm.calls("scontrol")) == goes_back
    assert ("is being cancelled" in said) != goes_back


def test_that_the_job_could_not_go_back_is_said_with_the_reason(slurm):
    slurm.add("scontrol", prints=RUNNING, fails="slurm_requeue error: Job is not requeueable", when="requeue")
    assert "Job is not requeueable" in _interrupted_by(Interrupted("SIGUSR1"))[0]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("SIGINT"), ValueError("x")])
def test_ctrl_c_and_errors_put_nothing_back(slurm, error):
    assert _interrupted_by(error) == []
    assert slurm.calls("scontrol") == []


def test_of_several_processes_the_first_puts_the_job_back(slurm, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert _interrupted_by(Interrupted("SIGTERM")) == []


def test_outside_of_a_job_and_without_scontrol_it_is_refused(slurm, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="scontrol is not found"), requeued_if_interrupted(print):
        pass
    monkeypatch.delenv("SLURM_JOB_ID")
    assert main(["train", str(tmp_path), "--requeue"]) == 2
    assert "not a SLURM job" in capsys.readouterr().err


def _run(out, name, facts):
    folder = out / "T" / name
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps({"format": 2, **facts}))
    return folder


def test_a_run_is_found_by_its_job_its_dataset_and_its_options(slurm, tmp_path, monkeypatch):
    options = TrainOptions(out=tmp_path, seed=1)
    assert run_of_this_job(tmp_path / "D", options) is None
    run = _run(tmp_path, "20260101-00-0000", job_facts(tmp_path / "D", options))
    _run(tmp_path, "20260101-00-0001", job_facts(tmp_path / "E", options))
    (tmp_path / "T" / "20260101-00-0002").mkdir()
    (tmp_path / "T" / "20260101-00-0002" / "experiment.json").write_text("{")
    assert run_of_this_job(tmp_path / "D", options) == run
    assert run_of_this_job(tmp_path / "D", TrainOptions(out=tmp_path, seed=2)) is None
    monkeypatch.setenv("SLURM_JOB_ID", "4712")
    assert run_of_this_job(tmp_path / "D", options) is None
    monkeypatch.delenv("SLURM_JOB_ID")
    assert run_of_this_job(tmp_path / "D", options) is None


def test_the_command_goes_on_with_the_run_that_its_job_began(slurm, tmp_path, monkeypatch, capsys):
    resumed = []
    monkeypatch.setattr(
        "candy_monai.recipes.resume.resume_training",
        lambda run, options, **_: resumed.append((run, options.num_epochs, options.device)) or run,
    )
    typed = ["train", str(tmp_path / "D"), "--epochs", "5", "--device", "cpu", "--out", str(tmp_path), "--requeue"]
    facts = {}
    monkeypatch.setattr(
        "candy_monai.recipes.train.train_dataset",
        lambda dataset, options, **_: facts.update(job_facts(dataset, options)) or tmp_path,
    )
    assert main(typed) == 0
    run = _run(tmp_path, "20260101-00-0000", facts)
    assert main(typed) == 0
    assert resumed == [(run, None, "cpu")]
    assert f"Continuing {run}" in capsys.readouterr().out
