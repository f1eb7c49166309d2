import logging
import math
from datetime import UTC, datetime, timedelta

import pytest

from candy_monai.errors import SettingsError
from candy_monai.experiment.events import RunScored
from candy_monai.frontends import notion_client
from candy_monai.frontends.notion import NotionFrontend
from candy_monai.frontends.notion_client import NotionError, NotionUnavailableError
from candy_monai.frontends.notion_table import COLUMNS
from tests.events import epoch_finished, run_started
from tests.notion_server import DATABASE, KEY
from tests.toys import small_trainer

RUN = "20251101-14-a3f2"
NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)
SECRETS = {"notion_api_key": KEY, "notion_database_id": DATABASE}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(notion_client, "FIRST_PAUSE_S", 0.001)


@pytest.fixture
def said():
    return []


@pytest.fixture
def frontend(notion, said, monkeypatch):
    monkeypatch.setattr("candy_monai.frontends.notion._now", lambda: NOON)
    made = NotionFrontend(SECRETS, base_url=notion.url)
    made.log_to(said.append)
    return made


def _create(frontend, run=RUN):
    frontend.on_experiment_created(run, "MyTrainer", "UNet", "a note", 7.7e6, 3.4e9, 10, 5)


def _update(frontend, epoch=2, **metrics):
    frontend.on_experiment_updated(RUN, epoch, {"val score": [0.8, 0.7], "epoch duration": [50.0, 70.0], **metrics}, 4)


@pytest.fixture
def run(frontend, tmp_path):
    """Return a run that has begun, with one preview in its folder."""
    (tmp_path / "actual (preview).png").write_bytes(b"first\r\n--picture")
    _create(frontend)
    frontend.on_event(run_started(folder=tmp_path))
    return tmp_path


def test_previews_are_uploaded_and_stand_on_the_page_each_once(notion, frontend, run, said):
    frontend.on_event(epoch_finished(1, num_epochs=1000))
    assert notion.page()["Previews"] == ["actual (preview).png"]
    assert notion.files["upload-1"]["content"] == b"first\r\n--picture"
    frontend.on_event(epoch_finished(2, num_epochs=1000))  # before the next are due
    (run / "expected (preview).png").write_bytes(b"second")
    frontend.on_experiment_closed(RUN)
    assert notion.page()["Previews"] == ["actual (preview).png", "expected (preview).png"]
    assert [file["content"] for file in notion.files.values()] == [b"first\r\n--picture", b"second"]
    assert said == []


def test_previews_that_an_outage_kept_back_are_sent_with_the_next(notion, frontend, run, said):
    notion.faults = [503] * 5
    frontend.on_event(epoch_finished(1))
    assert "Previews" not in notion.page()
    frontend.on_experiment_closed(RUN)
    assert notion.page()["Previews"] == ["actual (preview).png"]
    assert len(said) == 1
    assert said[0].startswith("These previews are not shown in Notion: ")


def test_previews_that_notion_refuses_cost_nothing_but_themselves(notion, frontend, run, said):
    notion.faults = [(403, "restricted_resource", {})]
    frontend.on_event(epoch_finished(1))
    frontend.on_experiment_closed(RUN)
    frontend.on_experiment_completed(RUN)
    assert notion.page()["Status"] == "Completed"
    assert notion.files == {}
    assert len(said) == 1
    assert said[0].startswith("Previews are not shown in Notion any more: ")


def test_without_a_column_for_them_no_preview_leaves_the_machine(notion, frontend, run):
    del notion.columns["Previews"]
    frontend._table.forget_columns()
    _update(frontend)
    frontend.on_event(epoch_finished(1))
    frontend.on_experiment_closed(RUN)
    assert notion.files == {}


def test_the_final_scores_are_shown_with_a_column_of_their_own_where_there_is_one(notion, frontend, tmp_path):
    notion.columns |= {"Name": {"type": "title", "title": {}}}
    _create(frontend)
    notion.columns |= {"final dice/Liver": {"type": "number", "number": {}}}
    frontend._table.forget_columns()
    scores = {"dice": 0.75, "dice/Liver": 0.8, "dice/Spleen": math.nan}
    frontend.on_event(RunScored(scores=scores, num_cases=3, file=tmp_path / "validation.json"))
    page = notion.page()
    assert (page["Final Score"], page["final dice/Liver"]) == (0.75, 0.8)
    assert page["Final Scores"] == "dice 0.7500, dice/Liver 0.8000"


