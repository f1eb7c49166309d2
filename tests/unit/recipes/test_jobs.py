import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from candy_monai.cli.main import main
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError, RunFailedError, SettingsError
from candy_monai.experiment.history import load_metrics
from candy_monai.recipes import jobs
from candy_monai.recipes.jobs import JOB, JobLauncher, RunInJob, submit_training
from candy_monai.recipes.launching import SeparateRun
from candy_monai.recipes.options import TrainOptions
from tests.slurm import Slurm

GONE = "slurm_load_jobs error: Invalid job id specified"


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    programs = Slurm(tmp_path / "bin", monkeypatch)
    programs.add("sbatch", prints="Submitted batch job 101")
    for name in ("srun", "scancel"):
        programs.add(name)
    programs.add("squeue", prints="RUNNING")
    return programs


@pytest.fixture
def run(tmp_path):
    return SeparateRun(dataset=tmp_path / "D", options=TrainOptions(out=tmp_path / "fold_0"), name="Fold 0")


def launcher(said=None, **arguments):
    given = {"time": "60", **{name.replace("_", "-"): value for name, value in arguments.items()}}
    return JobLauncher("slurm", given, say=(said if said is not None else []).append)


def ended(run, outcome, *, job="101", task=0):
    """Write what submitit's job leaves when it has ended."""
    (run.folder / "jobs").mkdir(parents=True, exist_ok=True)
    (run.folder / "jobs" / f"{job}_{task}_result.pkl").write_bytes(pickle.dumps((outcome, "why")))


def scored(run):
    folder = run.folder / "T" / "20260101"
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text("{}")
    (folder / "validation.json").write_text("{}")


def test_a_job_asks_for_what_it_was_told_by_the_options_of_sbatch(slurm, run):
    said = []
    launched = launcher(
        said,
        time="2-12",
        partition="gpu,long",
        gpus_per_node="a100:2",
        nodes="2",
        ntasks_per_node="2",
        cpus_per_task="12",
        exclusive="true",
    )
    process = launched.start(run)
    lines = slurm.script("sbatch").splitlines()
    for option in ("time=3600", "partition=gpu,long", "gpus-per-node=a100:2", "nodes=2", "ntasks-per-node=2"):
        assert f"#SBATCH --{option}" in lines
    assert {"#SBATCH --exclusive", "#SBATCH --requeue", "#SBATCH --signal=USR2@90"} <= set(lines)
    (command,) = [line for line in lines if line.startswith("srun ")]
    assert "submitit.core._submit" in command
    assert "--cpus-per-task=12" in command  # srun does not take it over
    assert process.job.num_tasks == 4
    assert said == ["Fold 0 is job 101"]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 91), ("1:30:00", 90), ("2-0", 2880), ("1-2:30", 1590), ("0-0:0:30", 1), ("12h", 720)],
)
def test_times_are_read_as_sbatch_reads_them_and_as_a_budget(slurm, run, text, minutes):
    launcher(time=text).start(run)
    assert f"#SBATCH --time={minutes}" in slurm.script("sbatch").splitlines()


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("slurm", {}, "give the time limit of a job, --launcher-args time=12:00:00"),
        ("slurm", {"time": "0"}, "expected a time above 0"),
        ("slurm", {"time": "soon"}, "got 'soon'"),
        ("slurm", {"time": "1h", "nodes": "two"}, "nodes=two: expected a whole number"),
        ("slurm", {"time": "1h", "ntasks": "4"}, "ntasks: is set by candy-monai.*nodes and ntasks-per-node"),
        ("local", {"partition": "gpu"}, "partition: local jobs accept only time, gpus_per_node"),
    ],
)
def test_what_jobs_cannot_ask_for_is_refused(slurm, name, arguments, said):
    with pytest.raises(SettingsError, match=said):
        JobLauncher(name, arguments)


