"""Ports of the loopback interface."""

from __future__ import annotations

import contextlib
import socket
import urllib.request
from collections.abc import Iterator

HOST = "127.0.0.1"


def ports_from(first: int) -> Iterator[int]:
    """Free ports from ``first`` on; 0: any."""
    number = first
    while True:
        with socket.socket() as probe:
            try:
                probe.bind((HOST, number))
            except OSError:
                number += 1
                continue
            taken: int = probe.getsockname()[1]
        yield taken
        number += 1 if first else 0


def answers(port: int, path: str = "/health") -> bool:
    """Whether a server says 200 there; OSError when nobody listens."""
    return get(port, path)[0] == 200


def get(port: int, path: str) -> tuple[int, str]:
    """Status and body of one GET; OSError when nobody listens, or the status is an error."""
    with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=10) as response:
        return response.status, response.read().decode()


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False
