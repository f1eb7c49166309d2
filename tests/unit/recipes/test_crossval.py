import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from candy_monai.cli.crossval import as_text
from candy_monai.cli.main import main
from candy_monai.data.datasets.nnunet import NNUNetDataset
from candy_monai.data.inspection.inspect import inspect
from candy_monai.data.planning.rules import plan as planned
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError, RunFailedError, SettingsError
from candy_monai.experiment.description import FORMAT
from candy_monai.experiment.folder import held
from candy_monai.experiment.runs import configurations_below
from candy_monai.recipes import crossval, launching
from candy_monai.recipes.crossval import CONFIGURATIONS, _suitable, cross_validate
from candy_monai.recipes.options import TrainOptions
from candy_monai.training.signals import Interrupted
from candy_monai_bundles.unet import UNetTrainer
from tests.folders import make, texture
from tests.looks import counted_reads

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
        _, _, _, *words = run.command()
        begun.append((run.options.fold, words[0], TrainOptions.from_json(Path(words[-1]).read_text())))
        target = run.folder / "T" / f"2026{run.options.fold}"
        case = {
            "case": f"case_{run.options.fold}",
            "metrics": {"1": {"Dice": run.options.fold / 10}, "2": {"Dice": None}},
        }
        script = (
            "import json, pathlib, sys\n"
            f"folder = pathlib.Path({str(target)!r}); folder.mkdir(parents=True, exist_ok=True)\n"
            f"(folder / 'experiment.json').write_text('{{\"format\": {FORMAT}}}')\n"
            f"if {run.options.fold in failing}: sys.exit(1)\n"
            f"mean = {{'1': {{'Dice': {run.options.fold} / 10}}, '2': {{'Dice': None}}}}\n"
            f"scores = {{'foreground_mean': {{'Dice': {run.options.fold} / 10}}, 'mean': mean}}\n"
            f"scores['metric_per_case'] = [{case!r}]\n"
            "(folder / 'validation.json').write_text(json.dumps(scores))\n"
        )
        return [sys.executable, "-c", script]

    started = launching.subprocess.Popen
    monkeypatch.setattr(
        launching, "start_run", lambda run, environment: _popen(started, run, command(run), environment)
    )
    return failing, begun


def _popen(start, run, command, environment):
    run.folder.mkdir(parents=True, exist_ok=True)
    return start(command, env=environment)


def test_every_fold_is_trained_once_and_their_means_are_written(phantom, tmp_path, pretended):
    _, begun = pretended
    path = cross_validate(phantom, num_parallel=2, out=tmp_path, num_epochs=1, on_progress=_quiet)
    assert sorted(number for number, _, _ in begun) == [0, 1, 2, 3]
    for number, command, options in begun:
        assert command == "train"
        assert (options.fold, options.num_epochs) == (number, 1)
        assert Path(options.store) == tmp_path / ".store"
    summary = json.loads(path.read_text())
    assert summary["foreground_mean"] == pytest.approx(0.15)
    assert summary["classes"] == {"1": pytest.approx(0.15), "2": None}
    assert summary["class_names"] == {"1": "shell", "2": "core"}
    assert [fold["foreground_mean"] for fold in summary["folds"]] == [0.0, 0.1, 0.2, 0.3]
    assert summary["std"] == pytest.approx(0.1291, abs=1e-4)
    cases = summary["cases"]
    assert (cases["num_cases"], cases["foreground_mean"]) == (4, pytest.approx(0.15))
    assert cases["interval_95"] == [0.0, pytest.approx(0.15 + 3.1824 * 0.1291 / 2, abs=1e-4)]
    assert cases["classes"] == {"1": pytest.approx(0.15), "2": None}