def test_without_slurm_it_is_refused_before_anything_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    typed = [str(tmp_path / "none"), "--launcher-args", "time=1h"]
    assert main(["crossval", *typed, "--launcher", "slurm"]) == 2
    assert "sbatch, squeue and srun are not found" in capsys.readouterr().err
    assert main(["crossval", *typed]) == 2
    assert "--launcher-args needs --launcher" in capsys.readouterr().err


def test_several_processes_do_not_submit_a_job_each(slurm, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(["train", str(tmp_path), "--launcher", "slurm", "--launcher-args", "time=1h"]) == 2
    assert "--launcher slurm runs in a single process, but 4 were started" in capsys.readouterr().err
    assert slurm.calls("sbatch") == []


def test_what_sbatch_says_to_a_job_that_it_does_not_take_is_passed_on(slurm, run):
    slurm.add("sbatch", fails="sbatch: error: invalid partition specified: gpuu")
    with pytest.raises(RunFailedError, match="Fold 0: the job was not accepted.*invalid partition specified: gpuu"):
        launcher(partition="gpuu").start(run)
    assert not (run.folder / JOB).exists()


def test_a_job_that_was_submitted_before_is_waited_for_and_one_that_is_gone_submitted_anew(slurm, run):
    launcher().start(run)
    said = []
    assert launcher(said).start(run).job.job_id == "101"
    assert said == ["Fold 0 is job 101, which was submitted before"]
    assert len(slurm.calls("sbatch")) == 1
    slurm.add("squeue", fails="slurm_load_jobs error: Unable to contact slurm controller")
    launcher().start(run)
    assert len(slurm.calls("sbatch")) == 1  # nobody knows that it is gone
    slurm.add("squeue", fails=GONE)
    launcher().start(run)
    assert len(slurm.calls("sbatch")) == 2


def test_a_job_is_done_with_its_result_and_its_scores_and_failed_with_an_error(slurm, run):
    process = launcher().start(run)
    assert process.poll() is None
    ended(run, "success")
    assert process.poll() is None  # a file system may show the scores later
    scored(run)
    assert process.poll() == 0
    ended(run, "error")
    assert launcher().start(run).poll() == 1


def test_a_job_of_several_tasks_is_done_with_the_last(slurm, run):
    process = launcher(ntasks_per_node="2").start(run)
    scored(run)
    ended(run, "success", task=1)
    assert process.poll() is None
    ended(run, "success")
    assert process.poll() == 0


def test_a_job_that_leaves_the_queue_without_a_result_has_failed(slurm, run, monkeypatch):
    monkeypatch.setattr(jobs, "_ASK_EVERY_S", 0.0)
    monkeypatch.setattr(jobs, "_SETTLE_S", 0.05)
    process = launcher().start(run)
    assert process.poll() is None
    slurm.add("squeue", fails=GONE)
    assert process.poll() is None
    time.sleep(0.1)
    assert process.poll() == 1


def test_an_end_cancels_the_job_and_says_so(slurm, run):
    said = []
    process = launcher(said).start(run)
    process.terminate()
    assert slurm.calls("scancel") == ["101"]
    assert said[-1] == "Fold 0: job 101 is cancelled"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.0)
    slurm.add("squeue", fails=GONE)
    assert process.wait(5) == 1


def test_a_training_is_submitted_once_and_its_folder_follows_from_what_is_asked_for(slurm, tmp_path, capsys):
    dataset = tmp_path / "D"
    dataset.mkdir()
    typed = ["train", str(dataset), "--out", str(tmp_path / "out"), "--launcher", "slurm", "--launcher-args", "time=1h"]
    assert main(typed) == 2
    assert "holds no dataset.json" in capsys.readouterr().err
    (dataset / "dataset.json").write_text("{}")
    assert main(typed) == 0
    submitted = capsys.readouterr().out.splitlines()[-1].removeprefix("Submitted: ")
    assert Path(submitted).parent == tmp_path / "out"
    assert json.loads((Path(submitted) / JOB).read_text())["id"] == "101"
    assert main(typed) == 0
    assert len(slurm.calls("sbatch")) == 1
    assert main([*typed, "--seed", "2"]) == 0  # another run
    assert len(slurm.calls("sbatch")) == 2
    scored(SeparateRun(dataset=dataset, options=TrainOptions(out=submitted), name=""))
    assert main(typed) == 0
    assert f"Experiment: {submitted}" in capsys.readouterr().out
    with pytest.raises(BadInputError, match="no such|holds no dataset"):
        submit_training(tmp_path / "none", launcher=launcher())


