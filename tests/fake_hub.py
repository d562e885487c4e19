"""A Hub on this machine alone: enough of its HTTP interface to push a model and open it again."""

import base64
import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeHub:
    """Repositories in memory: {repository: {path: content}}."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.address = ""

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of one request."""
        self.requests.append(f"{method} {path}")
        parts = path.partition("?")[0].strip("/").split("/")
        if path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "me"
            name = f"{owner}/{asked['name']}"
            self.repositories.setdefault(name, {})
            return _json({"url": f"{self.address}/{name}", "name": name, "id": name})
        if path == "/api/whoami-v2":
            return _json(
                {"type": "user", "name": "me", "orgs": [], "auth": {"type": "access_token"}}
            )
        if path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if parts[:2] == ["api", "models"]:
            return self._model(parts, body)
        if len(parts) > 4 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), "/".join(parts[4:]))
        return _missing("EntryNotFound")

    def _model(self, parts: list[str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        name = "/".join(parts[2:4])
        files = self.repositories.get(name)
        if files is None:
            return _missing("RepoNotFound")
        what = parts[4] if len(parts) > 4 else ""
        if what == "preupload":
            asked = json.loads(body)["files"]
            told = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked
            ]
            return _json({"files": told})
        if what == "commit":
            for line in filter(None, body.splitlines()):
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    assert value["encoding"] == "base64"
                    files[value["path"]] = base64.b64decode(value["content"])
            return _json(
                {
                    "commitUrl": f"{self.address}/{name}/commit/{_sha(files)}",
                    "commitOid": _sha(files),
                }
            )
        if what == "tree":
            return _json(
                [{"type": "file", "path": p, "size": len(c), "oid": ""} for p, c in files.items()]
            )
        siblings = [{"rfilename": path} for path in files]
        return _json(
            {"id": name, "sha": _sha(files), "siblings": siblings, "private": False, "tags": []}
        )

    def _file(self, name: str, path: str) -> tuple[int, dict[str, str], bytes]:
        files = self.repositories.get(name, {})
        if path not in files:
            return _missing("EntryNotFound")
        etag = hashlib.sha1(files[path]).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": _sha(files)}
        return 200, headers, files[path]


@contextmanager
def fake_hub() -> Generator[tuple[FakeHub, dict[str, str]]]:
    """A running one, and the environment of a process that takes it for the Hub."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, content = hub.answer(self.command, self.path, body)
            self.send_response(status)
            for header, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_POST = do_HEAD = _serve

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub, {"HF_ENDPOINT": hub.address, "HF_TOKEN": "hf_fake"}
    finally:
        server.shutdown()
        server.server_close()


def _json(content: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


def _missing(code: str) -> tuple[int, dict[str, str], bytes]:
    return 404, {"X-Error-Code": code}, b""


def _sha(files: dict[str, bytes]) -> str:
    parts = b"".join(path.encode() + content for path, content in sorted(files.items()))
    return hashlib.sha1(parts).hexdigest()
