"""`python -m pipeline.local up|demo|down`, which is what the Makefile calls."""

from __future__ import annotations

import sys

from rich.console import Console

from pipeline.errors import UserError
from pipeline.local.home import Home, Ports
from pipeline.local.stack import down, up


def main(arguments: list[str]) -> int:
    console = Console(highlight=False)
    home = Home.default()
    try:
        match arguments:
            case ["up"]:
                say_where(home, up(home, console), console)
            case ["demo"]:
                from pipeline.local.demo import demo

                return demo(home, console)
            case ["down"]:
                down(home, console)
            case _:
                raise UserError("usage: python -m pipeline.local up|demo|down")
    except UserError as error:
        Console(stderr=True, highlight=False).print(f"talaria: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("talaria: interrupted; the services keep running until `make down`.")
        return 130
    return 0


def say_where(home: Home, ports: Ports, console: Console) -> None:
    """Addresses, login and what to do next."""
    console.print(f"Airflow  {ports.airflow_url}   user admin, password {home.password()}", markup=False)
    console.print(f"MLflow   {ports.mlflow_url}")
    console.print(f"In a shell: . {home.root / 'env'}   then: airflow dags trigger sft --conf '{{\"config\": \"tiny\"}}'", markup=False)
    console.print("Stop with: make down")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