def test_each_configuration_is_trained_on_every_fold_and_summed_up(phantom, tmp_path, pretended):
    _, begun = pretended
    path = cross_validate(phantom, configurations="all", out=tmp_path, num_epochs=1, on_progress=_quiet)
    assert [(options.configuration, number) for number, _, options in begun] == [
        (configuration, number) for configuration in ("2d", "3d") for number in range(4)
    ]
    assert {Path(options.out).parent for _, _, options in begun} == {path.parent / "2d", path.parent / "3d"}
    assert {Path(options.store) for _, _, options in begun} == {tmp_path / ".store"}
    summary = json.loads(path.read_text())["configurations"]
    assert list(summary) == ["2d", "3d"]
    assert summary["3d"] == json.loads((path.parent / "3d" / "crossval.json").read_text())
    assert configurations_below(path.parent) == {name: path.parent / name for name in ("2d", "3d")}
    assert as_text({"configurations": summary}).splitlines()[2].split()[:4] == ["3d", "4/4", "4", "0.1500"]
    said = []
    cross_validate(phantom, configurations=["2d", "3d", "2d"], out=tmp_path, num_epochs=1, on_progress=said.append)
    assert len(begun) == 8  # all are finished
    assert not any("leave out" in line for line in said)
    cross_validate(phantom, configurations="3d", out=tmp_path, num_epochs=1, on_progress=said.append)
    assert f"Warning: the summary will leave out 2d of {path.parent}: name them, too" in said


def test_a_cascade_is_trained_after_its_first_stage_has_predicted_all_cases(phantom, tmp_path, pretended, monkeypatch):
    _, begun = pretended
    predicted, stage = [], SimpleNamespace(predict=lambda **_: predicted.append(len(begun)))
    monkeypatch.setattr(crossval, "first_stage_of", lambda *_: stage)
    small = {"overrides": {"patch_shape": "8,8,8", "filters": "4,8,8"}, "num_epochs": 1, "num_folds": 2}
    asked = ["3d_cascade", "3d_lowres"]
    path = cross_validate(phantom, configurations=asked, out=tmp_path, on_progress=_quiet, **small)
    assert [(options.configuration, options.previous) for _, _, options in begun] == [
        *[("3d_lowres", None)] * 2,
        *[("3d_cascade", str(path.parent / "3d_lowres"))] * 2,
    ]
    assert predicted == [2]  # once, after the first stage
    assert list(json.loads(path.read_text())["configurations"]) == asked
    moved = tmp_path / "moved" / path.parent.name
    moved.parent.mkdir()
    path.parent.rename(moved)
    cross_validate(phantom, configurations=asked, out=moved.parent, on_progress=_quiet, **small)


@pytest.mark.parametrize(
    ("ruled_out", "left"),
    [("3d_lowres", ("2d", "3d")), ("3d_cascade", ("2d", "3d", "3d_lowres")), (None, CONFIGURATIONS)],
)
def test_all_configurations_leave_out_what_cannot_be_trained_and_what_needs_it(phantom, ruled_out, left):
    said = []

    def check(name):
        if name == ruled_out:
            raise SettingsError(f"no {name}")

    assert _suitable(inspect(phantom), check, said.append) == left
    assert said == [f"Not trained: no {ruled_out}"] * (ruled_out is not None)


def test_a_cascade_that_other_options_rule_out_is_refused_before_its_first_stage(phantom, tmp_path, pretended):
    own = tmp_path / "own.json"
    own.write_text('[{"_target_": "monai.transforms.RandFlipd", "keys": ["image", "label"], "prob": 1.0}]')
    options = {"overrides": {"patch_shape": "8,8,8", "filters": "4,8,8"}, "num_epochs": 1, "transforms": own}
    asked = ["3d_lowres", "3d_cascade"]
    with pytest.raises(SettingsError, match="3d_cascade cannot be trained, since it takes no preprocessing or augm"):
        cross_validate(phantom, configurations=asked, out=tmp_path / "out", on_progress=_quiet, **options)
    assert pretended[1] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"configuration": "3d_cascade"}, "3d_cascade needs a first stage: give --previous"),
        ({"configuration": "3d_cascade", "previous": "nowhere"}, "nowhere: not a cross-validation"),
        ({"configuration": "3d_lowres"}, "3d_lowres is for cases far larger than a patch"),
        ({"overrides": {"patch_shape": "8,8"}}, "patch_shape has 2 entries for 3 spatial axes"),
    ],
)
def test_what_every_fold_would_refuse_is_refused_before_the_first(phantom, tmp_path, pretended, options, said):
    with pytest.raises(BadInputError, match=said):
        cross_validate(phantom, out=tmp_path / "out", num_epochs=1, on_progress=_quiet, **options)
    assert pretended[1] == []


