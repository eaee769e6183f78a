"""Tell people what happened to a run: a chat channel's webhook, e-mail, and the log in any case."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from html import escape
from typing import Any

import httpx
from airflow.sdk import BaseNotifier, Connection, Context
from airflow.sdk.exceptions import AirflowException
from airflow.sdk.log import mask_secret
from talaria.config.operation_settings import Alerts

# The one logs the address of every request, the other that of a redirect: the webhook's is a secret.
for _name in ("httpx", "httpcore"):
    logging.getLogger(_name).setLevel(logging.WARNING)

WEBHOOK = "TALARIA_WEBHOOK"
"""Environment variable with the address that gets `{"text": ...}` (what Slack, Mattermost, Discord's /slack and Teams'
workflows take), for configurations that name no connection of their own."""


class Alert(BaseNotifier):
    """Tell one sentence to every channel of a configuration.

    A channel that does not take it must not change how a task ends: that is logged, nothing more.

    :param text: a template that sees the task's context, and `exception` where there is one.
    :param channels: the section `alerts` of a configuration, as a dict.
    """

    def __init__(self, text: str, channels: Mapping[str, Any] | None = None, context: Context | None = None) -> None:
        super().__init__(context)
        self.text = text
        self.channels = dict(channels or {})

    def notify(self, context: Context) -> None:
        # rendered here, not as a template field, which would keep the first run's text for the next message
        self.tell(self.render_template(self.text, context, self.get_template_env(dag=context.get("dag"))))

    async def async_notify(self, context: Context) -> None:
        """Do the same in the triggerer, whose loop must not wait."""
        await asyncio.to_thread(self.notify, context)

    def tell(self, text: str) -> None:
        """Send `text` as it is."""
        self.log.info("%s", text)
        channels = Alerts.model_validate(self.channels)
        try:
            if address := self._address(channels.webhook):
                httpx.post(address, json={"text": text}, timeout=10).raise_for_status()
        except (httpx.HTTPError, httpx.InvalidURL, AirflowException) as error:
            self.log.warning("The webhook did not take the message: %s.", _without_address(error))
        if channels.email:
            self._mail(channels.email, channels.smtp, text)

    def _address(self, connection: str | None) -> str | None:
        """Return the webhook's address. Whoever knows it can post there, so it is a secret: never in a log."""
        address = Connection.get(connection).password if connection else os.environ.get(WEBHOOK)
        if address:
            mask_secret(address)
        elif connection:
            self.log.warning("The connection %s has no password; the webhook's address belongs there.", connection)
        return address or None

    def _mail(self, recipients: str, connection: str, text: str) -> None:
        from airflow.providers.smtp.hooks.smtp import SmtpHook

        subject = " ".join(f"Talaria: {text}".split())[:120]
        try:
            with SmtpHook(smtp_conn_id=connection) as hook:
                hook.send_email_smtp(to=recipients, subject=subject, html_content=f"<p>{escape(text)}</p>")
        except Exception as error:  # whatever a mail server does, or a connection that does not exist
            self.log.warning("The message was not sent by e-mail: %s: %s", type(error).__name__, error)


class LateAlert(Alert):
    """Tell that a run has missed its deadline, and whether it works, waits for its turn, or waits for a person.

    Made for DeadlineAlert, which calls it in the triggerer.
    """

    def __init__(self, hours: float, channels: Mapping[str, Any] | None = None, context: Context | None = None) -> None:
        super().__init__("", channels, context)
        self.hours = hours

    def notify(self, context: Context) -> None:
        run: Any = context["dag_run"]
        dag_id, run_id = (_get(run, "dag_id"), _get(run, "dag_run_id") or _get(run, "run_id"))
        self.tell(f"{dag_id} {run_id} is not done {self.hours:g} h after it was queued: {describe(task_states(dag_id, run_id))}.")


def describe(states: Mapping[str, str]) -> str:
    """Say in a few words what a run of these task states is doing."""
    by_state: dict[str, list[str]] = {}
    for task, state in states.items():
        by_state.setdefault(str(state), []).append(task)
    for state, words in (
        ("awaiting_input", "it waits for a person's answer to"),
        ("running", "it is late, and works on"),
        ("up_for_retry", "it is late, and will try again"),
        ("queued", "it is late, and waits for a worker or a slot of its pool for"),
        ("scheduled", "it is late, and waits for a worker or a slot of its pool for"),
    ):
        if tasks := by_state.get(state):
            return f"{words} {', '.join(sorted(tasks))}"
    return "it is late, and none of its tasks runs"


def task_states(dag_id: str, run_id: str) -> dict[str, str]:
    """Return task -> state of a run. For use within a task or the triggerer, off its loop."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states: dict[str, str] = RuntimeTaskInstance.get_task_states(dag_id=dag_id, run_ids=[run_id]).get(run_id, {})
    return states


def _get(run: Any, name: str) -> Any:
    """An attribute of a run, which the triggerer hands over as a dict and a task as an object."""
    return run.get(name) if isinstance(run, Mapping) else getattr(run, name, None)


def _without_address(error: Exception) -> str:
    """Say what went wrong; httpx's own text quotes the address."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"it answered {error.response.status_code} {error.response.reason_phrase}".rstrip()
    return str(error).rstrip(".") if isinstance(error, AirflowException) else type(error).__name__
