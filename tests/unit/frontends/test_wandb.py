"""What an offline run holds, by the client's own protocol buffers, and what an online one asks of the client."""

import json
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("wandb")

from candy_monai.errors import MissingExtraError, SettingsError
from candy_monai.experiment.description import describe_trainer, write_description
from candy_monai.experiment.events import RunFinished, RunInterrupted, RunScored
from candy_monai.frontends.delivery import FrontendObserver
from candy_monai.frontends.wandb import WandBFrontend
from tests.events import epoch_finished, run_started
from tests.toys import Squares, small_trainer
from tests.wandb_files import offline_run

FINISHED = RunFinished(epoch=2, best_score=0.5, best_epoch=2)


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """Leave nothing of the user's own account in force."""
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def _started(folder, *, entries=None, **facts):
    folder.mkdir(parents=True, exist_ok=True)
    write_description(folder, describe_trainer("MyTrainer", {"settings": {"seed": 3}, **(entries or {})}))
    return run_started(folder=folder, experiment_id=folder.name, summary="layer 1", **facts)


def _told(*events, secrets=None):
    observer, said = FrontendObserver(WandBFrontend(secrets or {}), lambda message: said.append(message)), []
    for event in events:
        observer.receive(event)
    observer.close()
    return said


def _finished(count, value=1.0):
    return epoch_finished(count, metrics={"loss": [value] * count})


def _parts(folder):
    """Return the parts of a run in order, once the client's service has written them."""
    deadline, folders = time.monotonic() + 60, sorted((folder / "wandb").glob("offline-run-*"))
    while True:
        parts = [offline_run(part) for part in folders]
        if all(part["exit_code"] is not None for part in parts) or time.monotonic() > deadline:
            return parts
        time.sleep(0.02)


def test_a_run_is_kept_offline_with_its_configuration_metrics_previews_and_end(tmp_path):
    trainer = small_trainer(tmp_path, Squares(4))
    trainer.set_frontend("wandb")
    trainer.train(3, seed=7, note="a note")
    assert trainer._dashboards.latest[0].wait(stuck_after_s=100, at_most_s=100)
    folder = trainer.experiment_folder()
    (run,) = _parts(folder)
    assert run["run"] == {
        "id": json.loads((folder / "wandb.json").read_text())["run_id"],
        "name": folder.name,
        "project": "SmallTrainer",
        "notes": "a note",
    }
    assert run["config"]["settings"]["seed"] == 7
    assert run["config"]["model"]["class"] == "Sequential"
    assert ("*", "epoch") in run["metrics"]  # the horizontal axis of all of them
    for column, name in [("combined loss", "train/combined_loss"), ("val score", "val/score")]:
        found = [(row["epoch"], row[name]) for row in run["history"] if name in row]
        assert found == [(i + 1, value) for i, value in enumerate(trainer.metrics()[column])]
    (files,) = (folder / "wandb").glob("offline-run-*/files")
    pictures = {path.name: path.read_bytes() for path in folder.glob("*(preview).png")}
    assert len(pictures) == 5
    for name, content in pictures.items():
        key = f"previews/{name.removesuffix(' (preview).png')}/path"
        shown = [row[key] for row in run["history"] if key in row]
        assert (files / shown[-1]).read_bytes() == content
    assert run["summary"]["checkpoint"] == str(folder / "checkpoint_best.pth")
    assert "Conv2d" in (files / "model_summary.txt").read_text()
    assert run["exit_code"] == 0


def test_a_resumed_run_has_the_same_id_and_its_newest_part_holds_all_epochs(tmp_path):
    folder = tmp_path / "run"
    _told(_started(folder), _finished(2), FINISHED)
    time.sleep(1.1)  # the client names the folder of a part by the second
    said = _told(_started(folder, epoch=2), _finished(4), FINISHED)
    first, second = _parts(folder)
    assert first["run"]["id"] == second["run"]["id"]
    assert [row["epoch"] for row in second["history"]] == [1, 2, 3, 4]
    newest = sorted((folder / "wandb").glob("offline-run-*"))[-1]
    assert said == [f"The whole run is in {newest}: sync this folder, not the earlier ones"]


@pytest.mark.parametrize(
    ("event", "code"), [(RunInterrupted(KeyboardInterrupt()), 130), (RunInterrupted(ValueError("x")), 1)]
)
def test_the_exit_code_is_how_the_run_ended(tmp_path, event, code):
    _told(_started(tmp_path / "run"), _finished(1), event)
    (run,) = _parts(tmp_path / "run")
    assert run["exit_code"] == code


