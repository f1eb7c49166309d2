from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from candy_monai.cli.main import COMMANDS, main
from candy_monai.errors import BadInputError, DatasetError, MissingExtraError, NonFiniteLossError
from candy_monai.recipes.options import MONAI_BUNDLE, TrainOptions
from candy_monai.registry import bundle_names

HEAVY = ("torch", "monai", "numpy", "matplotlib", "rich")


@pytest.fixture
def calls(monkeypatch):
    """Replace the functions that do the work; return what they were called with."""
    seen = SimpleNamespace(train=None, prepare=None, demo=None, predict=None)

    def train_dataset(dataset, options, **keywords):
        seen.train = {"dataset": dataset, "options": options, **keywords}
        return Path("experiments/UNetTrainer/20251101-14-a3f2")

    def run_demo(out, **options):
        seen.demo = {"out": out, **options}
        return Path("candy_demo/demo.png")

    class Predictor:
        def predict_to_files(self, source, target, *, listener, **options):
            seen.predict |= {"source": source, "target": target, **options}
            listener.on_started(1, None, None)
            listener.on_case(1, 1, "case_001", None)
            return [target / "case_001.nii.gz"]

    def load_experiments(folders, **options):
        seen.predict = {"folders": folders, **options}
        return Predictor()

    monkeypatch.setattr("candy_monai.recipes.train.train_dataset", train_dataset)
    monkeypatch.setattr("candy_monai.demo.run.run_demo", run_demo)
    monkeypatch.setattr("candy_monai.recipes.predict.load_experiments", load_experiments)
    return seen


@pytest.fixture
def fail(monkeypatch):
    """Return a function that makes training raise an error."""

    def with_error(error: BaseException) -> None:
        def train_dataset(*_args, **_options):
            raise error

        monkeypatch.setattr("candy_monai.recipes.train.train_dataset", train_dataset)

    return with_error


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "candy_monai", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "typed",
    [
        "crossval D",
        "sweep D --space s.yml --trials 2",
        "inspect D",
        "evaluate A B",
        "export E O --to onnx",
        "forecast F",
    ],
)
def test_what_one_process_does_is_refused_where_several_were_started(typed, monkeypatch, capsys):
    monkeypatch.setattr(os, "environ", {**os.environ, "RANK": "1", "WORLD_SIZE": "4"})
    assert main(typed.split()) == 2
    said = capsys.readouterr().err
    assert f"'candy-monai {typed.split()[0]}' runs in a single process, but 4 were started" in said


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from candy_monai.cli.main import main; code = main(sys.argv[1:]); "
        f"print(code, [name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "0 []"
    assert "usage: candy-monai" in done.stdout


def test_help_answers_at_once():
    def seconds() -> float:
        start = time.perf_counter()
        run("--help")
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {command}" in shown for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example_that_parses(command, capsys, monkeypatch):
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) < 80
    shown = shown.replace(" \\\n", " ")
    examples = [line.strip() for line in shown.partition("example")[2].splitlines() if "candy-monai" in line]
    assert examples
    parsed = []
    monkeypatch.setattr(COMMANDS[command], "run", lambda args: parsed.append(args) or 0)
    for example in examples:
        assert main(example.partition(">")[0].split()[1:]) == 0
    assert len(parsed) == len(examples)


def test_python_m_runs_the_command_line():
    done = run("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("candy-monai 0.")


def test_help_names_every_bundle(capsys):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in bundle_names() if name != MONAI_BUNDLE)  # which --network stands for


