"""A stand-in for the Hugging Face hub that takes commits: as much of the protocol as its client speaks without hf_xet."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from tests.support.http_server import serving

TOKEN = "hf_" + "t" * 30
LARGE = (".safetensors",)


@dataclass
class Repository:
    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = True
    commits: list[str] = field(default_factory=list)
    """Their messages."""

    @property
    def sha(self) -> str:
        return f"{len(self.commits):040x}"


@dataclass
class Hub:
    models: dict[str, Repository] = field(default_factory=dict)
    datasets: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    """Large files by sha256."""
    url: str = ""


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.look()

        def do_HEAD(self) -> None:
            self.look()

        def do_POST(self) -> None:
            path, body = urlsplit(self.path).path, self.body()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.send({"error": "no"}, 401)
            if path == "/api/repos/create":
                wanted = json.loads(body)
                name = f"{wanted['organization']}/{wanted['name']}"
                hub.models[name] = Repository(private=wanted["visibility"] == "private")
                return self.send({"url": f"{hub.url}/{name}"})
            if path == "/api/validate-yaml":
                return self.send({"errors": [], "warnings": []})
            if path.endswith(".git/info/lfs/objects/batch"):
                objects = json.loads(body)["objects"]
                places = [{**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}} for one in objects]
                return self.send({"transfer": "basic", "objects": places})
            name, _, what = path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")
            if what == "preupload":
                files = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular"} for path in files]
                return self.send({"files": [{**mode, "shouldIgnore": False} for mode in modes]})
            assert what == "commit", path
            self.commit(hub.models[name], [json.loads(line) for line in body.splitlines()])
            return self.send({"success": True, "commitUrl": f"{hub.url}/{name}/commit/x", "commitOid": hub.models[name].sha})

        def commit(self, repository: Repository, lines: list[dict[str, Any]]) -> None:
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    repository.commits.append(value["summary"])
                elif line["key"] == "file":
                    repository.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repository.files[value["path"]] = hub.large[value["oid"]]
                elif line["key"] == "deletedFile":
                    del repository.files[value["path"]]

        def do_PUT(self) -> None:
            data = self.body()
            hub.large[hashlib.sha256(data).hexdigest()] = data
            self.send({})

        def look(self) -> None:
            path = urlsplit(self.path).path
            kind = hub.datasets if "datasets/" in path else hub.models
            path = path.replace("datasets/", "").removeprefix("/api/models").removeprefix("/api")
            found = next(((name, one) for name, one in kind.items() if f"{path}/".startswith(f"/{name}/")), None)
            if found is None:
                return self.send({}, 404, {"X-Error-Code": "RepoNotFound"})
            name, repository = found
            rest = path.removeprefix(f"/{name}").strip("/").split("/", 2)
            if rest[0] == "resolve":
                data = repository.files.get(rest[2])
                if data is None:
                    return self.send({}, 404, {"X-Error-Code": "EntryNotFound"})
                etag = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                return self.send(data, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": repository.sha})
            if rest[0] == "tree":
                files = repository.files.items()
                return self.send([{"type": "file", "path": path, "size": len(data), "oid": "0" * 40} for path, data in files])
            siblings = [{"rfilename": path} for path in [".gitattributes", *repository.files]]
            return self.send({"id": name, "sha": repository.sha, "private": repository.private, "siblings": siblings})

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def send(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for header, text in {"Content-Length": str(len(data)), "Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(header, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    with serving(Handler) as hub.url:
        yield hub
