"""Ports for servers that will listen in a while."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from lmcache_beluga import free_ports as module
from lmcache_beluga.free_ports import free_ports


def test_nobody_gets_a_port_twice() -> None:
    """Whoever was given it may not listen yet."""
    given = [port for _ in range(100) for port in free_ports(3)]
    assert len(set(given)) == 300


def test_no_outgoing_connection_takes_one() -> None:
    low, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if low < 32768:
        pytest.skip(f"this machine gives ports from {low} on to outgoing connections")
    assert max(free_ports(50)) < low


def test_ports_in_use_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = free_ports(2)
    monkeypatch.setattr(module, "_PORTS", (first, second))
    monkeypatch.setattr(module, "_given", set())
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", first))
        listening.listen()
        assert free_ports(1) == [second]
        with pytest.raises(OSError, match="no 1 free ports"):
            free_ports(1)
