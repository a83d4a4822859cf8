"""A server that stands in for the Hub: what the client asks of it when it uploads a folder of small files."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

COMMIT = "/me/my-voice/commit/0000000"


class Hub:
    """The server, and what it was given."""

    def __init__(self) -> None:
        self.repositories: list[dict[str, object]] = []
        self.files: dict[str, bytes] = {}
        self.branches: list[str] = []
        self.tokens: set[str | None] = set()
        self.refuses = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the server's name for it
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                hub.tokens.add(self.headers["Authorization"])
                answer = hub.answer(self.path, body)
                self.send_response(403 if hub.refuses else 200)
                self.send_header("Content-Type", "application/json")
                if hub.refuses:
                    self.send_header("X-Error-Message", f"{self.headers['Authorization']} may not write")
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *args: object, **_: object) -> None:
                """Keep the test's output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, path: str, body: bytes) -> dict[str, object]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.repositories.append(asked)
            return {"url": f"{self.address}/{asked.get('organization', 'me')}/{asked['name']}"}
        if path == "/api/validate-yaml":  # the model card's
            return {"errors": [], "warnings": []}
        if "/branch/" in path:
            self.branches.append(path.rpartition("/")[2])
            return {}
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            return {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
        assert "/commit/" in path, path
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return {"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.address}{COMMIT}", "hookOutput": ""}


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server, with the Hub's client sent to it."""
    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    threading.Thread(target=hub.server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
