import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from candy_monai.cli.main import main
from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.planning.rules import plan as planned
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import ExperimentError, RunFailedError, SettingsError
from candy_monai.experiment.folder import FolderLock
from candy_monai.optuna import HORIZON
from candy_monai.recipes import launching, sweep_study
from candy_monai.recipes.sweep import sweep_dataset
from candy_monai.training.signals import Interrupted

EPOCHS = 20
SPACE = "learning_rate: {low: 1e-4, high: 1e-2, log: true}\nbatch_size: {choices: [1, 2]}\n"


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("data") / "phantom", num_cases=4, shape=(24, 26, 16))


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.yml"
    path.write_text(SPACE)
    return path


class Pretended:
    """Lets each trial's process write the files of a run, which reaches the level that is said for its number.

    A run that is below 0.5 hangs after half of its epochs, until it is ended; one of level 0 fails at once.
    """

    def __init__(self) -> None:
        self.levels: dict[int, float] = {}
        self.begun: list[tuple[int, str, dict[str, str]]] = []
        self.interrupt_at: int | None = None
        self.signal_at: tuple[int, signal.Signals] | None = None

    def start(self, run, environment):
        number = int(run.folder.name.removeprefix("trial_"))
        words = run.command()
        options = json.loads(Path(words[-1]).read_text())
        self.begun.append((number, words[3], options.get("overrides", {})))
        if number == self.interrupt_at:
            raise KeyboardInterrupt
        level = self.levels.get(number, 0.8)
        target = run.folder / "T" / f"2026{number}"
        rows = EPOCHS if level >= 0.5 else EPOCHS // 2
        scores = [level * (1 - math.exp(-e / 3)) + 0.01 * math.sin(7 * e**2) for e in range(1, rows + 1)]
        metrics = "epoch,val score,epoch duration\n" + "".join(f"{e},{s},1.0\n" for e, s in enumerate(scores, start=1))
        description = {"format": 2, "settings": {"num_epochs": EPOCHS, "time_limit_s": None}}
        script = (
            "import pathlib, sys, time\n"
            f"folder = pathlib.Path({str(target)!r})\n"
            f"if {level} == 0: sys.exit(1)\n"
            "folder.mkdir(parents=True, exist_ok=True)\n"
            f"(folder / 'experiment.json').write_text({json.dumps(description)!r})\n"
            f"(folder / 'metrics.csv').write_text({metrics!r})\n"
            f"if {level} < 0.5: time.sleep(120)\n"
            f"(folder / 'validation.json').write_text({json.dumps({'foreground_mean': {'Dice': level}})!r})\n"
        )
        run.folder.mkdir(parents=True, exist_ok=True)
        if self.signal_at is not None and number == self.signal_at[0]:
            os.kill(os.getpid(), self.signal_at[1])
        return subprocess.Popen([sys.executable, "-c", script], env=environment)


@pytest.fixture
def pretended(monkeypatch):
    runs = Pretended()
    monkeypatch.setattr(launching, "start_run", runs.start)
    return runs


def swept(phantom, space, out, *, num_trials, said=None, **more):
    say = (lambda _text: None) if said is None else said.append
    return sweep_dataset(phantom, space, num_trials=num_trials, out=out, on_progress=say, **more)


def trials_of(folder):
    return json.loads((folder / "sweep.json").read_text())["trials"]


def study_of(folder):
    return optuna.load_study(study_name=folder.name, storage=sweep_study.journal_in(folder))


