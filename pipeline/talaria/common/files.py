"""Files: digests, atomic writes, links, small JSON objects, and what a full disk looks like."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
"""In a folder of the store it is what makes the folder whole."""


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Create a hard link to a file, or a copy if the file system does not allow one (another disk).

    Raises FileNotFoundError if the source is gone.
    """
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def digest(value: Any) -> str:
    """Return the sha256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file atomically: readers see the old or the new text, and the new one survives a power cut.

    An error (a full disk, say) leaves the old text, and nothing beside it.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # other machines and threads may write it too
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # it was never made, or the disk is read-only
            partial.unlink()
        raise


def user_cache(name: str) -> Path:
    """Return the folder of this user's cache for one kind of thing; it need not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "talaria" / name


def read_object(path: Path) -> dict[str, Any]:
    """Read a small JSON file; empty when it is missing, or cut off by a writer that died."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def disk_is_full(error: BaseException) -> bool:
    """Tell whether an error, safetensors' own among them, says that there is no room for what was written.

    No space, no quota left, or a file larger than this process may write.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    own = isinstance(error, OSError) and error.errno in numbers
    return own or any(f"(os error {number})" in str(error) for number in numbers)


_OF_THE_MACHINE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EXDEV, errno.EIO, errno.ESTALE),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}


def machine_refusal(error: OSError | MemoryError) -> str | None:
    """Return a sentence for what the machine refuses: room, permission, memory. None for an error of any other kind."""
    if isinstance(error, MemoryError):
        return f"not enough memory: {error}." if str(error) else "not enough memory."
    if error.errno not in _OF_THE_MACHINE or not error.strerror:
        return None
    place = f"{error.filename2 or error.filename}: " if error.filename else ""
    return f"{place}{error.strerror[0].lower()}{error.strerror[1:]}."
