"""Two real vLLM instances, LMCache in process, one pool: what one computes, the other loads."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

from damage import payload_of
from instances import CHUNK, Pair, check, prompt, stats
from processes import wait_until
from vllm_server import REQUESTS, VLLM, Answer

from lmcache_beluga import Pool


def at_once(instance: VLLM, prompts: Iterable[Sequence[int]]) -> list[Answer]:
    with ThreadPoolExecutor(REQUESTS) as senders:
        return list(senders.map(instance.complete, prompts))


def records(pool: Path) -> set[bytes]:
    with Pool.open(pool) as found:
        return {entry.record for entry in found.keys()}  # noqa: SIM118 - a pool is no mapping


def test_hit_in_the_other_instance(pair: Pair) -> None:
    """The tokens are those of a vLLM without LMCache; pool and vLLM have counted where the KV came
    from."""
    assert pair.first.told("LMCache INFO", "attached to pool")
    assert pair.first.metric("lmcache_beluga:attached") == 1
    tokens = prompt(1)
    wanted = pair.alone.complete(tokens)
    before = stats(pair.pool)
    stored = pair.first.complete(tokens)
    assert (stored.tokens, stored.cached) == (wanted.tokens, 0)
    between = stats(pair.pool)
    assert between["puts"] - before["puts"] == 4
    assert between["gets"] == before["gets"]

    hits = pair.second.metric("vllm:external_prefix_cache_hits_total")
    loaded = pair.second.complete(tokens)
    after = stats(pair.pool)
    assert (loaded.tokens, loaded.cached) == (wanted.tokens, 4 * CHUNK)
    assert after["gets"] - between["gets"] == 4
    assert after["puts"] == between["puts"]
    assert pair.second.metric("vllm:external_prefix_cache_hits_total") - hits == 4 * CHUNK


def test_other_bytes_in_the_pool_give_other_tokens(pair: Pair) -> None:
    """So the tokens that are compared here do depend on what was loaded."""
    tokens = prompt(2)
    others = records(pair.pool)
    wanted = pair.first.complete(tokens)
    chunks = records(pair.pool) - others
    assert len(chunks) == 4
    places = [payload_of(pair.pool, record) for record in chunks]
    with pair.pool.open("r+b") as file, mmap.mmap(file.fileno(), 0) as pool:
        for place in places:
            pool[place.start : place.stop] = pool[place.start : place.stop][::-1]
    loaded = pair.second.complete(tokens)
    assert loaded.cached == 4 * CHUNK
    assert loaded.tokens != wanted.tokens


def test_prefix_of_a_long_prompt(pair: Pair) -> None:
    """Of prompts of several steps each: the common part is loaded, the rest is computed in steps
    and stored."""
    long = prompt(3, chunks=15)
    other = long[: 7 * CHUNK + 100] + prompt(4, chunks=7)
    before = stats(pair.pool)
    assert pair.first.complete(long).tokens == pair.alone.complete(long).tokens
    between = stats(pair.pool)
    assert between["puts"] - before["puts"] == 15
    loaded = pair.second.complete(other)
    assert (loaded.tokens, loaded.cached) == (pair.alone.complete(other).tokens, 7 * CHUNK)
    assert stats(pair.pool)["puts"] - between["puts"] == len(other) // CHUNK - 7

    whole = pair.second.complete(long)  # of which vLLM itself has the beginning
    assert (whole.tokens, whole.cached) == (pair.alone.complete(long).tokens, 15 * CHUNK)
    back = pair.first.complete(other)
    assert (back.tokens, back.cached) == (loaded.tokens, len(other) // CHUNK * CHUNK)


def test_many_requests_at_once(pair: Pair) -> None:
    prompts = [prompt(100 + number, chunks=3) for number in range(REQUESTS)]
    wanted = [pair.alone.complete(tokens).tokens for tokens in prompts]
    before = stats(pair.pool)
    assert [answer.tokens for answer in at_once(pair.first, prompts)] == wanted
    loaded = at_once(pair.second, prompts)
    assert [answer.tokens for answer in loaded] == wanted
    assert [answer.cached for answer in loaded] == [3 * CHUNK] * REQUESTS
    after = stats(pair.pool)
    assert after["puts"] - before["puts"] == after["gets"] - before["gets"] == 3 * REQUESTS
    assert check(pair.pool).ok


def test_one_is_killed_while_it_stores(pair: Pair) -> None:
    """The other goes on, and of the store nothing stays."""
    kept, lost = prompt(5), prompt(6)
    wanted = pair.alone.complete(kept)
    pair.second.complete(kept)
    pair.second.pause.touch()
    with ThreadPoolExecutor(1) as sender:
        request = sender.submit(pair.second.complete, lost)
        wait_until(lambda: check(pair.pool).writing > 0)
        pair.second.kill()
        assert isinstance(request.exception(timeout=30), OSError | HTTPException)

    loaded = pair.first.complete(kept)
    assert (loaded.tokens, loaded.cached) == (wanted.tokens, 4 * CHUNK)
    computed = pair.first.complete(lost)
    assert (computed.tokens, computed.cached) == (pair.alone.complete(lost).tokens, 0)
    wait_until(lambda: check(pair.pool).writing == 0)
    report = check(pair.pool)
    assert report.ok, report.errors


def test_both_are_started_anew(pair_as_it_is: Pair) -> None:
    """And find what was stored before, by whichever instance."""
    pair = pair_as_it_is
    tokens = prompt(7)
    wanted = pair.alone.complete(tokens)
    pair.first.complete(tokens)
    pair.first.stop()
    pair.second.stop()
    pair.restore()
    for instance in (pair.first, pair.second):
        loaded = instance.complete(tokens)
        assert (loaded.tokens, loaded.cached) == (wanted.tokens, 4 * CHUNK)


def test_pool_formatted_under_the_instances(pair: Pair) -> None:
    """Misses from then on, right answers, and a log that says what to do."""
    tokens = prompt(8)
    wanted = pair.alone.complete(tokens)
    assert pair.first.complete(tokens).tokens == wanted.tokens
    Pool.format(pair.pool, size=pair.pool.stat().st_size, force=True)
    for _ in range(2):
        answer = pair.second.complete(tokens)
        assert (answer.tokens, answer.cached) == (wanted.tokens, 0)
        pair.second.forget()
    (said,) = pair.second.told("LMCache ERROR", "PoolClosedError")
    assert "formatted anew" in said and "Restart this engine" in said
    assert pair.second.metric("lmcache_beluga:attached") == 0
    pair.first.stop()
    pair.second.stop()
