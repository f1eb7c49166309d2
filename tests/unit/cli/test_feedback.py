import json
import shutil
from pathlib import Path

import pytest

from candy_monai.cli.main import main
from candy_monai.demo.phantom import write_phantom_dataset
from candy_monai.errors import BadInputError
from candy_monai.experiment.events import MessageLogged
from candy_monai.inference.quality import CaseQuality
from candy_monai.observers.screen import screen_observer
from tests.events import epoch_finished, run_started

JSON = ("--log-format", "json")
QUALITY = CaseQuality(
    estimated_dice=0.3,
    expected_precision=0.8,
    expected_recall=0.8,
    usual_size=1.0,
    warnings=("its Dice is low",),
)


@pytest.fixture
def trains(monkeypatch):
    """Replace the training by one that says a few things; return what it is to raise, and what was found as screen."""
    raised = []

    def train_dataset(_dataset, _options, *, on_progress, **_keywords):
        on_progress("Checking D")
        on_progress("Warning: two cases look alike")
        print("printed by a trainer of the user's own")
        for event in (run_started(), MessageLogged("[10:00] Warning: slow", "Warning: slow"), epoch_finished(1)):
            screen_observer().receive(event)
        for error in raised:
            raise error
        return Path("experiments/T/run 1")

    monkeypatch.setattr("candy_monai.recipes.train.train_dataset", train_dataset)
    return raised


def told(shown):
    """Return the events of standard output, of which each line must be one."""
    return [json.loads(line) for line in shown.out.splitlines()]


def names(shown):
    return [event["event"] for event in told(shown)]


def test_each_line_of_standard_output_is_an_event_and_the_rest_goes_to_standard_error(trains, capsys):
    assert main(["train", "D", *JSON]) == 0
    shown = capsys.readouterr()
    assert names(shown) == ["message", "warning", "start", "warning", "epoch", "end"]
    assert [event["message"] for event in told(shown) if event["event"] == "warning"] == [
        "two cases look alike",
        "slow",
    ]
    assert shown.err == "printed by a trainer of the user's own\n"
    end = told(shown)[-1]
    assert (end["experiment"], end["code"]) == ("experiments/T/run 1", 0)
    assert end["next"] == "candy-monai predict 'experiments/T/run 1' IMAGES predictions"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (BadInputError("D: no such folder"), 2, "D: no such folder"),
        (RuntimeError("boom"), 1, "RuntimeError: boom"),
        (KeyboardInterrupt("after epoch 3"), 130, "interrupted: after epoch 3"),
    ],
)
def test_an_error_is_the_last_event_and_is_said_on_standard_error_too(trains, capsys, error, code, message):
    trains.append(error)
    assert main(["train", "D", *JSON]) == code
    shown = capsys.readouterr()
    last = told(shown)[-1]
    assert (last["event"], last["level"], last["code"], last["message"]) == ("error", "error", code, message)
    assert message in shown.err
    assert "end" not in names(shown)


def test_an_option_that_does_not_fit_is_an_event_too(capsys):
    assert main(["train", "D", "--epochs", "3", "--set", "num_epochs=4", *JSON]) == 2
    (event,) = told(capsys.readouterr())
    assert event["message"] == "give --epochs or --set num_epochs=..., not both"


