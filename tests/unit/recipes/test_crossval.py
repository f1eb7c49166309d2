import json
import sys

import pytest

from candy_monai.cli.main import main
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import CandyError, SettingsError
from candy_monai.recipes import crossval
from candy_monai.recipes.crossval import FoldRun, cross_validate
from tests.folders import make

TINY = ["filters=4,8,8", "iterations_per_epoch=2", "batch_size=1"]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantom", num_cases=4, shape=(24, 26, 16))


def _quiet(_message):
    pass


@pytest.fixture
def pretended(monkeypatch):
    """Let each fold's process write the files of a finished run at once; those of a number in the set fail."""
    failing, begun = set(), []

    def command(run):
        begun.append((run.number, run.command()))
        target = run.folder / "T" / f"2026{run.number}"
        script = (
            "import json, pathlib, sys\n"
            f"folder = pathlib.Path({str(target)!r}); folder.mkdir(parents=True, exist_ok=True)\n"
            "(folder / 'experiment.json').write_text('{}')\n"
            f"if {run.number in failing}: sys.exit(1)\n"
            f"mean = {{'1': {{'Dice': {run.number} / 10}}, '2': {{'Dice': None}}}}\n"
            f"scores = {{'foreground_mean': {{'Dice': {run.number} / 10}}, 'mean': mean}}\n"
            "(folder / 'validation.json').write_text(json.dumps(scores))\n"
        )
        return [sys.executable, "-c", script]

    started = crossval.subprocess.Popen
    monkeypatch.setattr(crossval, "_started", lambda run, environment: _popen(started, run, command(run), environment))
    return failing, begun


def _popen(start, run, command, environment):
    run.folder.mkdir(parents=True, exist_ok=True)
    return start(command, env=environment)


def test_every_fold_is_trained_once_and_their_means_are_written(phantom, tmp_path, pretended):
    _, begun = pretended
    path = cross_validate(phantom, jobs=2, out=tmp_path, options=["--epochs", "1"], on_progress=_quiet)
    assert sorted(number for number, _ in begun) == [0, 1, 2, 3]
    for number, command in begun:
        assert command[:4] == ["train", str(phantom), "--fold", str(number)]
        assert command[-2:] == ["--epochs", "1"]
    summary = json.loads(path.read_text())
    assert summary["foreground_mean"] == pytest.approx(0.15)
    assert summary["classes"] == {"1": pytest.approx(0.15), "2": None}
    assert [fold["foreground_mean"] for fold in summary["folds"]] == [0.0, 0.1, 0.2, 0.3]


def test_a_fold_that_fails_keeps_no_other_from_being_trained_and_the_next_call_resumes_it(phantom, tmp_path, pretended):
    failing, begun = pretended
    failing.add(1)
    with pytest.raises(CandyError, match=r"1 of 4 folds failed.*fold_1"):
        cross_validate(phantom, out=tmp_path, on_progress=_quiet)
    assert len(begun) == 4
    failing.clear()
    cross_validate(phantom, out=tmp_path, options=["--seed", "3"], on_progress=_quiet)
    number, command = begun[-1]
    assert (len(begun), number) == (5, 1)
    assert command[0] == "resume"
    assert "--seed" not in command


def test_jobs_share_the_cores(monkeypatch):
    monkeypatch.setattr(crossval.os, "cpu_count", lambda: 8)
    assert crossval._environment(0, 3, "cpu")["OMP_NUM_THREADS"] == "2"
    assert crossval._environment(0, 16, "cpu")["OMP_NUM_THREADS"] == "1"


def test_a_resumed_fold_gets_the_options_that_resume_knows(tmp_path):
    run = FoldRun(number=0, folder=tmp_path, dataset=tmp_path, options=("--device", "cpu", "--epochs", "3"))
    experiment = tmp_path / "T" / "20260101-00-abcd"
    experiment.mkdir(parents=True)
    (experiment / "experiment.json").touch()
    assert run.command() == ["resume", str(experiment), "--dataset", str(tmp_path), "--device", "cpu"]


def test_no_job_is_no_number_of_jobs(phantom, tmp_path):
    with pytest.raises(SettingsError, match="at least 1"):
        cross_validate(phantom, jobs=0, out=tmp_path)


@pytest.mark.slow
def test_the_command_trains_the_folds_and_prints_their_scores(phantom, tmp_path, capsys):
    arguments = ["--epochs", "1", "--device", "cpu", "--out", str(tmp_path), "--jobs", "2"]
    arguments += [word for item in TINY for word in ("--set", item)]
    assert main(["crossval", str(phantom), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.strip()[:1].isdigit()] == ["0", "1", "2", "3"]
    assert any(line.split()[:1] == ["mean"] for line in lines)


@pytest.mark.parametrize(("groups", "warnings"), [(None, 1), ("^(.+?)_frame", 0)])
def test_patients_on_both_sides_of_the_folds_are_told_before_the_first_is_trained(
    tmp_path, pretended, groups, warnings
):
    ids = tuple(f"patient{patient}_frame{frame}" for patient in range(3) for frame in range(2))
    said = []
    cross_validate(make(tmp_path / "data", ids=ids), groups=groups, out=tmp_path / "out", on_progress=said.append)
    found = [text for text in said if "patients are both in training and in validation" in text]
    assert len(found) == warnings
    assert all(text.startswith("Warning: ") and "--groups '^(.+?)_frame'" in text for text in found)
