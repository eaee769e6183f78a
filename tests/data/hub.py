"""A stand-in for the Hugging Face hub: the few endpoints that a data set's download asks, on a loopback port."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from tests.support.http_server import serving

REPO = "owner/chats"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    files: dict[str, bytes]
    large: tuple[str, ...] = ()
    """Files in large-file storage, listed with their sha256."""
    error: tuple[int, str] | None = None
    """(status, code) with which every request for the repository is answered."""
    cuts: list[int] = field(default_factory=list)
    """After how many bytes the next transfers break off, one each."""
    damaged: bool = False
    """Serve other bytes than are listed, as many."""
    commit: str = COMMIT
    """Where `main` points to; every commit serves the same files."""
    url: str = ""
    ranges: list[str | None] = field(default_factory=list)
    """Range header of each transfer."""
    tokens: dict[str, str | None] = field(default_factory=dict)
    """Path -> the Authorization header it was asked with."""

    looks: int = 0
    """How often somebody asked which commit a branch is at."""

    def entries(self) -> list[dict[str, Any]]:
        return [self._entry(name, data) for name, data in self.files.items()]

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data), "oid": blob}
        if name in self.large:
            entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return entry


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            hub.tokens[path] = self.headers.get("Authorization")
            if REPO not in path:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            elif hub.error:
                self.answer(hub.error[0], b"{}", {"X-Error-Code": hub.error[1]})
            elif path in {f"/api/datasets/{REPO}"} | {f"/api/datasets/{REPO}/revision/{name}" for name in ("main", hub.commit)}:
                hub.looks += 1
                self.answer(200, json.dumps({"id": REPO, "sha": hub.commit, "siblings": []}).encode())
            elif path == f"/api/datasets/{REPO}/tree/{hub.commit}":
                self.answer(200, json.dumps(hub.entries()).encode())
            elif path.startswith(f"/datasets/{REPO}/resolve/{hub.commit}/"):
                self.transfer(hub.files[path.rsplit(f"{hub.commit}/", 1)[1]])
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})

        def do_HEAD(self) -> None:
            """What the library itself asks before it fetches a file into its cache."""
            name = urlsplit(self.path).path.rsplit(f"{hub.commit}/", 1)[-1]
            entry = next(entry for entry in hub.entries() if entry["path"] == name)
            etag = entry.get("lfs", {}).get("oid", entry["oid"])
            self.send_response(200)
            for header, value in {"ETag": f'"{etag}"', "X-Repo-Commit": hub.commit, "Content-Length": entry["size"]}.items():
                self.send_header(header, str(value))
            self.end_headers()

        def transfer(self, data: bytes) -> None:
            wanted = self.headers.get("Range")
            hub.ranges.append(wanted)
            first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0  # type: ignore[index]
            body = (bytes(byte ^ 1 for byte in data) if hub.damaged else data)[first:]
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(body)))
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if hub.cuts:
                body = body[: hub.cuts.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body)), "Content-Type": "application/json"} | (headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    with serving(Handler) as hub.url:
        yield hub
