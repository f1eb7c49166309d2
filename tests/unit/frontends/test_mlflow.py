"""What MLflow's own client reads from the store."""

import getpass
import json
import sqlite3
import sys
import threading

import pytest

pytest.importorskip("mlflow")

from mlflow import MlflowClient
from sqlalchemy.engine import make_url

from candy_monai.errors import MissingExtraError, SettingsError
from candy_monai.experiment.description import describe_trainer, write_description
from candy_monai.experiment.events import RunFinished, RunInterrupted, RunScored
from candy_monai.frontends.delivery import FrontendObserver
from candy_monai.frontends.mlflow import MLflowFrontend, _database, _uri_of_database
from tests.events import epoch_finished, run_started
from tests.toys import Squares, small_trainer

FINISHED = RunFinished(epoch=2, best_score=0.5, best_epoch=2)


@pytest.fixture(autouse=True)
def _no_store_of_the_user_s_own(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a folder of experiments whose database has its tables: to make them takes seconds."""
    folder = tmp_path_factory.mktemp("experiments")
    MlflowClient(tracking_uri=_uri(folder))
    return folder


def _uri(folder):
    return f"sqlite:///{folder / 'mlruns.db'}"


def _run(folder):
    """Return what MLflow knows of the run of an experiment folder, and its client."""
    client = MlflowClient(tracking_uri=_uri(folder.parents[1]))
    return client.get_run(json.loads((folder / "mlflow.json").read_text())["run_id"]), client


def _started(store, name, *, entries=None, **facts):
    folder = store / "MyTrainer" / name
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"seed": 3, "num_epochs": facts.get("num_epochs", 5)}
    write_description(folder, describe_trainer("MyTrainer", {"settings": settings, **(entries or {})}))
    return run_started(folder=folder, experiment_id=name, summary="layer 1", **facts)


def _told(*events):
    observer, said = FrontendObserver(MLflowFrontend({}), lambda message: said.append(message)), []
    for event in events:
        observer.receive(event)
    observer.close()
    return said


def _finished(count, value=1.0):
    return epoch_finished(count, metrics={"loss": [value] * count, "epoch duration": [1.0] * count})


def _history(client, run, name="train/loss"):
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name))


def test_a_run_of_a_trainer_is_in_the_database_beside_the_experiments(store):
    trainer = small_trainer(store, Squares(4))
    trainer.set_frontend("mlflow")
    trainer.train(3, seed=7, note="a note")
    assert trainer._dashboards.latest[0].wait(stuck_after_s=100, at_most_s=100)
    folder = trainer.experiment_folder()
    run, client = _run(folder)
    assert (run.info.run_name, run.info.status) == (folder.name, "FINISHED")
    assert client.get_experiment(run.info.experiment_id).name == "SmallTrainer"
    for column, name in [("combined loss", "train/combined_loss"), ("val score", "val/score")]:
        assert _history(client, run, name) == [(i + 1, value) for i, value in enumerate(trainer.metrics()[column])]
    assert run.data.params["settings/seed"] == "7"
    assert run.data.params["model/class"] == "Sequential"
    assert run.data.tags["mlflow.note.content"] == "a note"
    assert run.data.tags["checkpoint"] == str(folder / "checkpoint_best.pth")
    assert run.data.tags["folder"] == str(folder)
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert artifacts >= {"experiment.json", "metrics.csv", "logs.txt", "model_summary.txt", "previews"}
    previews = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "previews")}
    assert previews == {f"previews/{path.name}" for path in folder.glob("*(preview).png")}
    assert len(previews) == 5
    assert run.info.artifact_uri.startswith((store / "mlartifacts").as_uri())


def test_a_resumed_run_has_the_same_id_and_no_epoch_twice_or_missing(store):
    _told(_started(store, "resumed"), _finished(2), FINISHED)
    folder = store / "MyTrainer" / "resumed"
    before, _ = _run(folder)
    # Epoch 3 was saved and not told; the run is also made longer.
    _told(_started(store, "resumed", epoch=3, num_epochs=8), _finished(5, 2.0), FINISHED)
    run, client = _run(folder)
    assert run.info.run_id == before.info.run_id
    assert _history(client, run) == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]
    assert run.data.params["settings/num_epochs"] == "5"
    assert run.data.tags["resumed/settings/num_epochs"] == "8"


def test_a_run_whose_entry_was_deleted_gets_a_new_one(store):
    _told(_started(store, "deleted"), _finished(1), FINISHED)
    folder = store / "MyTrainer" / "deleted"
    before, client = _run(folder)
    client.delete_run(before.info.run_id)
    _told(_started(store, "deleted", epoch=1), _finished(2), FINISHED)
    run, client = _run(folder)
    assert run.info.run_id != before.info.run_id
    assert [step for step, _ in _history(client, run)] == [1, 2]


def test_an_id_of_another_store_is_not_taken_for_one_of_this(store):
    started = _started(store, "moved", epoch=1)
    (started.folder / "mlflow.json").write_text(json.dumps({"run_id": "0" * 32}))
    _told(started, _finished(2), FINISHED)
    run, client = _run(started.folder)
    assert [step for step, _ in _history(client, run)] == [1, 2]


@pytest.mark.parametrize(
    ("event", "status"),
    [(RunInterrupted(KeyboardInterrupt()), "KILLED"), (RunInterrupted(ValueError("x")), "FAILED")],
)
def test_the_status_is_how_the_run_ended(store, event, status):
    _told(_started(store, status), _finished(1), event)
    run, _ = _run(store / "MyTrainer" / status)
    assert run.info.status == status


def test_final_scores_are_metrics_and_the_cases_an_artifact(store):
    started = _started(store, "scored")
    file = started.folder / "validation.json"
    file.write_text("{}")
    _told(started, _finished(2), FINISHED, RunScored(scores={"dice": 0.5, "dice/Liver": 0.25}, num_cases=4, file=file))
    run, client = _run(started.folder)
    assert {name: run.data.metrics[name] for name in ("final/dice", "final/dice/Liver")} == {
        "final/dice": 0.5,
        "final/dice/Liver": 0.25,
    }
    assert "validation.json" in [artifact.path for artifact in client.list_artifacts(run.info.run_id)]


def test_runs_are_grouped_by_their_dataset_which_is_named_as_their_input(store):
    dataset = {"name": "Liver", "digest": "abc", "training": ["a"], "validation": []}
    _told(_started(store, "planned", entries={"dataset": dataset}), FINISHED)
    run, client = _run(store / "MyTrainer" / "planned")
    assert client.get_experiment(run.info.experiment_id).name == "Liver"
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("Liver", "abc")


def test_names_and_many_values_that_mlflow_would_refuse_are_taken(store):
    names = [f"class ({index}) <b>" for index in range(1200)]
    event = epoch_finished(1, metrics={name: [0.5] for name in names})
    plan = {f"entry {index}": index for index in range(250)}
    said = _told(_started(store, "many", entries={"plan": plan}), event, FINISHED)
    run, _ = _run(store / "MyTrainer" / "many")
    assert said == []
    assert sum(name.startswith("train/class") for name in run.data.metrics) == 1200
    assert sum(name.startswith("plan/") for name in run.data.params) >= 250


def test_another_store_is_used_if_the_environment_names_one(store, tmp_path, monkeypatch):
    other = tmp_path / "other" / "own.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    other.parent.mkdir()
    with sqlite3.connect(store / "mlruns.db") as source, sqlite3.connect(other) as target:
        source.backup(target)
    _told(_started(tmp_path, "elsewhere"), FINISHED)
    client = MlflowClient(tracking_uri=f"sqlite:///{other}")
    run_id = json.loads((tmp_path / "MyTrainer" / "elsewhere" / "mlflow.json").read_text())["run_id"]
    run = client.get_run(run_id)
    assert client.get_experiment(run.info.experiment_id).name == "mine"
    assert run.info.artifact_uri.startswith((other.parent / "mlartifacts").as_uri())
    assert not (tmp_path / "mlruns.db").exists()


def test_an_address_that_mlflow_cannot_use_is_refused_before_the_run(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://somewhere")
    with pytest.raises(SettingsError, match=r"MLFLOW_TRACKING_URI is not an address .* sqlite:///FILE"):
        MLflowFrontend({})


@pytest.mark.parametrize("folder", ["a b", "100%41 #1", "ä+x@y:z"])
def test_a_database_is_found_whatever_its_folder_is_called(tmp_path, folder):
    database = tmp_path / folder / "mlruns.db"
    uri = _uri_of_database(database)
    assert make_url(uri).database == str(database)
    assert _database(uri) == database


def test_a_user_without_a_name_is_left_out(store, monkeypatch):
    def nobody():
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr(getpass, "getuser", nobody)
    started = _started(store, "nobody")
    assert _told(started, _finished(2), FINISHED) == []
    run, _ = _run(started.folder)
    assert "mlflow.user" not in run.data.tags
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_two_runs_that_begin_at_once_make_one_database(tmp_path):
    said = []

    def begin(name):
        said.extend(_told(_started(tmp_path, name), _finished(1), FINISHED))

    threads = [threading.Thread(target=begin, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert said == []
    for name in ("a", "b"):
        run, client = _run(tmp_path / "MyTrainer" / name)
        assert _history(client, run) == [(1, 1.0)]


@pytest.mark.parametrize("package", ["mlflow", "sqlalchemy", "alembic"])
def test_a_missing_package_is_one_error_that_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"{package} is needed .*candy-monai\[mlflow\]"):
        MLflowFrontend({})
