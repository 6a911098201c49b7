"""TCP ports for servers that are started here, as a demo, benchmark or test."""

from __future__ import annotations

import contextlib
import random
import socket

#: Below those that Linux gives to outgoing connections. A server that has just been started takes
#: seconds before it listens, and anybody might be connected from its port by then.
_PORTS = range(10_000, 32_000)

_given: set[int] = set()


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on now.

    Each another one, and none that this process was given before.
    """
    found: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            break
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
    if len(found) < count:
        raise OSError(f"no {count} free ports on 127.0.0.1 from {_PORTS[0]} to {_PORTS[-1]}")
    _given.update(found)
    return found