def test_no_command_shows_the_help_and_is_wrong(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "usage: candy-monai" in shown.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian", "data"], "candy-monai: error: unknown command 'trian'. Did you mean 'train'?"),
        (["config"], "candy-monai config: error: the following arguments are required: ACTION"),
        (["zzz"], "candy-monai: error: unknown command 'zzz'. Known: demo, inspect"),
        (
            ["train", "data", "--epoch", "3"],
            "candy-monai train: error: unknown option '--epoch'. Did you mean '--epochs'?",
        ),
        (["train", "data", "--buget=3m"], "unknown option '--buget'. Did you mean '--budget'?"),
        (["--vresion"], "candy-monai: error: unknown option '--vresion'. Did you mean '--version'?"),
        (["inspect", "a", "b"], "candy-monai inspect: error: unexpected argument 'b'"),
        (["train"], "the following arguments are required: DATASET"),
        (["train", "data", "--epochs", "3", "--budget", "1m"], "not allowed with argument"),
        (["train", "data", "--epochs", "0"], "argument --epochs: '0': expected a whole number of at least 1"),
        (["train", "data", "--seed", "-1"], "argument --seed: '-1': expected a whole number from 0 to 4294967295"),
        (["train", "data", "--budget", "2"], "argument --budget: '2' has no unit: give 2s, 2m or 2h"),
        (["train", "data", "--save-every", "2.5"], "'2.5' has no unit: give 2.5s, 2.5m or 2.5h"),
        (
            ["train", "data", "--budget", "soon"],
            "argument --budget: expected a duration above 0 such as 90s, 10m or 1h30m, got 'soon'",
        ),
        (["train", "data", "--fold", "some"], "argument --fold: 'some': expected a number from 0, or 'all'"),
        (["predict", "run", "in"], "the following arguments are required: OUTPUT"),
        (
            ["predict", "run", "in", "out", "--channels", "T2"],
            "argument --channels: expected channel numbers such as 1,2, or none, got 'T2'",
        ),
        (
            ["predict", "run", "in", "out", "--memory", "lots"],
            "argument --memory: expected a size of memory such as 500M, 1G or 1.5G, got 'lots'",
        ),
        (["train", "data", "--set", "batch_size"], "--set 'batch_size': expected KEY=VALUE"),
    ],
)
def test_wrong_arguments_exit_with_2_and_say_what_is_wrong_in_two_lines(calls, arguments, said, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert said in shown.err
    assert len(shown.err.splitlines()) <= 2
    assert shown.out == ""
    assert calls.train is None


def test_train_passes_on_every_option(calls, capsys):
    options = (
        "--bundle net --fold 3 --budget 1h30m --seed 7 --set a=1 --set b=x=y --device cpu --out o --store s "
        "--save-every 10m --splits f.json --note words --trainer mine.py:Mine --groups ^p "
        "--transforms mine.yml --trust "
        "--frontend notion --stratify kinds.csv --num-folds 4 --store-precision float16 --plan p --jobs 3 "
        "--configuration 2d --network-args init_filters=8 --init-from w.pth --freeze a.* --warm-up 9 "
        "--amp off --sync-batchnorm --shard-optimizer --no-references --no-report --trainer-args max_grad_norm=2"
    )
    assert main(["train", "data", *options.split()]) == 0
    assert 0 <= calls.train.pop("elapsed_s") < 60  # since the command began
    assert calls.train.pop("dataset") == Path("data")
    assert vars(calls.train.pop("options")) == {
        "bundle": "net",
        "fold": 3,
        "num_epochs": None,
        "configuration": "2d",
        "budget_s": 5400.0,
        "save_every": "10m",
        "seed": 7,
        "overrides": {"a": "1", "b": "x=y"},
        "plan": Path("p"),
        "jobs": 3,
        "device": "cpu",
        "out": Path("o"),
        "store": Path("s"),
        "store_precision": "float16",
        "splits": Path("f.json"),
        "note": "words",
        "trainer": "mine.py:Mine",
        "transforms": Path("mine.yml"),
        "trust": True,
        "groups": "^p",
        "stratify": "kinds.csv",
        "num_folds": 4,
        "frontends": ("notion",),
        "network": None,
        "network_args": {"init_filters": 8},
        "trainer_args": {"max_grad_norm": 2},
        "init_from": Path("w.pth"),
        "previous": None,  # a cascade takes no starting weights
        "freeze": ("a.*",),
        "warm_up": 9,
        "amp": "off",
        "sync_batchnorm": True,
        "shard_optimizer": True,
        "no_references": True,
        "no_report": True,
    }
    assert calls.train.keys() == {"on_progress"}
    assert capsys.readouterr().out.splitlines() == [
        "Experiment: experiments/UNetTrainer/20251101-14-a3f2",
        "Next: candy-monai predict experiments/UNetTrainer/20251101-14-a3f2 IMAGES predictions --trainer mine.py:Mine "
        "--trust",
    ]


def test_train_has_defaults_for_all_but_the_dataset(calls):
    assert main(["train", "data"]) == 0
    assert calls.train["options"] == TrainOptions(
        overrides={}, network_args={}, trainer_args={}, out=Path("experiments")
    )


def test_every_option_of_a_run_is_one_of_train_and_resume_takes_those_that_may_be_chosen_anew(capsys):
    shown = {}
    for command in ("train", "crossval", "resume"):
        main([command, "--help"])
        shown[command] = capsys.readouterr().out
    for field in dataclasses.fields(TrainOptions):
        line = f"\n  {field.metadata['flag']}"
        assert line in shown["train"]
        assert (line in shown["crossval"]) == (field.name != "fold")
        assert (line in shown["resume"]) == field.metadata["resumes"]


def test_train_takes_epochs_and_all_folds(calls):
    assert main(["train", "data", "--fold", "all", "--epochs", "12", "--device", "cpu"]) == 0
    assert (calls.train["options"].fold, calls.train["options"].num_epochs) == ("all", 12)


def test_demo_passes_on_its_options_and_names_the_picture(calls, capsys):
    assert main(["demo", "--out", "o", "--budget", "30s", "--device", "cpu", "--seed", "3"]) == 0
    assert calls.demo == {"out": Path("o"), "budget_s": 30.0, "device": "cpu", "seed": 3}
    assert capsys.readouterr().out == "Picture: candy_demo/demo.png\n"


def test_demo_takes_two_minutes_by_default(calls):
    assert main(["demo", "--device", "cpu"]) == 0
    assert calls.demo == {"out": Path("candy_demo"), "budget_s": 120.0, "device": "cpu", "seed": 0}


def test_predict_passes_on_its_options_and_counts_what_it_wrote(calls, capsys):
    options = (
        "--device cpu --checkpoint latest --memory 1.5G --mirror --largest-component --probabilities --trainer m.py:M "
        "--channels 2,1 --trust --statistics --to-dicom-seg --segments codes.json --continue"
    )
    assert main(["predict", "fold0", "fold1", "in", "out", *options.split()]) == 0
    assert callable(calls.predict.pop("on_progress"))
    assert calls.predict.pop("processes").world_size == 1
    assert calls.predict == {
        "folders": [Path("fold0"), Path("fold1")],
        "trainer": "m.py:M",
        "device": "cpu",
        "checkpoint": "latest",
        "memory": 1_500_000_000,
        "channels": (2, 1),
        "trust": True,
        "mirror": True,
        "largest_component": True,
        "source": Path("in"),
        "target": Path("out"),
        "probabilities": True,
        "statistics": True,
        "dicom_seg": True,
        "segments": Path("codes.json"),
        "resume": True,
    }
    assert capsys.readouterr().out == "[1/1] case_001\n1 label map in out\n"


def test_of_several_processes_only_the_first_one_tells_of_a_prediction(calls, capsys, monkeypatch):
    for rank, said in ((1, ""), (0, "[1/1] case_001\n1 label map in out\n")):
        monkeypatch.setattr(os, "environ", {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"})
        assert main(["predict", "run", "in", "out", "--device", "cpu"]) == 0
        assert calls.predict["processes"].rank == rank
        assert capsys.readouterr().out == said


def test_predict_has_defaults_for_all_but_experiment_input_and_output(calls):
    assert main(["predict", "run", "in", "out", "--device", "cpu"]) == 0
    assert calls.predict["folders"] == [Path("run")]
    unset = {name: calls.predict[name] for name in ("trainer", "memory", "channels", "mirror", "largest_component")}
    assert unset == {"trainer": None, "memory": None, "channels": None, "mirror": False, "largest_component": False}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadInputError("the folder is empty"), 2),
        (DatasetError("data", ["a.nii.gz: damaged"]), 2),
        (NonFiniteLossError("the loss is NaN at epoch 3"), 1),
        (MissingExtraError("itk is not installed"), 1),
    ],
)
def test_errors_of_ours_are_shown_without_a_traceback(fail, error, code, capsys):
    fail(error)
    assert main(["train", "data", "--device", "cpu"]) == code
    assert capsys.readouterr().err == f"candy-monai: error: {error}\n"


