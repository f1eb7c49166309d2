"""A client of Notion's REST API: JSON and files over HTTPS, with time-outs, retries, and helpful errors.

The API key is in no message, no attribute and no ``repr``.
"""

from __future__ import annotations

import http.client
import json
import math
import re
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TypeAlias, TypeVar
from urllib.parse import urlsplit

from typing_extensions import override

from candy_monai.errors import CandyError, SettingsError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Object: TypeAlias = dict[str, Json]
T = TypeVar("T")

BASE_URL = "https://api.notion.com"
VERSION = "2025-09-03"
TIMEOUT_S = 10.0
"""Time-out for connecting, and between two parts of a response."""
MAX_ATTEMPTS = 5
FIRST_PAUSE_S = 1.0
"""Pause before the second attempt; each further pause is twice as long."""
MAX_TOTAL_S = 60.0
"""Limit for one request with all its retries: no attempt begins later."""
MAX_ANSWER_BYTES = 1 << 24

_TEMPORARY = frozenset({429, 500, 502, 503, 504, 529})
_PRINTABLE = re.compile(r"[\x21-\x7e]+")
_LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
_MEND = {
    401: "correct the secret 'notion_api_key': candy-monai config set-secret notion_api_key",
    403: "give the integration of 'notion_api_key' the capabilities to read, insert and update content",
    404: "correct the secret 'notion_database_id', and connect the database to the integration in Notion (its menu, "
    "Connections)",
}


class NotionError(CandyError):
    """Notion refuses a request with this HTTP status, and a retry would not help."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class NotionUnavailableError(CandyError):
    """Notion cannot be reached, or asks for a later retry."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotionClient:
    """Sends requests to Notion; they raise `NotionError` if refused, `NotionUnavailableError` without an answer.

    The API's address must use HTTPS unless it is on this machine, since the key of an integration is sent there.
    """

    def __init__(
        self,
        api_key: str,
        *,
        base_url: str = BASE_URL,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        key = api_key.strip()
        if not _PRINTABLE.fullmatch(key):
            raise SettingsError(
                "the secret 'notion_api_key' contains spaces or other characters that a Notion key never has"
            )
        address = urlsplit(base_url)
        if address.scheme != "https" and not (address.scheme == "http" and address.hostname in _LOCAL):
            raise SettingsError(f"the address of Notion's API must begin with https://, got {base_url!r}")
        self._base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        self._clock = clock
        self._sleep = sleep
        self._not_before = -math.inf
        self._opener = urllib.request.build_opener(_NoRedirect)

        def authorize(request: urllib.request.Request) -> None:
            request.add_unredirected_header("Authorization", f"Bearer {key}")

        def without_key(text: str) -> str:
            return text.replace(key, "***")  # whatever a server may answer

        self._authorize, self._without_key = authorize, without_key  # closures: no attribute holds the key

    def request(self, method: str, path: str, body: Object | None = None) -> Object:
        """Send an idempotent request, with retries while Notion is unavailable."""
        return self.persist(lambda: self.send(method, path, body))

    def persist(self, attempt: Callable[[], T]) -> T:
        """Call a function again, after growing pauses, while it raises `NotionUnavailableError`.

        A pause is never shorter than Notion asks for; if that exceeds the limit, nothing is sent before the time is
        over, also not by later calls.
        """
        end = self._clock() + MAX_TOTAL_S
        pause = FIRST_PAUSE_S
        for number in range(1, MAX_ATTEMPTS + 1):
            if self._not_before > end:
                wait_s = self._not_before - self._clock()
                raise NotionUnavailableError(f"Notion asks to wait another {wait_s:.0f} s")
            self._sleep(max(0.0, self._not_before - self._clock()))
            try:
                return attempt()
            except NotionUnavailableError as error:
                if error.retry_after_s:
                    self._not_before = self._clock() + error.retry_after_s
                if number == MAX_ATTEMPTS or self._clock() + pause > end:
                    raise
            self._sleep(pause)
            pause *= 2
        raise AssertionError("the last attempt returns or raises")

    def upload(self, name: str, content: bytes, *, content_type: str) -> str:
        """Upload a file of at most 20 MB, and return its id, with which it can be attached to a page within an hour."""
        body: Object = {"mode": "single_part", "filename": name, "content_type": content_type}
        form, form_type = _form(name, content, content_type)

        def attempt() -> str:  # a file that was sent half cannot be sent again: each attempt is a new upload
            upload_id = id_of(self.send("POST", "/v1/file_uploads", body))
            self._send("POST", f"/v1/file_uploads/{upload_id}/send", form, form_type)
            return upload_id

        return self.persist(attempt)

    def send(self, method: str, path: str, body: Object | None = None) -> Object:
        """Send a request once."""
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        return self._send(method, path, content, "application/json")

    def _send(self, method: str, path: str, content: bytes | None, content_type: str) -> Object:
        request = urllib.request.Request(
            self._base_url + path,
            method=method,
            data=content,
            headers={"Content-Type": content_type, "Notion-Version": VERSION},
        )
        self._authorize(request)
        try:
            return self._answer(request)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            what = self._without_key(f"{type(reason).__name__}: {reason}".removesuffix(": "))
            raise NotionUnavailableError(f"no usable answer from {self._base_url} ({what})") from None

    def _answer(self, request: urllib.request.Request) -> Object:
        end = self._clock() + MAX_TOTAL_S
        content = bytearray()
        with self._opener.open(request, timeout=self._timeout_s) as response:
            while piece := response.read1(1 << 16):
                content += piece
                if len(content) > MAX_ANSWER_BYTES or self._clock() > end:
                    raise TimeoutError("the answer does not end")
        answer = json.loads(content)
        if not isinstance(answer, dict):
            raise ValueError("the answer is not a JSON object")
        return answer

    def _refusal(self, error: urllib.error.HTTPError) -> CandyError:
        try:
            answer = json.loads(error.read(1 << 16))
            said = f"{error.code} {answer['code']}: {answer['message']}"
        except (OSError, http.client.HTTPException, ValueError, TypeError, KeyError):
            said = f"{error.code} {error.reason}"
        said = self._without_key(said)
        if error.code in _TEMPORARY:
            return NotionUnavailableError(
                f"Notion is not available ({said})", retry_after_s=_seconds(error.headers.get("Retry-After"))
            )
        remedy = f"; {_MEND[error.code]}" if error.code in _MEND else ""
        return NotionError(f"Notion rejected the request ({said}){remedy}", status=error.code)


def id_of(thing: Json) -> str:
    """Return the id in a response of Notion; raise if it has none."""
    found = thing.get("id") if isinstance(thing, dict) else None
    if not isinstance(found, str):
        raise NotionUnavailableError("Notion's answer has no id")
    return found


def _form(name: str, content: bytes, content_type: str) -> tuple[bytes, str]:
    """Return a form with one file (RFC 7578), and its content type."""
    boundary = secrets.token_hex(16)  # so long that no file holds it
    quoted = name.replace("\\", "_").replace('"', "_").replace("\r", " ").replace("\n", " ")
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{quoted}"\r\n'
    head += f"Content-Type: {content_type}\r\n\r\n"
    return head.encode() + content + f"\r\n--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The API does not redirect; whoever else does shall not be followed with a key."""

    @override
    def redirect_request(self, *_args: object, **_keywords: object) -> None:
        return None


def _seconds(text: str | None) -> float:
    try:
        seconds = float(text or 0)
    except ValueError:  # HTTP allows a date; Notion documents seconds
        return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
