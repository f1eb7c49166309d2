import socket
import traceback

import pytest

from candy_monai.errors import SettingsError
from candy_monai.frontends.notion_client import NotionClient, NotionError, NotionUnavailableError
from tests.notion_server import DATABASE, KEY

PATH = f"/v1/databases/{DATABASE}"


class _Clock:
    """Tells a time that passes by sleeping only."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []

    def sleep(self, seconds):
        self.now += seconds
        if seconds:
            self.slept.append(seconds)


@pytest.fixture
def clock():
    return _Clock()


@pytest.fixture
def client(notion, clock):
    return NotionClient(KEY, base_url=notion.url, clock=lambda: clock.now, sleep=clock.sleep)


def test_a_request_carries_the_key_the_version_and_json(notion, client):
    client.request("PATCH", "/v1/data_sources/source-1", {"properties": {}})
    (headers,) = notion.headers
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Notion-Version"] == "2025-09-03"
    assert headers["Content-Type"] == "application/json"
    assert notion.requests == [("PATCH", "/v1/data_sources/source-1", {"properties": {}})]


def test_a_file_is_uploaded_as_a_form_whatever_its_name_and_content(notion, client):
    content = bytes(range(256)) + b"\r\n--"
    assert client.upload('a "b"\r\n.png', content, content_type="image/png") == "upload-1"
    assert notion.requests[-1][2]["name"] == "a _b_  .png"
    assert notion.requests[-1][2]["content"] == content
    assert [path for _, path, _ in notion.requests] == ["/v1/file_uploads", "/v1/file_uploads/upload-1/send"]


def test_an_upload_that_breaks_off_begins_anew(notion, client):
    notion.faults = [None, 502]
    assert client.upload("a.png", b"content", content_type="image/png") == "upload-2"
    assert notion.files["upload-2"]["content"] == b"content"


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 529])
def test_a_temporary_error_is_tried_again_after_growing_pauses(notion, client, clock, status):
    notion.faults = [status, status, status]
    assert client.request("GET", PATH)["object"] == "database"
    assert clock.slept == [1, 2, 4]


def test_a_lasting_outage_ends_after_five_attempts(notion, client, clock):
    notion.faults = [503] * 9
    with pytest.raises(NotionUnavailableError, match=r"not available \(503 some_code: Something is wrong"):
        client.request("GET", PATH)
    assert len(notion.requests) == 5
    assert sum(clock.slept) == 1 + 2 + 4 + 8


def test_a_pause_is_as_long_as_notion_asks_for(notion, client, clock):
    notion.faults = [(429, "rate_limited", {"Retry-After": "7"})]
    client.request("GET", PATH)
    assert sum(clock.slept) == 7


def test_a_pause_longer_than_may_be_waited_is_kept_by_later_requests_too(notion, client, clock):
    notion.faults = [(429, "rate_limited", {"Retry-After": "300"})]
    with pytest.raises(NotionUnavailableError, match="asks to wait another 299 s"):
        client.request("GET", PATH)
    with pytest.raises(NotionUnavailableError, match="asks to wait"):
        client.request("GET", PATH)
    assert len(notion.requests) == 1
    clock.now += 300
    client.request("GET", PATH)
    assert len(notion.requests) == 2


@pytest.mark.parametrize("text", ["soon", "Wed, 21 Oct 2026 07:28:00 GMT", "-5", "nan", "inf"])
def test_a_pause_that_cannot_be_read_is_none(notion, client, clock, text):
    notion.faults = [(429, "rate_limited", {"Retry-After": text})]
    client.request("GET", PATH)
    assert clock.slept == [1]


@pytest.mark.parametrize(
    ("status", "remedy"),
    [(400, "some_code"), (403, "capabilities"), (404, "notion_database_id.*connect the database"), (409, "some_code")],
)
def test_a_refusal_is_not_tried_again_and_says_what_to_mend(notion, client, status, remedy):
    notion.faults = [status]
    with pytest.raises(NotionError, match=f"{status} some_code: Something is wrong.*{remedy}|{remedy}") as caught:
        client.request("GET", PATH)
    assert caught.value.status == status
    assert len(notion.requests) == 1


def test_a_wrong_key_names_the_secret_to_mend_and_not_the_key(notion):
    key = KEY[::-1]
    with pytest.raises(
        NotionError, match="401 unauthorized.*correct the secret 'notion_api_key'.*set-secret"
    ) as caught:
        NotionClient(key, base_url=notion.url).request("GET", PATH)
    assert key not in "".join(traceback.format_exception(caught.value))
    assert len(notion.requests) == 1


def test_a_slow_answer_is_given_up_after_the_time_limit(notion, clock):
    client = NotionClient(KEY, base_url=notion.url, timeout_s=0.05, clock=lambda: clock.now, sleep=clock.sleep)
    notion.faults = [0.3]
    with pytest.raises(NotionUnavailableError, match="no usable answer from http://127.0.0.1.*timed out"):
        client.send("GET", PATH)


def test_a_refused_connection_is_tried_again(client, notion, clock):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can take it meanwhile
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        client = NotionClient(KEY, base_url=url, clock=lambda: clock.now, sleep=clock.sleep)
        with pytest.raises(NotionUnavailableError, match="ConnectionRefusedError"):
            client.request("GET", PATH)
    assert clock.slept == [1, 2, 4, 8]


@pytest.mark.parametrize("content", [b"<html>Please log in</html>", b"[1]", b"\xff\xfe", b""])
def test_an_answer_that_is_no_json_object_is_tried_again(notion, client, content):
    notion.faults = [content]
    assert client.request("GET", PATH)["object"] == "database"


def test_an_error_without_notion_s_body_is_still_named(notion, client, monkeypatch):
    monkeypatch.setattr("tests.notion_server.error", lambda status, *_: (status, ["no object"]))
    notion.faults = [400]
    with pytest.raises(NotionError, match="400 Bad Request"):
        client.request("GET", PATH)


def test_a_redirect_is_not_followed_with_the_key(notion, client):
    notion.faults = [(302, "moved", {"Location": f"{notion.url}/elsewhere"})]
    with pytest.raises(NotionError, match="302"):
        client.request("GET", PATH)
    assert len(notion.requests) == 1


def test_a_key_that_a_server_echoes_does_not_reach_the_message(notion, client, monkeypatch):
    monkeypatch.setattr(
        "tests.notion_server.error", lambda status, *_: (status, {"code": "x", "message": f"bad {KEY}"})
    )
    notion.faults = [400]
    with pytest.raises(NotionError, match=r"bad \*\*\*") as caught:
        client.request("GET", PATH)
    assert KEY not in "".join(traceback.format_exception(caught.value))


def test_no_attribute_of_a_client_shows_the_key(client):
    assert KEY not in repr(vars(client))
    assert KEY not in repr(vars(client._opener))


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "clé", "a\0b"])
def test_what_cannot_be_a_key_is_refused_without_showing_it(key):
    with pytest.raises(SettingsError, match="notion_api_key") as caught:
        NotionClient(key)
    assert not key or key not in str(caught.value)


def test_spaces_around_a_key_are_left_out(notion):
    NotionClient(f" {KEY}\n", base_url=notion.url).request("GET", PATH)
    assert notion.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("url", ["http://api.notion.com", "ftp://127.0.0.1", "api.notion.com", ""])
def test_the_key_is_sent_over_https_only_unless_to_this_machine(url):
    with pytest.raises(SettingsError, match="must begin with https://"):
        NotionClient(KEY, base_url=url)
