"""A Hugging Face hub on the loopback interface: one model repository, as much of the protocol as its client speaks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.http_server import serving

COMMIT = "a" * 40
REPO = "someone/model"
GATED = "someone/gated"


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub whose `someone/model@main` is `folder`, and the log of its requests; `someone/gated` is gated."""
    log: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(body=True)

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, body: bool) -> None:
            path = urlsplit(self.path).path
            log.append(f"{self.command} {path} {self.headers.get('Authorization', '')}".strip())
            if path in (f"/api/models/{REPO}/revision/main", f"/api/models/{GATED}/revision/main"):
                return self.send(json.dumps({"id": REPO, "sha": COMMIT, "siblings": []}).encode(), body)
            if path == f"/api/models/{REPO}/revision/gone":
                return self.send(b"{}", body, 404, {"X-Error-Code": "RevisionNotFound"})
            if path.startswith((f"/api/models/{GATED}/tree", f"/{GATED}/resolve")):
                return self.send(b"{}", body, 403, {"X-Error-Code": "GatedRepo"})
            if path == f"/api/models/{REPO}/tree/{COMMIT}":
                return self.send(json.dumps([entry(file, folder) for file in files(folder)]).encode(), body)
            if path.startswith(f"/{REPO}/resolve/{COMMIT}/"):
                data = (folder / path.removeprefix(f"/{REPO}/resolve/{COMMIT}/")).read_bytes()
                headers = {"ETag": f'"{blob_id(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                return self.send(data, body, 200, headers)
            return self.send(b"{}", body, 404, {"X-Error-Code": "RepoNotFound"})

        def send(self, data: bytes, body: bool, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

    with serving(Handler) as url:
        yield url, log


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def entry(file: Path, folder: Path) -> dict[str, Any]:
    data = file.read_bytes()
    return {"type": "file", "path": str(file.relative_to(folder)), "size": len(data), "oid": blob_id(data)}


def blob_id(data: bytes) -> str:
    """git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
