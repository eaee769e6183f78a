"""Watch a data set on the Hugging Face hub: one event for each new revision."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from talaria.common.errors import UserError
from talaria.common.hub import commit_of

SEEN = "revision"
"""Key of the asset's state under which the commit of the last event is kept."""


class HubRevisionTrigger(BaseEventTrigger):
    """Fire `{"repo", "revision", "commit"}` when `revision` of a data set moves to another commit.

    The first look is no event: it says where the data set stands, not that something is new, and switching a schedule on must
    not start a training. The last commit is kept in the asset's state, which outlives the triggerer. It is written after the
    event is handed over: a crash in between repeats an event, and the run that it starts finds that nothing has changed.
    """

    def __init__(self, repo: str, revision: str = "main", poll_seconds: float = 300.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.repo = repo
        self.revision = revision
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        path = f"{type(self).__module__}.{type(self).__qualname__}"
        return path, {"repo": self.repo, "revision": self.revision, "poll_seconds": self.poll_seconds}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        seen = await self.asset_state_store.aget(SEEN) if self.asset_state_store else None
        while True:
            commit = await self._look()
            if commit not in (None, seen):
                if seen is None:
                    self.log.info("%s is at %s; the next commit starts a run.", self.repo, commit)
                else:
                    event = {"repo": self.repo, "revision": self.revision, "commit": commit}
                    yield TriggerEvent(event)  # type: ignore[no-untyped-call]
                if self.asset_state_store:
                    await self.asset_state_store.aset(SEEN, commit)
                seen = commit
            await asyncio.sleep(self.poll_seconds)

    async def _look(self) -> str | None:
        """Return the commit that the revision points to; None, with a warning, when the hub does not say."""
        try:
            return await asyncio.to_thread(commit_of, self.repo, self.revision, "dataset")
        except UserError as error:
            self.log.warning("%s Asking again in %s s.", error, self.poll_seconds)
            return None