@pytest.mark.parametrize("missing", SECRETS)
def test_a_missing_secret_is_said_when_the_frontend_is_chosen(tmp_path, monkeypatch, missing):
    for name, value in SECRETS.items():
        monkeypatch.setenv(f"CANDY_MONAI_{name.upper()}", "" if name == missing else value)
    with pytest.raises(SettingsError, match=f"NotionFrontend needs the secret '{missing}'.*set-secret {missing}"):
        small_trainer(tmp_path).set_frontend(NotionFrontend)


@pytest.mark.parametrize(
    "text",
    [
        "248104cd-477e-80fd-b757-e945d38000bd",
        f"https://www.notion.so/team/Runs-{DATABASE}?v=148104cd477e80bb928f000ce197ddf2",
    ],
)
def test_the_database_may_be_named_by_its_id_or_its_address(notion, text):
    frontend = NotionFrontend({**SECRETS, "notion_database_id": text}, base_url=notion.url)
    _create(frontend)
    assert len(notion.pages) == 1


def test_what_holds_no_database_s_id_is_refused(notion):
    with pytest.raises(SettingsError, match="notion_database_id.*32 digits"):
        NotionFrontend({**SECRETS, "notion_database_id": "my runs"}, base_url=notion.url)


def test_in_a_fresh_database_the_columns_are_made_and_a_new_run_fills_them(notion, frontend, said):
    _create(frontend)
    assert set(notion.columns) == {"Name", *COLUMNS}
    assert notion.page() == {
        "Name": RUN,
        "Status": "In Progress",
        "Progress": 0,
        "Epoch": 0,
        "Time": {"start": "2026-05-04T12:00:00+00:00", "end": None},
        "Trainer": "MyTrainer",
        "Model": "UNet",
        "Params (M)": 7.7,
        "MACs (G)": 3.4,
        "Note": "a note",
    }
    assert said == []


def test_an_epoch_updates_progress_best_score_metrics_and_expected_end(notion, frontend):
    _create(frontend)
    _update(frontend)
    page = notion.page()
    assert (page["Progress"], page["Epoch"], page["Score"], page["Early Stop"]) == (0.2, 2, 0.8, 0.8)
    assert page["Metrics"] == "val score 0.7, epoch duration 70"
    end = NOON + timedelta(seconds=8 * 60)  # 8 epochs are left, and one takes (50 + 70) / 2 s
    assert page["Expected End"]["start"] == end.isoformat()


def test_a_value_that_was_not_measured_is_not_sent(notion, frontend):
    frontend.on_experiment_created(RUN, "MyTrainer", "UNet", "", 1e6, math.nan, 10, None)
    frontend.on_experiment_updated(RUN, 1, {"val score": [math.nan], "val dice": [math.nan]}, None)
    assert not {"MACs (G)", "Score", "Early Stop", "val dice"} & set(notion.page())


def test_a_number_column_that_is_named_like_a_metric_shows_its_newest_value(notion, frontend):
    notion.columns |= {"Val Dice": {"type": "number", "number": {}}}
    _create(frontend)
    _update(frontend, **{"val dice": [0.5, 0.6, math.nan]})
    assert notion.page()["Val Dice"] == 0.6


def test_the_end_of_a_run_completes_its_page(notion, frontend):
    _create(frontend)
    _update(frontend)
    frontend.on_experiment_completed(RUN)
    page = notion.page()
    assert (page["Status"], page["Progress"], page["Score"]) == ("Completed", 1, 0.8)
    assert page["Time"] == {"start": NOON.isoformat(), "end": NOON.isoformat()}


def test_an_interruption_is_shown_with_its_error(notion, frontend):
    _create(frontend)
    _update(frontend)
    frontend.on_experiment_interrupted(RUN, RuntimeError("out of memory"))
    page = notion.page()
    assert (page["Status"], page["Progress"], page["Observation"]) == (
        "Interrupted",
        0.2,
        "RuntimeError: out of memory",
    )


def test_in_a_database_with_columns_none_is_made_and_those_missing_are_named_once(notion, frontend, said):
    notion.columns |= {"score": {"type": "number", "number": {}}, "Note": {"type": "checkbox", "checkbox": {}}}
    before = set(notion.columns)
    _create(frontend)
    _update(frontend)
    _update(frontend, 3)
    assert set(notion.columns) == before
    assert notion.page() == {"Name": RUN, "score": 0.8}
    missing = ", ".join(name for name in COLUMNS if name not in ("Score", "Note"))
    assert said == [
        f"the Notion database has no column {missing}: left out",
        "the Notion database's column Note, of type checkbox, cannot show 'a note': left out",
    ]


def test_an_integration_that_may_not_make_columns_goes_on_with_those_that_there_are(notion, frontend, said):
    notion.faults = [None, None, (403, "restricted_resource", {})]  # database, columns, and the change of the columns
    _create(frontend)
    assert notion.page() == {"Name": RUN}
    assert "cannot be created" in said[0]
    assert "capabilities" in said[0]


