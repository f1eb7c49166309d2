import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from candy_monai.cli.main import main
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError, ExperimentError, SettingsError
from candy_monai.experiment.checkpoints import load_tensors, save_tensors
from candy_monai.experiment.description import DatasetRecord, ExperimentDescription
from candy_monai.experiment.settings import TrainSettings
from candy_monai.experiment.state import load_state
from candy_monai.frontends.base import Frontend
from candy_monai.incoming.opening import load_predictor
from candy_monai.recipes.resume import resume_training
from candy_monai.recipes.train import train_dataset
from candy_monai.training.resume import SavedRun
from candy_monai.training.segmentation import SegmentationTrainer
from tests.crashes import assert_same_run
from tests.toys import small_trainer

TINY = {"filters": "4,8,8", "iterations_per_epoch": "3", "batch_size": "2", "validate_every": "1"}


class Crash(Exception):
    pass


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantom", num_cases=6, shape=(24, 26, 16))


def _quiet(_message):
    pass


def _train(phantom, out):
    return train_dataset(phantom, num_epochs=2, seed=3, overrides=TINY, device="cpu", out=out, on_progress=_quiet)


@pytest.fixture
def crashed(phantom, tmp_path, monkeypatch):
    """A run that ended in its second epoch."""
    with monkeypatch.context() as patched:
        backward, steps = SegmentationTrainer.backward, []

        def crash(self, *arguments):
            steps.append(1)
            if len(steps) == 5:
                raise Crash
            return backward(self, *arguments)

        patched.setattr(SegmentationTrainer, "backward", crash)
        with pytest.raises(Crash):
            _train(phantom, tmp_path / "out")
    (folder,) = (tmp_path / "out" / "UNetTrainer").iterdir()
    return folder


@pytest.mark.slow
def test_a_planned_run_goes_on_from_its_folder_alone_to_the_same_result(phantom, crashed, tmp_path):
    whole = _train(phantom, tmp_path / "whole")
    assert resume_training(crashed, device="cpu", on_progress=_quiet) == crashed
    assert_same_run(whole, crashed)
    for name in ("validation.json", "splits_final.json"):
        assert (whole / name).read_text() == (crashed / name).read_text()


def test_as_many_cases_are_scored_in_the_end_as_a_budget_had_left_room_for(crashed):
    _described(crashed, num_scored=1)
    resume_training(crashed, device="cpu", on_progress=_quiet)
    assert len(json.loads((crashed / "validation.json").read_text())["metric_per_case"]) == 1