def test_hopeless_trials_are_pruned_failed_ones_recorded_and_the_best_is_named(phantom, space, tmp_path, pretended):
    pretended.levels = {1: 0.3, 2: 0.0, 3: 0.9}
    said = []
    folder = swept(phantom, space, tmp_path / "out", num_trials=4, said=said, num_parallel=1, seed=1)
    trials = trials_of(folder)
    assert [trial["state"] for trial in trials] == ["complete", "pruned", "fail", "complete"]
    assert [trial["dice"] for trial in trials] == [0.8, None, None, 0.9]
    assert [trial["epochs"] for trial in trials] == [EPOCHS, EPOCHS // 2, 0, EPOCHS]
    assert str(folder / "trial_002" / "output.txt") in trials[2]["failure"]
    assert json.loads((folder / "sweep.json").read_text())["best"]["trial"] == 3
    assert f"Trial 1 is pruned after epoch {EPOCHS // 2}" in said
    assert {trial.user_attrs.get(HORIZON) for trial in study_of(folder).trials} == {EPOCHS, None}
    for trial, (_, command, overrides) in zip(trials, pretended.begun, strict=True):
        assert command == "train"
        assert float(overrides["learning_rate"]) == trial["settings"]["learning_rate"]
        assert int(overrides["batch_size"]) == trial["settings"]["batch_size"]


def test_the_plots_are_in_one_page_that_needs_no_network(phantom, space, tmp_path, pretended):
    folder = swept(phantom, space, tmp_path / "out", num_trials=5)
    page = (folder / "sweep.html").read_text()
    assert page.count("Plotly.newPlot(") == 6
    assert "Not drawn" not in page
    assert not [line for line in page.splitlines() if "<script src" in line or "<link" in line]


def test_the_same_call_again_trains_nothing_and_one_for_more_trials_only_those(phantom, space, tmp_path, pretended):
    folder = swept(phantom, space, tmp_path / "out", num_trials=2, seed=5)
    before = (folder / "sweep.json").read_text()
    swept(phantom, space, tmp_path / "out", num_trials=2, seed=5)
    assert (folder / "sweep.json").read_text() == before
    swept(phantom, space, tmp_path / "out", num_trials=4, seed=5)
    assert [number for number, _, _ in pretended.begun] == [0, 1, 2, 3]
    rates = [trial["settings"]["learning_rate"] for trial in trials_of(folder)]
    assert len(set(rates)) == 4  # the sampler does not begin its random numbers anew


@pytest.mark.parametrize("option", ["transforms", "trainer"])
def test_trials_of_a_file_with_other_content_are_not_mixed(phantom, space, tmp_path, pretended, option):
    file = tmp_path / "own"
    given = {"transforms": file.with_suffix(".json"), "trainer": f"{file}.py:Own"}[option]
    for number in (1, 2):
        file.with_suffix(".json").write_text(
            json.dumps([{"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.1 * number}])
        )
        file.with_suffix(".py").write_text(
            "from candy_monai_bundles.unet import UNetTrainer\n\n\n"
            f"class Own(UNetTrainer):\n    max_grad_norm = {float(number)}\n"
        )
        if number == 1:
            swept(phantom, space, tmp_path / "out", num_trials=1, **{option: given})
    with pytest.raises(SettingsError, match=rf"started with other settings:\n  - content of {option}: '"):
        swept(phantom, space, tmp_path / "out", num_trials=2, **{option: given})
    assert len(pretended.begun) == 1


@pytest.mark.parametrize("option", ["plan", "splits"])
def test_trials_of_another_plan_or_of_other_validation_cases_are_not_mixed(phantom, space, tmp_path, pretended, option):
    ids = [f"phantom_{number:03}" for number in range(4)]
    for name, number in (("one", 0), ("moved", 0), ("other", 1)):
        content = [{"train": ids[2 * number :][:2], "val": [*ids[: 2 * number], *ids[2 * number + 2 :]]}]
        if option == "plan":
            content = planned(inspect(phantom), overrides={"learning_rate": str(0.001 * (number + 1))}).to_dict()
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    swept(phantom, space, tmp_path / "out", num_trials=1, **{option: tmp_path / "one.json"})
    swept(phantom, space, tmp_path / "out", num_trials=2, **{option: tmp_path / "moved.json"})
    said = {"plan": "plan", "splits": "validation"}[option]
    for other in ({option: tmp_path / "other.json"}, {}):
        with pytest.raises(SettingsError, match=rf"started with other settings:\n  - {said}"):
            swept(phantom, space, tmp_path / "out", num_trials=3, **other)
    assert len(pretended.begun) == 2


def test_a_study_of_a_version_that_did_not_note_the_validation_cases_goes_on(phantom, space, tmp_path, pretended):
    folder = swept(phantom, space, tmp_path / "out", num_trials=1)
    study = study_of(folder)
    later = ("validation", "content of transforms", "content of trainer", "content of init_from")
    kept = {name: value for name, value in study.user_attrs[sweep_study.SETTINGS].items() if name not in later}
    study.set_user_attr(sweep_study.SETTINGS, kept)
    swept(phantom, space, tmp_path / "out", num_trials=2)
    assert len(pretended.begun) == 2


def test_an_interrupted_sweep_goes_on_with_the_trial_that_was_interrupted(phantom, space, tmp_path, pretended):
    pretended.interrupt_at = 1
    with pytest.raises(KeyboardInterrupt):
        swept(phantom, space, tmp_path / "out", num_trials=3)
    folder = tmp_path / "out" / "sweep-phantom"
    begun = trials_of(folder)
    assert [trial["state"] for trial in begun] == ["complete", "interrupted"]
    assert [trial.state.name for trial in study_of(folder).trials] == ["COMPLETE", "FAIL", "WAITING"]
    pretended.interrupt_at = None
    swept(phantom, space, tmp_path / "out", num_trials=3)
    trials = trials_of(folder)
    assert [number for number, _, _ in pretended.begun] == [0, 1, 1, 3]
    assert [trial["state"] for trial in trials] == ["complete", "interrupted", "complete", "complete"]
    assert [trial["goes_on_with"] for trial in trials] == [None, None, 1, None]
    assert [trial["settings"] for trial in trials][:3] == [
        *(trial["settings"] for trial in begun),
        begun[1]["settings"],
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_runs_and_leaves_no_trial_running(phantom, space, tmp_path, pretended, number):
    pretended.levels = {1: 0.4}  # hangs until it is ended
    pretended.signal_at = 1, number
    said = []
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name):
        swept(phantom, space, tmp_path / "out", num_trials=2, said=said, pruner=optuna.pruners.NopPruner())
    assert signal.getsignal(number) is before
    assert "Trial 1 was interrupted; the same command continues its run" in said
    folder = tmp_path / "out" / "sweep-phantom"
    assert [trial.state.name for trial in study_of(folder).trials] == ["COMPLETE", "FAIL", "WAITING"]
    pretended.levels, pretended.signal_at = {}, None
    swept(phantom, space, tmp_path / "out", num_trials=2, pruner=optuna.pruners.NopPruner())
    assert [trial["dice"] for trial in trials_of(folder)] == [0.8, None, 0.8]
    assert len(list((folder / "trial_001").glob("T/*/experiment.json"))) == 1


def test_a_trial_that_is_interrupted_again_and_again_stays_one(phantom, space, tmp_path, pretended):
    pretended.interrupt_at = 0
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            swept(phantom, space, tmp_path / "out", num_trials=1)
    pretended.interrupt_at = None
    folder = swept(phantom, space, tmp_path / "out", num_trials=1)
    assert [trial["state"] for trial in trials_of(folder)] == ["interrupted"] * 3 + ["complete"]
    assert [number for number, _, _ in pretended.begun] == [0] * 4


def test_a_trial_of_a_call_that_was_killed_is_gone_on_with(phantom, space, tmp_path, pretended):
    folder = swept(phantom, space, tmp_path / "out", num_trials=1)
    left = study_of(folder).ask()
    left.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    left.suggest_categorical("batch_size", (1, 2))
    place = next(t.user_attrs["candy_monai:place"] for t in study_of(folder).trials if t.number == 0)
    left.set_user_attr("candy_monai:place", place.replace("trial_000", "trial_001"))
    swept(phantom, space, tmp_path / "out", num_trials=2)
    trials = trials_of(folder)
    assert [trial["state"] for trial in trials] == ["complete", "interrupted", "complete"]
    assert trials[2]["settings"] == trials[1]["settings"]


def test_a_trial_that_came_to_its_end_while_nobody_looked_is_not_trained_again(phantom, space, tmp_path, pretended):
    pretended.interrupt_at = 1
    with pytest.raises(KeyboardInterrupt):
        swept(phantom, space, tmp_path / "out", num_trials=2)
    run = tmp_path / "out" / "sweep-phantom" / "trial_001" / "T" / "20261"
    run.mkdir(parents=True)
    (run / "experiment.json").write_text(json.dumps({"format": 2, "settings": {"num_epochs": 1}}))
    (run / "metrics.csv").write_text("epoch,val score\n1,0.6\n")
    (run / "validation.json").write_text(json.dumps({"foreground_mean": {"Dice": 0.7}}))
    folder = swept(phantom, space, tmp_path / "out", num_trials=2)
    assert len(pretended.begun) == 2
    assert [trial["dice"] for trial in trials_of(folder)] == [0.8, None, 0.7]


def test_a_run_that_an_earlier_call_left_behind_is_not_trained_by_two(phantom, space, tmp_path, pretended):
    study = study_of(swept(phantom, space, tmp_path / "out", num_trials=1))
    place = study.trials[0].user_attrs["candy_monai:place"].replace("trial_000", "trial_001")
    left = study.ask()
    left.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    left.suggest_categorical("batch_size", (1, 2))
    left.set_user_attr("candy_monai:place", place)
    run = tmp_path / "out" / "sweep-phantom" / "trial_001" / "T" / "20261"
    run.mkdir(parents=True)
    (run / "experiment.json").write_text("{}")
    lock = FolderLock(run)
    with pytest.raises(ExperimentError, match="is being trained at this moment"):
        swept(phantom, space, tmp_path / "out", num_trials=2)
    lock.release()
    assert left.study.trials[1].state.name == "RUNNING"


def test_trials_of_other_machines_count_and_are_left_alone(phantom, space, tmp_path, pretended):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    here = swept(phantom, space, tmp_path / "here", num_trials=1, storage=storage)
    study = optuna.load_study(study_name=here.name, storage=storage)
    study.ask().set_user_attr("candy_monai:place", "elsewhere:/out/trial_001")
    there = swept(phantom, space, tmp_path / "there", num_trials=3, storage=storage)
    assert [number for number, _, _ in pretended.begun] == [0, 2]
    assert [trial["state"] for trial in trials_of(there)] == ["complete", "running", "complete"]


def test_a_sweep_whose_trials_all_fail_has_failed(phantom, space, tmp_path, pretended):
    pretended.levels = {0: 0.0, 1: 0.0}
    with pytest.raises(RunFailedError, match=r"none of 2 trials was completed.*trial_001"):
        swept(phantom, space, tmp_path / "out", num_trials=2)


@pytest.mark.parametrize("change", ["space", "options"])
def test_a_study_is_not_gone_on_with_otherwise_than_it_was_begun(phantom, space, tmp_path, pretended, change):
    swept(phantom, space, tmp_path / "out", num_trials=1)
    if change == "space":
        space.write_text(SPACE.replace("1e-2", "2e-2"))
    more = {"num_epochs": 3} if change == "options" else {}
    expected = "space.learning_rate.high: 0.01 -> 0.02" if change == "space" else "options.num_epochs: None -> 3"
    with pytest.raises(SettingsError, match=expected):
        swept(phantom, space, tmp_path / "out", num_trials=2, **more)
    swept(phantom, space, tmp_path / "out", num_trials=1, name="another", **more)
    assert (tmp_path / "out" / "another" / "sweep.json").is_file()


def test_a_sweep_that_is_running_is_not_begun_again(phantom, space, tmp_path, pretended):
    folder = swept(phantom, space, tmp_path / "out", num_trials=1)
    lock = FolderLock(folder)
    with pytest.raises(ExperimentError, match="this sweep is running at this moment"):
        swept(phantom, space, tmp_path / "out", num_trials=2)
    lock.release()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"num_trials": 0}, "at least 1"),
        ({"num_parallel": 0}, "at least 1"),
        ({"fold": "all"}, "has no validation cases"),
        ({"name": "a/b"}, "expected letters"),
        ({"storage": "nosuch://x"}, "cannot be opened"),
        ({"overrides": {"patch_shape": "8,8"}}, "^patch_shape has 2 entries"),
        ({"configuration": "3d_cascade"}, "^the configuration 3d_cascade needs a first stage"),
    ],
)
def test_what_cannot_work_is_refused_before_a_trial_begins(phantom, space, tmp_path, pretended, more, said):
    with pytest.raises(SettingsError, match=said):
        swept(phantom, space, tmp_path / "out", **{"num_trials": 1, **more})
    assert pretended.begun == []


