"""What `make demo` tells a newcomer to type next is a command that there is."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer
from talaria.cli import airflow_commands, app, model_commands, run_commands, serve_commands, stage_commands  # noqa: F401
from talaria.devstack.demo import next_steps
from talaria.devstack.installation import Home, Ports


def commands(line: str) -> list[list[str]]:
    """The words of each command that a shell makes of the line."""
    found: list[list[str]] = [[]]
    for word in shlex.split(line, comments=True):
        found.append([]) if word == "&&" else found[-1].append(word)
    return found


def test_every_line_is_a_command_with_its_options(tmp_path: Path) -> None:
    home = Home(tmp_path / "a folder" / ".talaria")
    shell, *lines = next_steps(home, Ports(8080, 5000), "0123456789abcdef")
    sourced = [".", str(home.root / "env")]
    assert commands(shell) == [sourced]
    assert [commands(line)[0] for line in lines if "talaria serve" in line] == [sourced], "it works in a terminal of its own"
    group = typer.main.get_command(app.app)
    for program, name, *words in (command for line in lines for command in commands(line) if command != sourced):
        assert program == "talaria"
        group.commands[name].make_context(name, words)  # type: ignore[attr-defined]