def test_a_finished_run_is_said_to_be_finished_and_left_as_it_is(phantom, tmp_path, capsys):
    folder = _train(phantom, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main(["resume", str(folder)]) == 0
    assert "finished already" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    shutil.move(phantom, tmp_path / "moved")  # what the options lack is said before the dataset is read
    assert main(["resume", str(folder), "--epochs", "3", "--device", "cpu"]) == 2
    assert "--schedule keep|restart" in capsys.readouterr().err
    shutil.move(tmp_path / "moved", phantom)
    with pytest.raises(SettingsError, match="finished run"):
        resume_training(folder, num_epochs=3, schedule="stretch", device="cpu", on_progress=_quiet)
    resume_training(folder, num_epochs=3, schedule="restart", device="cpu", on_progress=_quiet)
    assert load_state(folder).progress.epoch == 3


def test_a_finished_run_with_a_budget_is_not_given_more_epochs_which_it_has_no_time_for(tmp_path, monkeypatch):
    dataset = DatasetRecord(folder="data", store="store", training=("a",), validation=("b",))
    saved = SavedRun(
        folder=tmp_path,
        description=ExperimentDescription(trainer="UNetTrainer", bundle="unet", dataset=dataset, plan={}),
        settings=TrainSettings(num_epochs=100, time_limit_s=30.0, seed=1),
        is_finished=True,
    )
    monkeypatch.setattr(SavedRun, "load", lambda _folder: saved)
    with pytest.raises(SettingsError, match=f"no time for more epochs.* train data --init-from {tmp_path}"):
        resume_training(tmp_path, num_epochs=200, schedule="restart", device="cpu", on_progress=_quiet)


def test_a_dataset_that_moved_is_asked_for_and_one_that_changed_is_refused(phantom, crashed, tmp_path):
    phantom = phantom.rename(phantom.with_name("moved"))
    try:
        with pytest.raises(BadInputError, match="no longer exists.*--dataset"):
            resume_training(crashed, device="cpu", on_progress=_quiet)
        other = write_phantom_dataset(tmp_path / "other", num_cases=6, shape=(24, 26, 16), seed=9)
        with pytest.raises(ExperimentError, match=r"dataset\.digest"):
            resume_training(crashed, dataset=other, device="cpu", on_progress=_quiet)
        resume_training(crashed, dataset=phantom, device="cpu", on_progress=_quiet)
    finally:
        phantom.rename(phantom.with_name("phantom"))
    assert load_state(crashed).progress.epoch == 2


def _described(folder, **facts):
    path = folder / "experiment.json"
    description = json.loads(path.read_text())
    description["dataset"].update(facts)
    path.write_text(json.dumps(description))


def test_nothing_is_written_to_a_folder_that_only_the_description_calls_a_store(phantom, crashed, tmp_path):
    (crashed.parents[1] / ".store").rename(tmp_path / "out" / "elsewhere")
    precious = tmp_path / "precious"
    precious.mkdir()
    for folder in (precious, tmp_path / "new"):
        _described(crashed, store=str(folder))
        with pytest.raises(BadInputError, match="no longer exists.*--store"):
            resume_training(crashed, device="cpu", on_progress=_quiet)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "precious"]
        assert not list(precious.iterdir())


def test_experiments_that_moved_together_with_their_store_find_it(crashed, tmp_path):
    moved = (tmp_path / "out").rename(tmp_path / "moved") / "UNetTrainer" / crashed.name
    resume_training(moved, device="cpu", on_progress=_quiet)
    assert load_state(moved).progress.epoch == 2
    assert not (tmp_path / "out").exists()


def test_a_run_whose_store_is_of_an_earlier_version_goes_on(crashed):
    store = crashed.parents[1] / ".store"
    shutil.rmtree(store)
    (store / "Phantom-0123456789ab").mkdir(parents=True)
    (store / "Phantom-0123456789ab" / "store.json").write_text('{"format": 2, "dataset": "Phantom", "cases": {}}')
    (store / "Phantom-0123456789abcdef.fingerprint-4.json").write_text("{}")
    resume_training(crashed, device="cpu", on_progress=_quiet)
    assert load_state(crashed).progress.epoch == 2


@pytest.mark.slow
def test_a_run_of_half_precision_goes_on_with_its_own_store(phantom, tmp_path):
    options = {"num_epochs": 1, "seed": 3, "overrides": TINY, "device": "cpu", "out": tmp_path, "on_progress": _quiet}
    folder = train_dataset(phantom, store_precision="float16", **options)
    (folder / "validation.json").unlink()
    resume_training(folder, num_epochs=2, schedule="restart", device="cpu", on_progress=_quiet)
    assert len(list(tmp_path.glob(".store/*/store*.json"))) == 1


def test_a_description_that_names_no_cases_is_refused(crashed):
    _described(crashed, training=None)
    with pytest.raises(BadInputError, match=r"experiment.json: does not name .* the cases of the run"):
        resume_training(crashed, device="cpu", on_progress=_quiet)


