"""A server on this machine that speaks Notion's API, with the weaknesses that a test asks for."""

from __future__ import annotations

import email
import json
import threading
import time
from contextlib import contextmanager
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "ntn_s3cret"
DATABASE = "248104cd477e80fdb757e945d38000bd"
SOURCE = "source-1"
TITLE_ONLY = {"Name": {"type": "title", "title": {}}}


class NotionServer:
    """One database with its columns and pages, and what arrived.

    ``faults`` are consumed one a request: a status, a triple of status, code and headers, raw bytes that are sent in
    place of JSON, or a number of seconds as a float, to answer late.
    """

    def __init__(self):
        self.columns = dict(TITLE_ONLY)
        self.sources = [{"id": SOURCE, "name": "Runs"}]
        self.pages = {}
        self.files = {}
        self.requests = []
        self.headers = []
        self.faults = []
        self.url = ""

    def page(self):
        """Return the properties of the only page, each as the plain value that it shows."""
        (page,) = self.pages.values()
        return {name: shown(value) for name, value in page.items()}

    def answer(self, method, path, body):
        """Return status and body, as Notion would."""
        if path == f"/v1/databases/{DATABASE}" and method == "GET":
            return 200, {"object": "database", "data_sources": self.sources}
        if path == f"/v1/data_sources/{SOURCE}" and method in ("GET", "PATCH"):
            for name, column in (body or {}).get("properties", {}).items():
                self.columns[name] = {"type": next(iter(column)), **column}
            return 200, {"object": "data_source", "properties": self.columns}
        if path == f"/v1/data_sources/{SOURCE}/query":
            wanted = body["filter"]
            found = [
                {"object": "page", "id": page_id}
                for page_id, page in self.pages.items()
                if shown(page[wanted["property"]]) == wanted["title"]["equals"]
            ]
            return 200, {"object": "list", "results": found}
        if path == "/v1/file_uploads" and method == "POST":
            if body["mode"] != "single_part" or not body["filename"].endswith(".png"):
                return error(400, "validation_error", "filename must have an extension.")
            upload_id = f"upload-{len(self.files) + 1}"
            self.files[upload_id] = {"name": body["filename"], "type": body["content_type"], "content": None}
            return 200, self._upload(upload_id)
        if method == "POST" and path.startswith("/v1/file_uploads/") and path.endswith("/send"):
            return self._receive(path.split("/")[3], body)
        if path == "/v1/pages" and method == "POST":
            if body["parent"] != {"type": "data_source_id", "data_source_id": SOURCE}:
                return error(404, "object_not_found", "Could not find data source.")
            page_id = f"page-{len(self.pages) + 1}"
            self.pages[page_id] = {}
            return self._write(page_id, body["properties"])
        if method == "PATCH" and path.removeprefix("/v1/pages/") in self.pages:
            return self._write(path.removeprefix("/v1/pages/"), body["properties"])
        return error(404, "object_not_found", "Could not find it. Make sure it is shared with your integration.")

    def _upload(self, upload_id):
        status = "pending" if self.files[upload_id]["content"] is None else "uploaded"
        return {"object": "file_upload", "id": upload_id, "status": status}

    def _receive(self, upload_id, form):
        file, part = self.files.get(upload_id), form if isinstance(form, dict) else {}
        if file is None or file["content"] is not None:
            return error(404, "object_not_found", "Could not find a pending file upload.")
        if part.get("field") != "file" or part["type"] != file["type"] or part["name"] != _quoted(file["name"]):
            return error(400, "validation_error", "The file does not match its upload.")
        file["content"] = part["content"]
        return 200, self._upload(upload_id)

    def _write(self, page_id, properties):
        for file in (file for value in properties.values() for file in value.get("files", ())):
            upload = self.files.get(file["file_upload"]["id"])
            if file["type"] != "file_upload" or upload is None or upload["content"] is None:
                return error(400, "validation_error", "The file upload was not sent, or has expired.")
        for name, value in properties.items():
            if name not in self.columns:
                return error(400, "validation_error", f"{name} is not a property that exists.")
            if (kind := self.columns[name]["type"]) not in value:
                return error(400, "validation_error", f"{name} is expected to be {kind}.")
        self.pages[page_id] |= properties
        return 200, {"object": "page", "id": page_id}


def shown(value):
    """Return what a property shows, as a plain value."""
    kind, content = next(iter(value.items()))
    if kind in ("title", "rich_text"):
        return "".join(part["text"]["content"] for part in content)
    if kind == "files":
        return [file["name"] for file in content]
    return content["name"] if kind in ("select", "status") and content else content


def _quoted(name):
    return name.replace('"', "_").replace("\r", " ").replace("\n", " ")


def parsed(raw, content_type):
    """Return a request's JSON, or of a form the only part, as its content type and boundary say."""
    if content_type.startswith("multipart/form-data"):
        message = email.message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + raw, policy=HTTP)
        (part,) = message.iter_parts()
        return {
            "field": part["Content-Disposition"].params["name"],
            "name": part.get_filename(),
            "type": part.get_content_type(),
            "content": part.get_payload(decode=True),
        }
    return json.loads(raw) if raw else None


def error(status, code, message):
    """Return an error as Notion words it."""
    return status, {"object": "error", "status": status, "code": code, "message": message}


@contextmanager
def notion_server():
    """Run a server on a free port of this machine."""
    state = NotionServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self):
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = parsed(raw, self.headers["Content-Type"] or "")
            state.requests.append((self.command, self.path, body))
            state.headers.append(dict(self.headers))
            fault, more = (state.faults.pop(0) if state.faults else None), {}
            if isinstance(fault, bytes):
                return self._send(200, fault, more)
            if isinstance(fault, float):
                time.sleep(fault)
                fault = None
            if self.headers["Authorization"] != f"Bearer {KEY}":
                status, answer = error(401, "unauthorized", "API token is invalid.")
            elif fault is None:
                status, answer = state.answer(self.command, self.path, body)
            else:
                status, code, more = fault if isinstance(fault, tuple) else (fault, "some_code", {})
                status, answer = error(status, code, "Something is wrong.")
            return self._send(status, json.dumps(answer).encode(), more)

        def _send(self, status, content, headers):
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except OSError:
                self.close_connection = True  # the client has given up

        do_GET = do_POST = do_PATCH = _serve

        def log_message(self, *_arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
