"""LMCache loads although vLLM has no attention metadata. Its own connector: see vllm_serve."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from engine_harness import Engine

from lmcache_beluga.engines.graph_loads import load_before_graphs

NAME = "lmcache.integration.vllm.vllm_v1_adapter"


class Connector:
    """As LMCache 0.5.6's: without metadata it does nothing."""

    def __init__(self, *can_load: bool | None) -> None:
        specs = [None if can is None else SimpleNamespace(can_load=can) for can in can_load]
        metadata = SimpleNamespace(requests=[SimpleNamespace(load_spec=spec) for spec in specs])
        self._parent = SimpleNamespace(_get_connector_metadata=lambda: metadata)
        self.loaded: list[Any] = []

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if forward_context.attn_metadata is None:
            return
        self.loaded.append(forward_context)


@pytest.fixture
def connector(monkeypatch: pytest.MonkeyPatch) -> type[Connector]:
    class Fresh(Connector):
        start_load_kv = Connector.start_load_kv

    module = ModuleType(NAME)
    vars(module)["LMCacheConnectorV1Impl"] = Fresh
    monkeypatch.setitem(sys.modules, NAME, module)
    return Fresh


def test_without_metadata_what_can_be_loaded_is(connector: type[Connector]) -> None:
    context = SimpleNamespace(attn_metadata=None, slot_mapping="slots")
    before = connector(True)
    before.start_load_kv(context)
    assert not before.loaded

    assert load_before_graphs() == ""
    after = connector(None, False, True)
    after.start_load_kv(context)
    assert [one.slot_mapping for one in after.loaded] == ["slots"]


def test_a_trial_run_of_vllms_stays_one(connector: type[Connector]) -> None:
    load_before_graphs()
    for nothing in (connector(), connector(None), connector(False)):
        nothing.start_load_kv(SimpleNamespace(attn_metadata=None))
        assert not nothing.loaded


def test_metadata_that_is_there_is_left_alone(connector: type[Connector]) -> None:
    load_before_graphs()
    one, context = connector(True), SimpleNamespace(attn_metadata={"layer": 1})
    one.start_load_kv(context)
    assert one.loaded == [context]


def test_it_is_done_once(connector: type[Connector]) -> None:
    load_before_graphs()
    wrapped = connector.start_load_kv
    assert load_before_graphs() == ""
    assert connector.start_load_kv is wrapped


def test_without_vllm_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    assert load_before_graphs() == ""


@pytest.mark.parametrize("method", [None, lambda self, scheduler_output: None])
def test_the_backend_does_not_start_with_a_connector_that_it_does_not_know(
    connector: type[Connector],
    method: Any,
    start: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A miss is better than KV that was never loaded."""
    monkeypatch.setattr(connector, "start_load_kv", method)
    engine = start()
    assert "beluga" not in engine.storage.storage_backends
    assert "Use LMCache 0.5.6" in caplog.text
