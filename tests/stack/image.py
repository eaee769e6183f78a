"""What an image brings, stood in for by this machine: commands on the PATH and PostgreSQL's entry point."""

from __future__ import annotations

import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), "")  # Debian keeps it off the PATH


def make_commands(folder: Path) -> None:
    """Commands that the image has on its PATH, made from the environment that the tests run in."""
    folder.mkdir(parents=True, exist_ok=True)
    modules = {"airflow": "-m airflow", "mlflow": "-m mlflow", "celery": "-m celery", "python": ""}
    for name, module in modules.items():
        script(folder / name, f'exec {inside(Path(sys.prefix))}/bin/python {module} "$@"')
    script(folder / "weed", f'exec {inside(Path(sys.prefix))}/bin/weed "$@"')
    script(
        folder / "postgres-entrypoint",
        """data=/var/lib/postgresql/data/main
fresh=; [ -d $data ] || fresh=1
if [ "$fresh" ]; then
    printf '%s' "$POSTGRES_PASSWORD" > /tmp/pw-$$
    initdb -D $data -E UTF8 --locale=C.UTF-8 -U "$POSTGRES_USER" --pwfile=/tmp/pw-$$ -A scram-sha-256 >/dev/null; rm /tmp/pw-$$
    echo 'host all all all scram-sha-256' >> $data/pg_hba.conf
    sed -i '1i local all all trust' $data/pg_hba.conf
    pg_ctl -D $data -o "-k /tmp -c listen_addresses=''" -w start >/dev/null
    createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
    for f in /docker-entrypoint-initdb.d/*.sh; do sh $f; done
    pg_ctl -D $data -m fast -w stop >/dev/null
fi
exec postgres -D $data -k /tmp -c listen_addresses='*'""",
    )


def inside(path: Path) -> Path:
    """Where a service finds a file of this machine."""
    return Path("/opt/talaria") / path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\nset -e\n{body}\n")
    path.chmod(0o755)
