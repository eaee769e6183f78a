"""`make compose-env`: write the `.env` that docker-compose.yaml reads, with fresh secrets. An existing file is never touched."""

from __future__ import annotations

import os
import secrets
import shutil
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

from talaria.common.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]
PASSWORDS = ("POSTGRES", "REDIS", "MLFLOW", "MLFLOW_DB", "ADMIN", "OPERATOR", "VIEWER")
KEYS = ("AIRFLOW_SECRET_KEY", "MLFLOW_SECRET_KEY")


def fresh_secrets() -> dict[str, str]:
    """Return a value for every secret of docker-compose.yaml, in hexadecimal, which needs no quoting in a URL, SQL or a shell."""
    values = {f"{name}_PASSWORD": secrets.token_hex(24) for name in PASSWORDS}
    values |= {name: secrets.token_hex(32) for name in KEYS}
    values["AIRFLOW_JWT_SECRET"] = secrets.token_hex(64)  # HS512 wants a key as long as its digest
    values["AIRFLOW_FERNET_KEY"] = urlsafe_b64encode(os.urandom(32)).decode()
    return values


def storage_login() -> dict[str, str]:
    """Return the login of the object storage in the profile `s3`; replace it to use another storage."""
    return {"AWS_ACCESS_KEY_ID": "talaria", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(24)}


def serving_key() -> dict[str, str]:
    """Return the key of the profile `serve`, which clients of the served model send."""
    return {"TALARIA_SERVE_API_KEY": secrets.token_hex(24)}


def placement(has_gpu: bool) -> dict[str, str]:
    """Return the settings that place training: on a worker with the GPUs, or on the CPU worker if there is no GPU."""
    if has_gpu:
        return {"COMPOSE_PROFILES": "gpu", "WORKER_QUEUES": "default", "TALARIA_CONFIG": "qwen3-4b-base"}
    return {"WORKER_QUEUES": "default,gpu", "TALARIA_CONFIG": "tiny"}


def write(path: Path, has_gpu: bool) -> None:
    """Write the file, readable by the owner only from its first byte on. Raises UserError if it exists."""
    values = placement(has_gpu) | fresh_secrets() | storage_login() | serving_key()
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UserError(
            f"{path} exists and is kept; move it away to make new secrets (docs/deploy.md says how to rotate)."
        ) from None
    with os.fdopen(file, "w", encoding="utf-8") as out:
        out.write("# Read by docker compose. Secrets: keep this file private and out of version control.\n")
        out.writelines(f"{name}={value}\n" for name, value in values.items())
        out.write("# HF_TOKEN=\n# TALARIA_BIND=127.0.0.1\n# GPU_SLOTS=1\n")


def main() -> int:
    path = REPOSITORY / ".env"
    try:
        write(path, has_gpu=shutil.which("nvidia-smi") is not None)
    except UserError as error:
        sys.stderr.write(f"talaria: {error}\n")
        return 2
    sys.stdout.write(f"{path} written. Log in to Airflow as admin, operator or viewer with the passwords in it.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