def test_a_job_that_is_submitted_from_a_job_inherits_nothing_of_it_but_where_slurm_is(slurm, run, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/here.conf")
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_CPU_BIND", "RANK", "SBATCH_ACCOUNT"):
        monkeypatch.setenv(name, "1")
    launcher().start(run)
    names = {line.partition("=")[0] for line in slurm.variables("sbatch")}
    assert {"SLURM_CONF", "SBATCH_ACCOUNT"} <= names
    assert not {"SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_CPU_BIND", "RANK"} & names
    assert os.environ["SLURM_NTASKS"] == "1"


@pytest.mark.parametrize(("one", "other"), [("--launcher=local", "--requeue"), ("--requeue", "--repeat-seeds=2")])
def test_ways_to_train_that_exclude_each_other_are_refused(slurm, monkeypatch, capsys, one, other):
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    slurm.add("scontrol")
    assert main(["train", "D", one, other]) == 2
    assert "not both" in capsys.readouterr().err


CHILD = """
import signal, sys, time
ignored = signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
print("ready" if ignored else "not ignored", flush=True)
time.sleep(60)
"""


def test_a_job_whose_time_is_up_lets_its_run_save_and_goes_on_with_it_later(run, monkeypatch):
    started = []

    def start(chosen, environment):
        started.append(chosen)
        process = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout.readline() == "ready\n"  # signals to the whole job do not end it
        return process

    monkeypatch.setattr(jobs, "start_run", start)
    job, again = RunInJob(run), []

    def on_time_up(*_):
        again.append(job.checkpoint())
        raise InterruptedError

    sleep, slept = time.sleep, []

    def sleep_until_the_time_is_up(seconds):
        slept.append(seconds)
        if len(slept) == 1:  # the job waits for its run
            os.kill(os.getpid(), signal.SIGUSR2)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", sleep_until_the_time_is_up)
    before = signal.signal(signal.SIGUSR2, on_time_up)
    try:
        with pytest.raises(InterruptedError):
            job()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert job._process.returncode == 130
    assert started == [run]
    assert isinstance(again[0].function, RunInJob)


def test_a_job_whose_run_fails_names_its_output(run, monkeypatch):
    failing = [sys.executable, "-c", "raise SystemExit(3)"]
    monkeypatch.setattr(jobs, "start_run", lambda *_: subprocess.Popen(failing))
    with pytest.raises(RunFailedError, match=r"Fold 0: exit code 3, see .*fold_0/output.txt"):
        RunInJob(run)()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_of_this_machine_whose_time_is_up_starts_again_and_finishes_its_run(tmp_path):
    dataset = write_phantom_dataset(tmp_path / "phantom", num_cases=3, shape=(24, 26, 16))
    plan = {"filters": "4,8,8", "iterations_per_epoch": "2", "batch_size": "1", "validate_every": "30"}
    submitter = JobLauncher("local", say=lambda _: None)
    options = TrainOptions(out=tmp_path / "out", num_epochs=30, overrides=plan, device="cpu", seed=1, jobs=1)
    run = submit_training(dataset, options, launcher=submitter)
    deadline = time.monotonic() + 500
    while not list(run.folder.glob("*/2*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    (record,) = [json.loads((run.folder / JOB).read_text())]
    (task,) = Path(f"/proc/{record['id']}/task/{record['id']}/children").read_text().split()
    os.kill(int(task), signal.SIGUSR2)
    while run.scores is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert run.scores is not None
    (experiment,) = [path for path in run.folder.glob("*/2*") if path.is_dir()]
    assert len(load_metrics(experiment / "metrics.csv")["combined loss"]) == 30
    assert "Interrupted in epoch" in (experiment / "logs.txt").read_text()