def test_all_configurations_are_those_that_suit_the_dataset(phantom, tmp_path, pretended):
    said = []
    cross_validate(phantom, configurations="all", out=tmp_path, num_epochs=1, on_progress=said.append)
    (line,) = [line for line in said if line.startswith("Not trained: ")]
    assert "the configuration 3d_lowres is for cases far larger than a patch" in line


def test_pictures_have_one_configuration(tmp_path, pretended):
    pictures = write_phantom_dataset(tmp_path / "pictures", num_cases=3, num_dims=2)
    path = cross_validate(pictures, configurations="all", out=tmp_path / "out", num_epochs=1, on_progress=_quiet)
    assert list(json.loads(path.read_text())["configurations"]) == ["2d"]
    with pytest.raises(SettingsError, match="pictures have no third axis"):
        cross_validate(pictures, configurations=["3d"], out=tmp_path / "out", on_progress=_quiet)


@pytest.mark.parametrize(
    ("configurations", "keywords", "said"),
    [
        (["2d", "4d"], {}, "unknown configuration '4d': expected 2d, 3d, 3d_lowres, 3d_cascade, or all"),
        (["3d_cascade"], {}, "3d_cascade needs 3d_lowres, its first stage: give --configurations 3d_lowres,3d_cascade"),
        ("all", {"previous": "lowres"}, "--configurations or --previous, not both"),
        ([], {}, "no configuration"),
        (["2d"], {"configuration": "3d"}, "--configurations or --configuration 3d, not both"),
        ("all", {"plan": "plan.json"}, "--configurations or --plan, not both"),
    ],
)
def test_configurations_that_cannot_be_are_refused_before_the_dataset_is_read(tmp_path, configurations, keywords, said):
    with pytest.raises(SettingsError, match=said):
        cross_validate(tmp_path / "none", configurations=configurations, out=tmp_path, **keywords)


def test_a_fold_that_fails_keeps_no_other_from_being_trained_and_the_next_call_resumes_it(phantom, tmp_path, pretended):
    failing, begun = pretended
    failing.add(1)
    with pytest.raises(RunFailedError, match=r"1 of 4 folds failed.*fold_1"):
        cross_validate(phantom, out=tmp_path, num_epochs=2, on_progress=_quiet)
    assert len(begun) == 4
    failing.clear()
    cross_validate(phantom, out=tmp_path, num_epochs=2, trust=True, device="cpu", on_progress=_quiet)
    number, command, options = begun[-1]
    assert (len(begun), number, command) == (5, 1, "resume")
    assert (options.num_epochs, options.trust, options.device) == (None, True, "cpu")  # as many as were planned


