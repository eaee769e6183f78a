"""The command that puts Talaria's DAGs into an Airflow of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from talaria.cli.app import app, say
from talaria.common.errors import UserError
from talaria.common.files import write_atomically

airflow = typer.Typer(no_args_is_help=True, help="Talaria in an Airflow of your own.")
app.add_typer(airflow, name="airflow")

FILES = {
    "sft": '''"""The DAG `sft`, for any configuration, and one DAG `sft_NAME` for each configuration that has a schedule."""

from talaria_airflow import sft_dags

sft_dags()
''',
    "sweep": '''"""The DAG `sweep`: train with several settings, and give the best to the gate."""

from talaria_airflow import sweep_dag

sweep_dag()
''',
    "rollback": '''"""The DAG `rollback`: give the champion alias back to the previous champion."""

from talaria_airflow import rollback_dag

rollback_dag()
''',
    "watch_champion": '''"""The DAG `watch-champion`: test the served champion, and roll it back where it has fallen."""

from talaria_airflow import watch_champion_dag

watch_champion_dag()
''',
    "broken_configurations": '''\
"""No DAG, but the place where Airflow shows, as import error, which configurations do not validate and why.

It is a file of its own, so that one broken configuration does not stop the schedules of the others.
"""

from talaria_airflow.dag.scheduling import refuse_broken_configs

refuse_broken_configs()
''',
}
"""The DAG files, as they are in dags/ of the repository. Airflow skips a file in which `dag` and `airflow` do not both occur."""


@airflow.command()
def dags(
    install: Annotated[Path | None, typer.Option("--install", metavar="FOLDER", help="Airflow's DAG folder.")] = None,
) -> None:
    """Print the DAG files, or write them into Airflow's DAG folder."""
    if install is None:
        print("\n\n".join(f"# {_name(dag)}\n{text}" for dag, text in FILES.items()), end="")
        return
    if not install.is_dir():
        raise UserError(f"{install}: there is no such folder; `airflow config get-value core dags_folder` prints it.")
    paths = {install / _name(dag): text for dag, text in FILES.items()}
    for path, text in paths.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise UserError(f"{path}: is another file already; move it away first.")
    for path, text in paths.items():
        write_atomically(path, text)
        say(f"{path} written.")


def _name(dag: str) -> str:
    return f"talaria_{dag}.py"
