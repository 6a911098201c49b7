"""vLLM and LMCache that would load wrong KV together are noticed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import pytest
from engine_harness import Engine

from lmcache_beluga.engines import inprocess, vllm_version
from lmcache_beluga.engines.vllm_version import moves_half


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    def installed(vllm: str, lmcache: str) -> None:
        found = {"vllm": vllm, "lmcache": lmcache}
        monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
        monkeypatch.setattr(vllm_version, "version", found.__getitem__)

    return installed


@pytest.mark.parametrize(
    ("vllm", "lmcache", "wrong"),
    [
        ("0.25.1", "0.5.6", False),
        ("0.26.0", "0.5.6", True),
        ("0.33.0rc1", "0.5.6+cu130", True),
        ("1.0.0", "0.5.4", True),
        ("dev", "0.5.6", True),
        ("0.26.0", "0.6.0", False),
    ],
)
def test_which_go_together(
    versions: Callable[[str, str], None], vllm: str, lmcache: str, wrong: bool
) -> None:
    versions(vllm, lmcache)
    assert bool(moves_half("cuda", use_mla=False)) == wrong
    assert not moves_half("cuda", use_mla=True)
    assert not moves_half("cpu", use_mla=False)


def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    assert not moves_half("cuda", use_mla=False)


def test_the_backend_does_not_start(
    start: Callable[..., Engine],
    versions: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A miss is better than wrong KV, and the log says what goes together."""
    versions("0.26.0", "0.5.6")
    monkeypatch.setattr(inprocess, "moves_half", lambda *_: moves_half("cuda", False))
    engine = start()
    assert "beluga" not in engine.storage.storage_backends
    assert "Use vLLM 0.25.1" in caplog.text