def test_folds_that_were_begun_on_other_cases_are_refused_before_any_is_trained(phantom, tmp_path, pretended):
    _, begun = pretended
    cross_validate(phantom, out=tmp_path, num_folds=4, num_epochs=1, on_progress=_quiet)
    for number in range(4):
        described = next(tmp_path.glob(f"crossval-phantom/fold_{number}/*/*/experiment.json"))
        described.write_text(json.dumps({"format": FORMAT, "dataset": {"validation": [f"phantom_{number:03}"]}}))
    said = r"was validated on phantom_000, but Fold 0 .* validated on phantom_.*another folder \(--out\)"
    with pytest.raises(BadInputError, match=said):
        cross_validate(phantom, out=tmp_path, num_folds=2, num_epochs=1, on_progress=_quiet)
    assert len(begun) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_epochs": 2}, "num_epochs: 1 -> 2"),
        ({"overrides": {"batch_size": "4"}}, "overrides: None -> "),
        ({"seed": 3}, "seed: None -> 3"),
    ],
)
def test_folds_that_were_begun_with_other_options_are_not_mixed_with_new_ones(
    phantom, tmp_path, pretended, change, said
):
    failing, begun = pretended
    failing.add(1)
    with pytest.raises(RunFailedError):
        cross_validate(phantom, out=tmp_path, num_epochs=1, on_progress=_quiet)
    with pytest.raises(BadInputError, match=rf"started with other options[\s\S]*{said}[\s\S]*another folder \(--out\)"):
        cross_validate(phantom, out=tmp_path, on_progress=_quiet, **{"num_epochs": 1} | change)
    assert len(begun) == 4
    failing.clear()
    cross_validate(phantom, out=tmp_path / "other", on_progress=_quiet, **{"num_epochs": 1} | change)


def test_folds_of_another_plan_are_not_mixed_though_its_path_may_change(phantom, tmp_path, pretended):
    failing, begun = pretended
    failing.add(1)
    for name, batch_size in (("one", 1), ("moved", 1), ("other", 2)):
        plan = planned(inspect(phantom), overrides={"batch_size": str(batch_size)})
        (tmp_path / f"{name}.json").write_text(json.dumps(plan.to_dict()))
    options = {"out": tmp_path / "out", "num_epochs": 1, "on_progress": _quiet}
    with pytest.raises(RunFailedError):
        cross_validate(phantom, plan=tmp_path / "one.json", **options)
    for other, said in (({"plan": tmp_path / "other.json"}, r"plan\.batch_size: 1 -> 2"), ({}, r"plan: \{.* -> None")):
        with pytest.raises(BadInputError, match=rf"started with other options[\s\S]*{said}"):
            cross_validate(phantom, **other, **options)
    assert len(begun) == 4
    failing.clear()
    cross_validate(phantom, plan=tmp_path / "moved.json", **options)


@pytest.mark.parametrize("option", ["transforms", "trainer", "init_from"])
def test_folds_of_a_file_with_other_content_are_not_mixed(phantom, tmp_path, pretended, option):
    failing, begun = pretended
    failing.add(1)
    file = tmp_path / {"transforms": "own.json", "trainer": "own.py", "init_from": "weights.pt"}[option]

    def write(number):
        if option == "transforms":
            transform = {"_target_": "RandFlipd", "keys": ["image", "label"], "prob": 0.1 * number}
            file.write_text(json.dumps([transform]))
        elif option == "trainer":
            file.write_text(
                "from candy_monai_bundles.unet import UNetTrainer\n\n\n"
                f"class Own(UNetTrainer):\n    max_grad_norm = {float(number)}\n"
            )
        else:
            torch.save({"weight": torch.full((2,), float(number))}, file)

    given = f"{file}:Own" if option == "trainer" else file
    options = {"out": tmp_path / "out", "num_epochs": 1, "on_progress": _quiet, option: given}
    write(1)
    with pytest.raises(RunFailedError):
        cross_validate(phantom, **options)
    write(2)
    with pytest.raises(BadInputError, match=rf"started with other options[^\n]*\n  - content of {option}: '\w+' -> "):
        cross_validate(phantom, **options)
    assert len(begun) == 4
    write(1)
    kept = tmp_path / "out" / "crossval-phantom" / "options.json"
    earlier = {name: value for name, value in json.loads(kept.read_text()).items() if not name.startswith("content")}
    kept.write_text(json.dumps(earlier))  # as earlier versions wrote it
    failing.clear()
    cross_validate(phantom, **options)