def test_quiet_says_what_is_to_be_warned_of_and_where_the_result_is(trains, capsys):
    assert main(["train", "D", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "printed by a trainer of the user's own\nExperiment: experiments/T/run 1\n"
    assert shown.err == "candy-monai: warning: two cases look alike\ncandy-monai: warning: slow\n"
    assert main(["train", "D", "--quiet", *JSON]) == 0
    assert names(capsys.readouterr()) == ["warning", "warning", "end"]


def test_of_several_processes_the_first_tells(trains, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "D", *JSON]) == 0
    assert capsys.readouterr().out == ""


@pytest.fixture
def labels(tmp_path):
    return (
        write_phantom_dataset(tmp_path / "Dataset001_Phantom", num_cases=3, num_test_cases=0, num_dims=2) / "labelsTr"
    )


@pytest.fixture
def predictions(labels, tmp_path):
    return shutil.copytree(labels, tmp_path / "predictions")


def test_evaluate_tells_of_cases_scores_files_and_notes(predictions, labels, tmp_path, capsys):
    files = [
        "--summary",
        str(tmp_path / "s.json"),
        "--csv",
        str(tmp_path / "c.csv"),
        "--page",
        str(tmp_path / "p.html"),
    ]
    assert main(["evaluate", str(predictions), str(labels), *files, *JSON]) == 0
    shown = capsys.readouterr()
    assert names(shown) == ["case"] * 3 + ["scores"] + ["saved"] * 3 + ["end"]
    cases, scores = told(shown)[:3], told(shown)[3]
    assert [(one["case"], one["done"]) for one in cases] == [(f"phantom_{i:03}", i + 1) for i in range(3)]
    assert (scores["scores"]["dice"], scores["num_cases"]) == (1.0, 3)
    assert any(name.startswith("dice/") for name in scores["scores"])
    assert [one["path"] for one in told(shown)[4:7]] == files[1::2]


def test_a_quiet_evaluation_names_its_files_and_shows_no_table(predictions, labels, tmp_path, capsys):
    assert main(["evaluate", str(predictions), str(labels), "--summary", str(tmp_path / "s.json"), "--quiet"]) == 0
    assert capsys.readouterr().out == f"Summary: {tmp_path / 's.json'}\n"


def test_a_summary_and_events_on_one_output_are_refused(labels, capsys):
    assert main(["evaluate", str(labels), str(labels), "--json", *JSON]) == 2
    (event,) = told(capsys.readouterr())
    assert event["message"].startswith("give --json or --log-format json, not both")


@pytest.fixture
def predicts(monkeypatch):
    class Predictor:
        def predict_to_files(self, _source, target, *, listener, **_options):
            listener.on_started(2, None, None)
            listener.on_windows("a", 1, 100)
            listener.on_quality("a", QUALITY)
            listener.on_case(1, 2, "a", None)
            listener.on_case(2, 2, "b", ValueError("damaged"))
            listener.on_left_over(target / "c.nii.gz", "b could not be predicted this time")
            return [target / "a.nii.gz"]

    def load_experiments(_folders, *, on_progress, **_options):
        on_progress("a run that is not finished")
        return Predictor()

    monkeypatch.setattr("candy_monai.recipes.predict.load_experiments", load_experiments)


def test_predict_tells_of_each_case(predicts, capsys):
    assert main(["predict", "run", "images", "out", *JSON]) == 0
    shown = capsys.readouterr()
    assert names(shown) == ["message", "start", "quality", "warning", "case", "case", "warning", "end"]
    _, _, quality, warning, *cases, _, end = told(shown)
    assert (quality["case"], quality["estimated_dice"], quality["warnings"]) == ("a", 0.3, ["its Dice is low"])
    assert warning["message"] == "a: its Dice is low"
    assert [(one["case"], one["error"]) for one in cases] == [("a", None), ("b", "damaged")]
    assert (end["predictions"], end["next"]) == ("out", None)


def test_a_quiet_prediction_says_where_it_is(predicts, capsys):
    assert main(["predict", "run", "images", "out", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "1 label map in out\n"
    assert shown.err.splitlines() == [
        "candy-monai: warning: a: its Dice is low",
        "candy-monai: warning: out/c.nii.gz is from an earlier prediction: b could not be predicted this time",
    ]


def test_crossval_tells_the_scores_of_its_folds(monkeypatch, tmp_path, capsys):
    content = {"foreground_mean": 0.5, "classes": {"1": 0.5}, "class_names": {}, "folds": [{"fold": 0}]}

    def cross_validate(_dataset, _options, *, on_progress, **_keywords):
        on_progress("Fold 0: begun")
        (tmp_path / "crossval.json").write_text(json.dumps(content))
        return tmp_path / "crossval.json"

    monkeypatch.setattr("candy_monai.recipes.crossval.cross_validate", cross_validate)
    assert main(["crossval", "D", *JSON]) == 0
    message, scores, end = told(capsys.readouterr())
    assert (message["message"], scores["event"]) == ("Fold 0: begun", "scores")
    assert {name: scores[name] for name in content} == content
    assert end["summary"] == str(tmp_path / "crossval.json")


@pytest.mark.slow
def test_a_run_and_its_continuation_are_events_from_the_first_line_to_the_last(tmp_path, capfd):
    dataset = write_phantom_dataset(tmp_path / "Dataset001_Phantom", num_cases=4, num_test_cases=0, num_dims=2)
    short = ["--set", "iterations_per_epoch=3", "--set", "batch_size=2", "--num-folds", "2", "--device", "cpu"]
    assert main(["train", str(dataset), "--epochs", "2", *short, "--out", str(tmp_path / "e"), *JSON]) == 0
    shown = capfd.readouterr()
    assert [name for name in names(shown) if name not in ("message", "warning", "progress")] == [
        "start",
        "epoch",
        "epoch",
        "trained",
        "scores",
        "end",
    ]
    events = told(shown)
    folder = Path(events[-1]["experiment"])
    (scores,) = (event for event in events if event["event"] == "scores")
    assert scores["scores"]["dice"] == json.loads((folder / "validation.json").read_text())["foreground_mean"]["Dice"]
    assert main(["resume", str(folder), "--epochs", "3", "--schedule", "restart", *JSON]) == 0
    again = told(capfd.readouterr())
    assert [event["epoch"] for event in again if event["event"] == "epoch"] == [3]
    assert again[-1]["experiment"] == str(folder)
