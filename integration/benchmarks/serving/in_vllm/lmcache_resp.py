"""LMCache's ``resp://``, without the answers that it loses. Imported in vLLM's processes.

LMCache 0.5.6 notes whom an answer of Redis is for after it has sent the question. An answer that
comes before that is dropped, and who waits for it waits for ever: with the thread of lookups, every
later lookup of the engine is a miss. That takes some requests at the same time. A tier is to be
compared as it is meant to work.
"""

from __future__ import annotations

import copy
import time
from typing import Any

from lmcache.v1.storage_backend.connector import ConnectorContext
from lmcache.v1.storage_backend.connector.redis_adapter import RESPConnectorAdapter

#: Noting takes microseconds of a thread that has been given no CPU for a while, at worst.
_PATIENCE_S = 5.0


class PatientAdapter(RESPConnectorAdapter):  # type: ignore[misc]
    """A remote storage plugin named ``resp``, at extra_config's ``resp.url``."""

    def can_parse(self, url: str) -> bool:
        return url == "plugin://resp"

    def create_connector(self, context: ConnectorContext) -> Any:
        there = copy.copy(context)
        there.url = context.config.extra_config["resp.url"]
        connector = super().create_connector(there)
        client = connector.client
        client._client = _Patient(client._client, client._pending)
        return connector


class _Patient:
    """LMCache's native client, whose answers come when the questions have been noted.

    Args:
        native: that client.
        pending: questions that have been noted, by number.
    """

    def __init__(self, native: Any, pending: dict[int, Any]) -> None:
        self._native, self._pending = native, pending

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def drain_completions(self) -> Any:
        answers = self._native.drain_completions()
        deadline = time.monotonic() + _PATIENCE_S
        for number, *_ in answers:
            while int(number) not in self._pending and time.monotonic() < deadline:
                time.sleep(0)  # whoever asked runs in another thread
        return answers
