"""Options of LMCache's server, with the pool as its L1: what they do there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mp_servers import (
    MIB,
    MODES,
    NBYTES,
    Prompt,
    Servers,
    comes,
    compute,
    engine,
    load,
    look,
    remove,
    request,
    shm_folder,
)
from processes import wait_until

from lmcache_beluga import Pool


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    folder = shm_folder()
    found = Servers(tmp_path, folder / "pool")
    Pool.format(found.pool, size=32 * MIB, extent_size=MIB, chunk_hint=NBYTES)
    yield found
    found.close()
    remove(folder)


def test_transports(servers: Servers) -> None:
    """What came over one is found over the other."""
    grpc = servers.start("--transport", "grpc", "--grpc-server-workers", "4")
    zmq = servers.start("--transport", "zmq")
    assert (grpc.url[:7], zmq.url[:6]) == ("grpc://", "tcp://")
    for server in (grpc, zmq):
        server.wait()
    for storing, loading in ((grpc, zmq), (zmq, grpc)):
        for mode in MODES:
            with engine(storing, mode) as one, engine(loading, mode) as other:
                prompt = Prompt()
                assert compute(one, prompt)
                comes(other, prompt)
                assert load(other, prompt) == prompt.chunks
    for server in (grpc, zmq):
        assert server.l1()["read_locked_count"] == server.l1()["staging_object_count"] == 0


def test_options_that_work(servers: Servers, tmp_path: Path) -> None:
    """All at once: none of them hinders a store or a load."""
    server = servers.start(
        *("--max-gpu-workers", "2", "--max-cpu-workers", "2", "--null-block-id", "0"),
        *("--hash-algorithm", "builtin", "--separate-object-groups", "--isolated-ipc"),
        *("--l1-read-ttl-seconds", "2", "--l1-align-bytes", "8192", "--l1-size-gb", "0.01"),
        *("--kv-event-log-size", "16", "--enable", "transfer_query", "--enable-gc-monitor"),
        *("--trace-level", "storage", "--trace-output", str(tmp_path / "trace")),
        *("--lookup-hash-log-dir", str(tmp_path / "hashes"), "--enable-extra-logging"),
        *("--worker-reap-timeout-seconds", "60", "--session-ttl-seconds", "60"),
        *("--l2-prefetch-policy", "retain", "--l2-prefetch-max-in-flight", "2"),
    ).wait()
    prompts = [Prompt() for _ in MODES]
    for mode, prompt in zip(MODES, prompts, strict=True):
        with engine(server, mode) as one:
            assert compute(one, prompt)
            comes(one, prompt)
            assert load(one, prompt) == prompt.chunks
    with engine(server) as one:
        name = request()
        assert one.lookup(prompts[0].tokens, name) == prompts[0].chunks
        assert server.l1()["read_locked_count"] == prompts[0].chunks
        wait_until(lambda: server.l1()["read_locked_count"] == 0)  # its time to live is over
        one.end(name)
    kv_events = server.http("/status")["kv_events"]
    assert (kv_events["enabled"], kv_events["log_capacity"]) == (True, 16)
    assert server.stop() in (0, -15)
    assert (tmp_path / "trace").stat().st_size > 0
    assert any((tmp_path / "hashes").iterdir())
    assert "Traceback" not in server.log.read_text()


def test_options_that_do_nothing(servers: Servers) -> None:
    """The server says so. LMCache's eviction would end with an exception, or empty the pool."""
    server = servers.start(
        *("--eviction-policy", "IsolatedLRU", "--eviction-trigger-watermark", "0"),
        *("--eviction-ratio", "1", "--l1-use-lazy", "--l1-init-size-gb", "1"),
        *("--l2-store-policy", "skip_l1"),
    ).wait()
    prompt = Prompt()
    with engine(server) as one:
        compute(one, prompt)
        name = request()
        assert one.lookup(prompt.tokens, name) == prompt.chunks  # and locked: above the watermark
        with pytest.raises(AssertionError):
            wait_until(lambda: look(one, prompt) < prompt.chunks, 3)
        one.free(prompt.tokens, name, prompt.chunks)
        one.end(name)
    said = server.log.read_text()
    for option in (
        *("--eviction-policy", "--eviction-trigger-watermark", "--eviction-ratio"),
        *("--l1-use-lazy", "--l1-init-size-gb"),
    ):
        assert said.count(f"{option} does nothing with a shared L1") == 1
    assert "skip_l1 removes chunks from the pool" in said
    assert "Traceback" not in said


def test_options_that_are_no_news(servers: Servers) -> None:
    server = servers.start("--eviction-policy", "noop", "--no-l1-use-lazy").wait()
    assert "does nothing with a shared L1" not in server.log.read_text()


def test_skip_l1(servers: Servers, tmp_path: Path) -> None:
    """The pool is a buffer on the way to the L2 then."""
    adapter = {"type": "fs", "base_path": str(tmp_path / "l2")}
    (tmp_path / "l2").mkdir()
    server = servers.start(
        *("--l2-store-policy", "skip_l1", "--l2-adapter", json.dumps(adapter))
    ).wait()
    prompt = Prompt()
    with engine(server) as one, Pool.attach(servers.pool) as pool:
        compute(one, prompt)
        wait_until(lambda: pool.stats()["chunks"] == 0)
        assert load(one, prompt) == prompt.chunks
