from datetime import UTC, datetime

import pytest

from candy_monai.frontends.notion_table import COLUMNS, Files, Span, encoded

START = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)
STATUS = {"type": "status", "status": {"options": [{"name": "Not started"}, {"name": "In progress"}, {"name": "Done"}]}}


@pytest.mark.parametrize(
    ("kind", "value", "content"),
    [
        ("number", 0.5, {"number": 0.5}),
        ("rich_text", "words", {"rich_text": [{"text": {"content": "words"}}]}),
        ("rich_text", 0.123456, {"rich_text": [{"text": {"content": "0.1235"}}]}),
        ("rich_text", Span(start=START), {"rich_text": [{"text": {"content": "2026-05-04 12:30"}}]}),
        ("select", "UNet", {"select": {"name": "UNet"}}),
        ("select", "a,b", {"select": {"name": "a b"}}),
        ("select", "", {"select": None}),
        (
            "files",
            Files(ids={"a.png": "upload-1"}),
            {"files": [{"type": "file_upload", "file_upload": {"id": "upload-1"}, "name": "a.png"}]},
        ),
        ("date", Span(start=START), {"date": {"start": "2026-05-04T12:30:00+00:00", "end": None}}),
    ],
)
def test_a_value_takes_the_form_of_its_column(kind, value, content):
    assert encoded({"type": kind}, value) == content


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("rich_text", Files(ids={"a": "b"})),
        ("number", "words"),
        ("date", 1.0),
        ("select", 1.0),
        ("formula", 1.0),
        ("checkbox", "x"),
    ],
)
def test_a_value_that_a_column_cannot_show_is_left_out(kind, value):
    assert encoded({"type": kind}, value) is None


def test_a_text_is_cut_at_the_length_that_notion_takes():
    (part,) = encoded({"type": "rich_text"}, "x" * 5000)["rich_text"]
    assert len(part["text"]["content"]) == 2000


def test_a_status_is_one_of_those_that_there_are():
    assert encoded(STATUS, "In Progress") == {"status": {"name": "In progress"}}
    assert encoded(STATUS, "Completed") == {"status": {"name": "Done"}}
    assert encoded(STATUS, "Interrupted") is None


def test_every_column_to_be_made_has_one_type():
    assert all(len(column) == 1 for column in COLUMNS.values())
