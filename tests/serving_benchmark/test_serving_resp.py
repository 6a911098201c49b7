"""The benchmark's ``resp``: LMCache's own client, and answers that come early."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.storage_backend.connector import ConnectorContext, ConnectorManager
from lmcache.v1.storage_backend.connector.redis_adapter import RESPConnectorAdapter
from lmcache.v1.storage_backend.native_clients.connector_client_base import ConnectorClientBase
from lmcache_resp import PatientAdapter, _Patient

EXTRA = {
    "remote_storage_plugin.resp.module_path": "lmcache_resp",
    "remote_storage_plugin.resp.class_name": "PatientAdapter",
    "resp.url": "resp://127.0.0.1:6379",
}


class Hasty:
    """A native client whose answer is there before the question has been sent."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)
        self._answers: list[tuple[int, bool, str, list[bool]]] = []
        self.drained = threading.Event()

    def event_fd(self) -> int:
        return self._fd

    def submit_batch_exists(self, keys: list[str]) -> int:
        self._answers.append((7, True, "", [True] * len(keys)))
        os.eventfd_write(self._fd, 1)
        self.drained.wait(30)
        return 7

    def drain_completions(self) -> list[tuple[int, bool, str, list[bool]]]:
        answers, self._answers = self._answers, []
        if answers:
            os.eventfd_read(self._fd)
            self.drained.set()
        return answers

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


def asked(loop: asyncio.AbstractEventLoop, patient: bool) -> list[bool] | None:
    """What a thread that looks something up is told; None: nothing, within a second."""

    async def client() -> ConnectorClientBase[Any]:
        made: ConnectorClientBase[Any] = ConnectorClientBase(Hasty(), loop)
        if patient:
            made._client = _Patient(made._client, made._pending)
        return made

    made = asyncio.run_coroutine_threadsafe(client(), loop).result()
    told: list[list[bool]] = []

    def look_up() -> None:
        with contextlib.suppress(RuntimeError):  # closed
            told.append(made.batch_exists_sync(["a", "b"]))

    thread = threading.Thread(target=look_up)
    thread.start()
    thread.join(1.0)
    answer = told[0] if told else None

    async def close() -> None:
        made.close()

    asyncio.run_coroutine_threadsafe(close(), loop).result()
    thread.join()
    return answer


def test_early_answers_are_not_lost(loop: asyncio.AbstractEventLoop) -> None:
    assert asked(loop, patient=True) == [True, True]


def test_lmcaches_own_client_loses_them(loop: asyncio.AbstractEventLoop) -> None:
    """When this fails, LMCache has mended it, and PatientAdapter can go."""
    assert asked(loop, patient=False) is None


def test_an_answer_nobody_asked_for_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmcache_resp._PATIENCE_S", 0.05)
    native = Hasty()
    native.drained.set()
    native.submit_batch_exists(["a"])
    begin = time.monotonic()
    assert len(_Patient(native, {}).drain_completions()) == 1
    assert time.monotonic() - begin < 5
    native.close()


def test_lmcache_takes_it_as_a_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ConnectorContext] = []

    class Connector:
        def __init__(self) -> None:
            self.client = type("Client", (), {"_client": object(), "_pending": {}})()

    def create(self: Any, context: ConnectorContext) -> Connector:
        seen.append(context)
        return Connector()

    monkeypatch.setattr(RESPConnectorAdapter, "create_connector", create)
    config = LMCacheEngineConfig.from_dict(
        {"remote_storage_plugins": ["resp"], "extra_config": EXTRA}
    )
    loop = asyncio.new_event_loop()
    manager = ConnectorManager("plugin://resp", loop, None, config, None, plugin_name="resp")
    adapter = next(one for one in manager.adapters if one.can_parse("plugin://resp"))
    assert isinstance(adapter, PatientAdapter)
    connector = adapter.create_connector(manager.context)
    loop.close()
    assert seen[0].url == "resp://127.0.0.1:6379"
    assert manager.context.url == "plugin://resp"
    assert isinstance(connector.client._client, _Patient)
