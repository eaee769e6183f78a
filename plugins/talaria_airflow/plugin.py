"""What Airflow loads of Talaria: the page "Training", in the menu, on a DAG run and on a task; formats; notes on runs.

Every Airflow process imports this file, forking workers too, so it imports little: the page's server is built when the
api-server asks for it, and the formats of parameters need the settings' names only.
"""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from talaria_airflow.listeners import run_notes
from talaria_airflow.parameters import formats

PAGE = "talaria/"  # relative, so that it holds under any [api] base_url
_OF_RUN = f"{PAGE}?dag_id={{DAG_ID}}&run_id={{RUN_ID}}"


def _view(destination: str, url_route: str, href: str) -> dict[str, Any]:
    icons = {"icon": f"{PAGE}static/icon.svg", "icon_dark_mode": f"{PAGE}static/icon-dark.svg"}
    return {"name": "Training", "destination": destination, "url_route": url_route, "href": href, "nav_top_level": True, **icons}


class TalariaPlugin(AirflowPlugin):
    name = "talaria"
    listeners = [run_notes]  # noqa: RUF012 (Airflow's own declaration)
    external_views = [  # noqa: RUF012 (Airflow's own declaration)
        _view("nav", "training", PAGE),
        _view("dag_run", "training-of-run", _OF_RUN),
        _view("task_instance", "training-of-task", _OF_RUN),
    ]

    @classmethod
    def on_load(cls, *args: Any, **kwargs: Any) -> None:
        formats.register()

    @property
    def fastapi_apps(self) -> list[dict[str, Any]]:  # type: ignore[override]
        from talaria_airflow.monitor.app import monitor_app

        return [{"name": "Talaria training monitor", "url_prefix": "/talaria", "app": monitor_app()}]