def test_values_that_the_dataset_s_plan_refuses_are_told_before_a_trial_begins(phantom, tmp_path, pretended):
    space = tmp_path / "space.yml"
    space.write_text("patch_shape: {choices: [[16, 16], [16, 16, 16]]}\n")
    with pytest.raises(SettingsError, match=r"- patch_shape: patch_shape has 2 entries for 3 spatial axes"):
        swept(phantom, space, tmp_path / "out", num_trials=1)
    assert pretended.begun == []


@pytest.mark.slow
def test_the_command_trains_prunes_and_prints_the_table(phantom, tmp_path, capsys):
    space = tmp_path / "space.yml"
    space.write_text("learning_rate: {choices: [3e-3, 1e-3]}\nmax_grad_norm: {low: 1, high: 12}\n")
    words = ["--epochs", "2", "--device", "cpu", "--out", str(tmp_path / "out"), "--seed", "1"]
    words += [word for item in ("filters=4,8,8", "iterations_per_epoch=2", "batch_size=1") for word in ("--set", item)]
    assert main(["sweep", str(phantom), "--space", str(space), "--trials", "2", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = tmp_path / "out" / "sweep-phantom"
    assert f"Plots: {folder / 'sweep.html'}" in lines
    assert sorted(line.split()[0] for line in lines if line.strip()[:1].isdigit()) == ["0", "1"]
    for trial in trials_of(folder):
        described = json.loads((Path(trial["experiment"]) / "experiment.json").read_text())
        assert described["plan"]["learning_rate"] == trial["settings"]["learning_rate"]
        assert described["trainer_args"] == {"max_grad_norm": trial["settings"]["max_grad_norm"]}