def test_final_scores_are_in_the_summary_under_the_dataset_s_project(tmp_path):
    scored = RunScored(scores={"dice": 0.5, "dice/Liver": 0.25}, num_cases=4, file=tmp_path)
    started = _started(tmp_path / "run", entries={"dataset": {"name": "Liver"}})
    _told(started, _finished(2), FINISHED, scored)
    (run,) = _parts(tmp_path / "run")
    assert run["summary"].items() >= {"final/dice": 0.5, "final/dice/Liver": 0.25, "final/num_cases": 4}.items()
    assert run["run"]["project"] == "Liver"


def test_without_a_key_the_error_says_how_to_set_one_or_do_without(monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    with pytest.raises(SettingsError, match="needs the secret 'wandb_api_key'.*WANDB_MODE=offline needs none"):
        WandBFrontend({})


@pytest.mark.parametrize("where", ["secret", "environment", "netrc"])
def test_a_key_is_found_where_the_client_and_we_look(monkeypatch, tmp_path, where):
    monkeypatch.delenv("WANDB_MODE")
    if where == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    if where == "netrc":
        (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {'k' * 40}\n")
        (tmp_path / "netrc").chmod(0o600)
    WandBFrontend({"wandb_api_key": "k" * 40} if where == "secret" else {})


class _Online:
    """Stands in for the client's run at the service: what it is asked and told."""

    resumed, dir = False, ""

    def __init__(self, epoch=None):
        self.summary, self.rows, self.resumed = {} if epoch is None else {"epoch": epoch}, [], epoch is not None

    def define_metric(self, *_arguments, **_keywords):
        pass

    def log(self, row):
        self.rows.append(row)

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def online(monkeypatch, tmp_path):
    """Return what the client's ``init`` is called with, and the run that it returns next."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "online")
    asked = SimpleNamespace(calls=[], run=_Online())

    def init(**keywords):
        asked.calls.append(keywords)
        asked.run.dir = str(tmp_path)
        return asked.run

    monkeypatch.setattr(wandb, "init", init)
    return asked


def test_online_a_resumed_run_asks_for_the_same_id_and_logs_what_the_service_lacks(online, tmp_path):
    secrets = {"wandb_api_key": "k" * 40}
    _told(_started(tmp_path / "run"), _finished(2), FINISHED, secrets=secrets)
    online.run = _Online(epoch=2)
    _told(_started(tmp_path / "run", epoch=3), _finished(4), FINISHED, secrets=secrets)
    first, second = online.calls
    assert first["id"] == second["id"]
    assert second["resume"] == "allow"
    assert second["settings"].api_key == "k" * 40
    assert [row["epoch"] for row in online.run.rows] == [3, 4]
    assert online.run.exit_code == 0


def test_no_key_is_written_into_the_run_s_folder(tmp_path, monkeypatch):
    _told(_started(tmp_path / "run"), _finished(1), FINISHED, secrets={"wandb_api_key": "secret" * 8})
    written = [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert written
    assert not any(b"secretsecret" in content for content in written)


PROGRAM = """
import os, sys, time
from tests.toys import Squares, small_trainer

trainer = small_trainer(sys.argv[1], Squares(4))
trainer.set_frontend("wandb")
started = time.perf_counter()
trainer.train(3, seed=1, save_preview=False)
print(time.perf_counter() - started, time.monotonic(), flush=True)
"""


@pytest.mark.slow
def test_a_service_that_never_answers_holds_up_neither_the_run_nor_for_long_the_program(tmp_path):
    with socket.socket() as service:
        service.bind(("127.0.0.1", 0))
        service.listen(64)  # connections are taken and nothing is ever said
        environment = {
            **os.environ,
            "WANDB_MODE": "online",
            "WANDB_BASE_URL": f"http://127.0.0.1:{service.getsockname()[1]}",
            "WANDB_API_KEY": "k" * 40,
            "no_proxy": "127.0.0.1",
        }
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        ended = time.monotonic()
    _, trained = map(float, done.stdout.split())
    assert ended - trained < 40
    (log,) = tmp_path.glob("SmallTrainer/*/logs.txt")
    said = "WandBFrontend did not answer in time and did not receive the start, 3 of 3 epochs and the end"
    assert said in log.read_text()


def test_a_missing_package_is_one_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"candy-monai\[wandb\]"):
        WandBFrontend({})