def test_pipelines_that_were_tampered_with_are_refused_with_the_file(crashed):
    path = crashed / "experiment.json"
    description = json.loads(path.read_text())
    for pipelines in ({**description["pipelines"], "augmentation": [{"_target_": "os.system"}]}, {"augmentation": 3}):
        path.write_text(json.dumps({**description, "pipelines": pipelines}))
        for refused in (lambda: resume_training(crashed, device="cpu"), lambda: load_predictor(crashed)):
            with pytest.raises(SettingsError, match=re.escape(f"{path}: ")):
                refused()


def test_what_is_the_run_s_own_cannot_be_chosen_anew(crashed):
    with pytest.raises(SettingsError, match="seed is fixed for a run"):
        resume_training(crashed, seed=4)


def test_a_run_that_was_begun_from_python_says_how_to_go_on(tmp_path):
    trainer = small_trainer(tmp_path)
    trainer.train(1, save_preview=False)
    with pytest.raises(BadInputError, match="resume"):
        resume_training(trainer.experiment_folder(), on_progress=_quiet)


def test_a_folder_that_is_no_experiment_ends_with_the_code_of_bad_input(tmp_path, capsys):
    assert main(["resume", str(tmp_path)]) != 0
    assert "not an experiment folder" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_command_is_resumed_by_a_command_to_the_same_result(phantom, tmp_path):
    overrides = [
        word for key, value in {**TINY, "iterations_per_epoch": "6"}.items() for word in ("--set", f"{key}={value}")
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(*words):
        return [sys.executable, "-m", "candy_monai", *words]

    def train(out):
        return command(
            "train", str(phantom), "--epochs", "3", "--seed", "3", "--device", "cpu", "--out", str(out), *overrides
        )

    subprocess.run(train(tmp_path / "whole"), check=True, env=environment, capture_output=True)
    killed = subprocess.Popen(
        train(tmp_path / "killed"), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((tmp_path / "killed").glob("UNetTrainer/*/checkpoint_latest.pth")):
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (whole,), (folder,) = ((tmp_path / name / "UNetTrainer").glob("2*") for name in ("whole", "killed"))
    subprocess.run(command("resume", str(folder), "--device", "cpu"), check=True, env=environment, capture_output=True)
    assert_same_run(whole, folder)
    assert torch.load(folder / "checkpoint_best.pth", weights_only=True)


def test_a_resumed_run_reports_to_its_frontend_under_the_same_id(crashed):
    told = []

    class Telling(Frontend):
        def on_experiment_created(self, experiment_id, *arguments):
            told.append(("created", experiment_id))

        def on_experiment_completed(self, experiment_id):
            told.append(("completed", experiment_id))

    resume_training(crashed, frontends=[Telling], device="cpu", on_progress=_quiet)
    assert told == [("created", crashed.name), ("completed", crashed.name)]


def _tampered_plan(description):
    description["plan"]["patch_shape"] = "wide"


def _unknown_bundle(description):
    description["bundle"] = "os"


@pytest.mark.parametrize("tamper", [_tampered_plan, _unknown_bundle])
def test_what_a_tampered_description_says_is_refused_with_the_file_by_both_commands(crashed, phantom, tamper, capsys):
    path = crashed / "experiment.json"
    description = json.loads(path.read_text())
    tamper(description)
    path.write_text(json.dumps(description))
    before = {file.name: file.read_bytes() for file in crashed.iterdir()}
    image = next(phantom.glob("imagesTr/*"))
    for command in (["resume", str(crashed)], ["predict", str(crashed), str(image), str(crashed.parents[1] / "pred")]):
        assert main([*command, "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert f"error: {path}: " in error
        assert error.count("\n") == 1
    assert {file.name: file.read_bytes() for file in crashed.iterdir()} == before


def test_a_state_without_the_seed_is_refused(crashed):
    content = load_tensors(crashed / "state.pt")
    content["settings"]["seed"] = None
    save_tensors(crashed / "state.pt", content)
    with pytest.raises(ExperimentError, match=r"state\.pt: does not hold the seed"):
        resume_training(crashed, device="cpu", on_progress=_quiet)