def test_an_unexpected_error_shows_its_type_and_the_way_to_the_traceback(fail, capsys):
    fail(OSError("disk full"))
    assert main(["train", "data", "--device", "cpu"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "candy-monai: error: OSError: disk full",
        "candy-monai: run again with --debug to see the traceback",
    ]


def test_an_endless_message_is_cut(fail, capsys):
    fail(RuntimeError("\n".join(f"missing key {index}" for index in range(500))))
    assert main(["train", "data", "--device", "cpu"]) == 1
    assert capsys.readouterr().err.splitlines()[7:] == [
        "missing key 7",
        "... 492 more lines",
        "candy-monai: run again with --debug to see the traceback",
    ]


@pytest.mark.parametrize("arguments", [["--debug", "train", "data"], ["train", "data", "--debug"]])
@pytest.mark.parametrize("error", [BadInputError("bad"), OSError("disk full")])
def test_debug_shows_the_traceback_wherever_it_stands(fail, error, arguments, capsys):
    fail(error)
    main([*arguments, "--device", "cpu"])
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "in train_dataset" in shown
    assert "run again with --debug" not in shown


def test_an_interrupted_run_exits_with_130_and_one_line(fail, capsys):
    fail(KeyboardInterrupt())
    assert main(["train", "data", "--device", "cpu"]) == 130
    assert capsys.readouterr().err == "candy-monai: interrupted\n"


def test_a_command_that_exits_by_itself_keeps_its_code(fail):
    fail(SystemExit(130))
    assert main(["train", "data", "--device", "cpu"]) == 130


def test_the_installed_program_returns_the_code_to_the_shell():
    assert run("train", "data", "--set", "x").returncode == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_wait_as_the_user_said_or_else_not_for_long(monkeypatch, given, expected):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert main(["--version"]) == 0
    assert os.environ.get("GOMP_SPINCOUNT") == expected
