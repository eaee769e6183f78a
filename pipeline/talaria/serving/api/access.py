"""Who may ask, and from where."""

from __future__ import annotations

import hmac
import ipaddress
import os

from starlette.requests import Request

from talaria.common.errors import UserError
from talaria.serving.api.request import Refusal
from talaria.serving.client import KEY

JSON = "application/json"


def key_for(host: str) -> str | None:
    """The key that clients need; None on loopback without one. Raises UserError where others could ask without a key."""
    key = os.environ.get(KEY) or None
    if key is None and not is_loopback(host):
        raise UserError(f"--host {host}: others than this machine could use the model; set {KEY}, which clients then send.")
    if key is not None and (not key.isascii() or key.strip() != key):
        raise UserError(f"{KEY}: should be ASCII text without spaces around it.")
    return key


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_key(request: Request, key: str | None) -> None:
    """Raises Refusal where the key is wrong. Takes the same time for any wrong key."""
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if key is not None and not (scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), key.encode())):
        raise Refusal("The API key is missing or wrong.", status=401, code="invalid_api_key", kind="authentication_error")


async def body_of(request: Request, most: int) -> bytes:
    """The body, of at most so many bytes.

    Raises Refusal. A browser sends JSON to another site's address only after asking, and is never told yes here.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise Refusal(f"Content-Type should be {JSON}.", status=415)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise Refusal(f"The body is larger than {most:,} bytes.", status=413, code="request_too_large")
    return body
