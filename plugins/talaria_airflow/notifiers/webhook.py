"""Tell a chat channel, or anything that takes a JSON POST, what happened to a run."""

from __future__ import annotations

import asyncio
import os

import httpx
from airflow.sdk import BaseNotifier, Context

WEBHOOK = "TALARIA_WEBHOOK"
"""Environment variable with the address that gets `{"text": ...}` (what Slack, Mattermost, Discord's /slack and Teams'
workflows take). Unset: the sentence goes to the log only."""


class Webhook(BaseNotifier):
    """Posts one sentence. `text` is a template that sees the task's context, and `exception` where there is one."""

    def __init__(self, text: str, context: Context | None = None) -> None:
        super().__init__(context)
        self.text = text

    def notify(self, context: Context) -> None:
        """A channel that does not answer must not change how a task ends: that is logged, nothing more."""
        text = self.render_template(self.text, context, self.get_template_env(dag=context.get("dag")))
        self.log.info("%s", text)
        if address := os.environ.get(WEBHOOK):
            try:
                httpx.post(address, json={"text": text}, timeout=10).raise_for_status()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                self.log.warning("The notification was not taken: %s", error)

    async def async_notify(self, context: Context) -> None:
        """What a deadline alert calls, in the triggerer."""
        await asyncio.to_thread(self.notify, context)
