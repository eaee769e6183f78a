"""The command line and its terminal views; every command calls a function of the layers below and adds no logic of its own."""


def main() -> None:
    """Run the command line: the entry point `talaria`."""
    from talaria.cli.startup import speed_up_start

    speed_up_start()
    from talaria.cli import (  # noqa: F401
        airflow_commands,
        app,
        compare_commands,
        model_commands,
        run_commands,
        serve_commands,
        stage_commands,
    )

    app.main()