def test_options_may_change_while_no_fold_has_begun(phantom, tmp_path, pretended):
    _, begun = pretended
    with pytest.raises(SettingsError, match="seed"):
        cross_validate(phantom, out=tmp_path, seed=-1, on_progress=_quiet)
    (tmp_path / "crossval-phantom").mkdir()
    (tmp_path / "crossval-phantom" / "options.json").write_text('{"budget_s": 1.0}')
    cross_validate(phantom, out=tmp_path, num_epochs=1, on_progress=_quiet)
    assert len(begun) == 4


def test_a_cross_validation_that_is_running_is_not_begun_again(phantom, tmp_path, pretended):
    _, begun = pretended
    with held(tmp_path / "crossval-phantom", "taken"), pytest.raises(BadInputError, match="running at this moment"):
        cross_validate(phantom, out=tmp_path, num_epochs=1, on_progress=_quiet)
    assert begun == []


def test_finished_folds_of_another_state_of_the_dataset_are_told(phantom, tmp_path, pretended):
    cross_validate(phantom, out=tmp_path, num_epochs=1, on_progress=_quiet)
    for described in tmp_path.glob("crossval-phantom/fold_*/*/*/experiment.json"):
        described.write_text(json.dumps({"format": FORMAT, "dataset": {"digest": "0" * 16}}))
    said = []
    cross_validate(phantom, out=tmp_path, num_epochs=1, on_progress=said.append)
    (told,) = [text for text in said if "has changed since the models were trained" in text]
    assert told.startswith(f"Warning: {phantom}: ")


def test_sigterm_ends_the_folds_that_are_being_trained(phantom, tmp_path, monkeypatch):
    started = []

    def start(run, environment):
        run.folder.mkdir(parents=True)
        script = "import signal, sys, time; print(flush=True); time.sleep(120)"
        started.append(subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment))
        started[-1].stdout.readline()
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return started[-1]

    monkeypatch.setattr(launching, "start_run", start)
    with pytest.raises(Interrupted, match="SIGTERM"):
        cross_validate(phantom, num_parallel=2, out=tmp_path, on_progress=_quiet)
    assert [process.poll() for process in started] == [-signal.SIGTERM] * 2


class Elsewhere:
    """Starts folds that go on by themselves, as jobs of a cluster do, until they are told to end."""

    is_elsewhere, num_parallel = True, 100

    def __init__(self):
        self.started, self.ended = [], []

    def start(self, run, slot):
        self.started.append(run)
        if len(self.started) == 4:
            os.kill(os.getpid(), self.number)
        return self

    def poll(self):
        return None

    def terminate(self):
        self.ended.append(1)

    def wait(self, timeout=None):
        return 0


@pytest.mark.parametrize(("number", "ended"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGINT, 4)])
def test_folds_elsewhere_all_begin_at_once_and_ctrl_c_alone_ends_them(phantom, tmp_path, number, ended):
    launcher = Elsewhere()
    launcher.number = number
    options = TrainOptions(out=tmp_path, device="cuda")  # that this machine need not have
    with pytest.raises(Interrupted, match=number.name):
        cross_validate(phantom, options, launcher=launcher, on_progress=_quiet)
    assert [run.name for run in launcher.started] == ["Fold 0", "Fold 1", "Fold 2", "Fold 3"]
    assert {run.options.jobs for run in launcher.started} == {None}  # not shares of this machine
    assert len(launcher.ended) == ended


def test_folds_at_the_same_time_share_the_cores(phantom, tmp_path, pretended, monkeypatch):
    monkeypatch.setattr(launching, "usable_cores", lambda: 8)
    _, begun = pretended
    cross_validate(phantom, num_parallel=3, out=tmp_path, on_progress=_quiet)
    assert {options.jobs for _, _, options in begun} == {2}


def test_how_many_cases_a_fold_works_on_at_once_is_passed_on(phantom, tmp_path, pretended):
    _, begun = pretended
    cross_validate(phantom, TrainOptions(jobs=3), out=tmp_path, on_progress=_quiet)
    assert {options.jobs for _, _, options in begun} == {3}


