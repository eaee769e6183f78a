"""Remove secrets from text, for logs, tags and errors."""

from __future__ import annotations

import os
import re

_LOGIN = re.compile(r"(\b[\w+.-]+://)[^/\s@'\"]+@")


_TOKEN = re.compile(r"\b(hf_|ghp_|github_pat_|sk-|glpat-|AKIA)[A-Za-z0-9_-]{12,}")


_SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|((API|PRIVATE|ACCESS|FERNET)_?KEY))($|_)", re.IGNORECASE
)


def scrub(text: str) -> str:
    """Return text without logins in addresses, well-known kinds of tokens, and values of secret-looking variables."""
    for name, value in os.environ.items():
        if len(value) >= 6 and _SECRET_NAME.search(name):
            text = text.replace(value, "***")
    return _TOKEN.sub(r"\1***", _LOGIN.sub(r"\1***@", text))
