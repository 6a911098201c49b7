"""What a host leases, no other reuses: until it is dead, or has slept for as long as if it were."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from processes import Child

from lmcache_beluga.pool import Pool, PutResult

_POOL = 16 << 20
#: Milliseconds: so long that a busy machine makes no heartbeat late.
_TIMES = {"lease_ms": 1000, "heartbeat_ms": 20, "dead_after_ms": 2000}
#: Seconds: only a lease that is renewed lasts for so long.
_LONG = 2.5

_READER = f"""
    pool = Pool.attach(arguments[0], host_id=1, **{_TIMES})
    view = pool.get(b"a")
    assert view.array.tobytes() == bytes([1]) * 100_000
    say("holding")
    hear()
    say(view.valid(), view.array[0])
    hear()
    deadline = time.monotonic() + 30
    again = None
    while again is None or not again.valid():
        assert time.monotonic() < deadline
        time.sleep(0.01)
        again = pool.get(b"a")
    say(view.valid(), again.array[0], again.array[-1])
    pool.close()
"""


@pytest.mark.parametrize("visibility", ["coherent", "noncoherent"])
@pytest.mark.parametrize("fate", ["stopped", "killed"])
def test_a_lease_lasts_as_long_as_its_host(
    pool_path: Path, start_child: Callable[..., Child], visibility: str, fate: str
) -> None:
    Pool.format(pool_path, size=_POOL, max_hosts=2, visibility=visibility)
    old, new = (np.full(100_000, value, dtype=np.uint8) for value in (1, 2))
    with Pool.attach(pool_path, **_TIMES) as owner:
        assert owner.put(b"a", old) is PutResult.STORED
        reader = start_child(_READER, pool_path)
        reader.expect("holding")
        until = time.monotonic() + _LONG
        while time.monotonic() < until:
            assert owner.evict(_POOL) == 0, "a chunk that another host leases was evicted"
            time.sleep(0.005)
        reader.say("look")
        reader.expect("True 1")

        if fate == "stopped":
            reader.stop()
        else:
            reader.kill()
        deadline = time.monotonic() + 30
        while owner.evict(_POOL) == 0:
            assert time.monotonic() < deadline, f"a host that was {fate} keeps its lease for ever"
            time.sleep(0.005)
        assert owner.put(b"a", new) is PutResult.STORED
        if fate == "killed":
            return
        reader.resume()
        reader.say("look again")
        reader.expect("False 2 2")
        reader.finish()