def test_a_class_that_only_this_process_has_is_refused_before_a_fold_begins(phantom, tmp_path, pretended):
    _, begun = pretended
    with pytest.raises(SettingsError, match="give FILE:Class"):
        cross_validate(phantom, trainer=UNetTrainer, out=tmp_path, on_progress=_quiet)
    assert begun == []


def test_no_job_is_no_number_of_jobs(phantom, tmp_path):
    with pytest.raises(SettingsError, match="at least 1"):
        cross_validate(phantom, num_parallel=0, out=tmp_path)


@pytest.mark.slow
def test_the_command_trains_the_folds_and_prints_their_scores(phantom, tmp_path, capsys):
    arguments = ["--epochs", "1", "--device", "cpu", "--out", str(tmp_path), "--jobs", "2", "--num-folds", "2"]
    arguments += [word for item in TINY for word in ("--set", item)]
    assert main(["crossval", str(phantom), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.strip()[:1].isdigit()] == ["0", "1"]
    assert any(line.split()[:1] == ["mean"] for line in lines)
    assert any(line.split() == ["fold", "Dice", "shell", "core"] for line in lines)


def test_unusual_findings_are_told_once_by_the_command_itself(tmp_path, pretended):
    folder = texture(make(tmp_path / "data", ids=("a", "b", "c")))
    (folder / "imagesTr" / "b_0000.nii.gz").write_bytes((folder / "imagesTr" / "c_0000.nii.gz").read_bytes())
    said = []
    cross_validate(folder, out=tmp_path / "out", on_progress=said.append)
    assert sum("b, c hold the same image" in text for text in said) == 1


def test_folds_that_do_not_suit_the_cases_are_refused_before_images_are_read(phantom, tmp_path, monkeypatch):
    reads = counted_reads(monkeypatch)
    with pytest.raises(SettingsError, match="5"):
        cross_validate(phantom, num_folds=5, out=tmp_path, on_progress=_quiet)
    assert reads == []


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


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ([("abc", "d"), ("abcd", "")], "fold 1 has no validation case"),
        ([("ab", "cd"), ("ac", "bd")], "the folds leave out phantom_003 more than once"),
    ],
)
def test_folds_whose_scores_would_not_count_each_case_once_are_refused_before_any_is_trained(
    phantom, tmp_path, pretended, splits, said
):
    _, begun = pretended
    with pytest.raises(BadInputError, match=said):
        cross_validate(phantom, splits=_splits(tmp_path, phantom, splits), out=tmp_path / "out", on_progress=_quiet)
    assert not begun


@pytest.mark.parametrize(
    ("ids", "groups", "said"),
    [
        (("only",), None, "leaves out no case, so there is nothing to score"),
        (("a_1", "a_2"), "^(.)_", "0 validation cases of 2: both need at least one; choose other splits or groups"),
    ],
)
def test_a_single_case_or_group_is_refused_before_it_is_trained_on(tmp_path, pretended, ids, groups, said):
    _, begun = pretended
    with pytest.raises(BadInputError, match=said):
        cross_validate(make(tmp_path / "data", ids=ids), groups=groups, out=tmp_path / "out", on_progress=_quiet)
    assert not begun


def test_cases_that_no_fold_leaves_out_are_told(phantom, tmp_path, pretended):
    said = []
    splits = _splits(tmp_path, phantom, [("abd", "c"), ("cbd", "a")])
    cross_validate(phantom, splits=splits, out=tmp_path / "out", on_progress=said.append)
    ids = NNUNetDataset(phantom).case_ids
    assert f"Warning: the folds never leave out {ids[1]}, {ids[3]}; the scores are those of the other 2 cases" in said


def _splits(folder, dataset, splits):
    """Write a split file; the cases of the dataset in order are called a, b, c, ..."""
    ids = NNUNetDataset(dataset).case_ids
    file = folder / "splits.json"
    named = [
        {key: [ids["abcd".index(one)] for one in side] for key, side in zip(("train", "val"), fold, strict=True)}
        for fold in splits
    ]
    file.write_text(json.dumps(named))
    return file
