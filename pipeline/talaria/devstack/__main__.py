"""`python -m talaria.devstack up|demo|down`, which is what the Makefile calls."""

from __future__ import annotations

import sys

import httpx
from rich.console import Console

from talaria.common.errors import UserError
from talaria.devstack.installation import Home
from talaria.devstack.services import down, say_where, up


def main(arguments: list[str]) -> int:
    console = Console(highlight=False)
    home = Home.default()
    try:
        match arguments:
            case ["up"]:
                say_where(home, up(home, console), console)
            case ["demo"]:
                from talaria.devstack.demo import demo

                return demo(home, console)
            case ["down"]:
                down(home, console)
            case _:
                raise UserError("usage: python -m talaria.devstack up|demo|down")
    except UserError as error:
        Console(stderr=True, highlight=False).print(f"talaria: {error}", markup=False)
        return 2
    except httpx.HTTPError as error:
        said = f"Airflow does not answer ({type(error).__name__}); see {home.logs}, and try again: finished stages are reused."
        Console(stderr=True, highlight=False).print(f"talaria: {said}", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        Console(stderr=True).print("talaria: interrupted; the services keep running until `make down`.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