def test_a_column_that_is_removed_during_a_run_does_not_end_the_reports(notion, frontend):
    _create(frontend)
    del notion.columns["Epoch"]
    _update(frontend)
    assert notion.page()["Score"] == 0.8


def test_a_page_that_is_removed_during_a_run_is_made_again(notion, frontend):
    _create(frontend)
    notion.pages.clear()
    _update(frontend)
    assert notion.page()["Score"] == 0.8


def test_a_run_that_has_a_page_gets_no_second(notion, frontend):
    _create(frontend)
    again = NotionFrontend(SECRETS, base_url=notion.url)
    _create(again)
    again.on_experiment_completed(RUN)
    assert notion.page()["Status"] == "Completed"


def test_a_page_whose_creation_is_not_confirmed_is_not_made_twice(notion, frontend, monkeypatch):
    answer = notion.answer

    def lose_the_answer(method, path, body):
        status, content = answer(method, path, body)
        return (502, {}) if path == "/v1/pages" else (status, content)

    monkeypatch.setattr(notion, "answer", lose_the_answer)
    _create(frontend)
    assert len(notion.pages) == 1


def test_an_outage_is_said_once_and_made_up_for_afterwards(notion, frontend, said):
    notion.faults = [503] * 10
    _create(frontend)
    _update(frontend, 1)
    _update(frontend, 2)
    page = notion.page()
    assert (page["Epoch"], page["Trainer"], page["Note"]) == (2, "MyTrainer", "a note")
    assert len(said) == 2
    assert "503" in said[0]
    assert said[1] == "Notion is available again"


def test_the_end_of_a_run_that_cannot_be_told_is_an_error(notion, frontend):
    _create(frontend)
    notion.faults = [500] * 10
    with pytest.raises(NotionUnavailableError, match="500"):
        frontend.on_experiment_completed(RUN)


def test_a_database_of_several_sources_uses_the_first_and_says_so(notion, frontend, said):
    notion.sources.append({"id": "source-2", "name": "Other"})
    _create(frontend)
    assert len(notion.pages) == 1
    assert said == ["the Notion database has 2 data sources: the runs go into the first"]


def test_a_database_that_is_not_shared_with_the_integration_says_how_to_share_it(notion):
    frontend = NotionFrontend({**SECRETS, "notion_database_id": "0" * 32}, base_url=notion.url)
    with pytest.raises(NotionError, match="404 object_not_found.*connect the database to the integration"):
        _create(frontend)


def test_no_state_of_a_frontend_shows_the_key(frontend):
    assert KEY not in repr(frontend)
    assert KEY not in repr(vars(frontend))
    assert KEY not in repr(vars(frontend._table))


def test_a_run_reports_to_notion_and_writes_no_secret_anywhere(notion, tmp_path, monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    for name, value in {**SECRETS, "notion_base_url": notion.url}.items():
        monkeypatch.setenv(f"CANDY_MONAI_{name.upper()}", value)
    notion.faults = [500]
    trainer = small_trainer(tmp_path, console=True)
    trainer.set_frontend(NotionFrontend)
    trainer.train(3, note="a note", save_preview=False)
    for delivery in trainer._dashboards.latest:
        assert delivery.wait(stuck_after_s=10, at_most_s=20)
    page = notion.page()
    assert (page["Name"], page["Status"], page["Epoch"]) == (trainer.experiment_folder().name, "Completed", 3)
    assert page["Score"] == pytest.approx(max(trainer.metrics()["val score"]))
    captured = capfd.readouterr()
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    assert not [content for content in written if KEY.encode() in content]
    assert KEY not in captured.out + captured.err + caplog.text


def test_a_wrong_key_in_a_run_is_said_in_the_log_and_the_run_completes(notion, tmp_path, monkeypatch):
    for name, value in {**SECRETS, "notion_api_key": "ntn_wr0ng", "notion_base_url": notion.url}.items():
        monkeypatch.setenv(f"CANDY_MONAI_{name.upper()}", value)
    trainer = small_trainer(tmp_path)
    trainer.set_frontend(NotionFrontend)
    trainer.train(2, save_preview=False)
    for delivery in trainer._dashboards.latest:
        assert delivery.wait(stuck_after_s=10, at_most_s=20)
    log = (trainer.experiment_folder() / "logs.txt").read_text()
    assert log.count("correct the secret 'notion_api_key'") == 1
    assert "wr0ng" not in log
    assert len(trainer.metrics()["val score"]) == 2
