"""``beluga bench server``: LMCache's server on the pool against the same server with its own L1.

Two servers share a pool; what one stored, the other loads. Next to them runs a stock server, which
loads what it stored itself. Engines have tensors but no model; requests alternate.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from lmcache_beluga.cli.bench_report import (
    Bar,
    BenchError,
    Progress,
    Section,
    interleaved,
    median_interval,
    percentile,
)
from lmcache_beluga.cli.bench_scratch import require
from lmcache_beluga.demo.mp_engine import BLOCK, Mode, MPEngine
from lmcache_beluga.demo.mp_server import MPServer, ServerError
from lmcache_beluga.demo.paged_kv import KVShape
from lmcache_beluga.pool import Pool
from lmcache_beluga.signals import held_back

_MIB = 1 << 20
_CHUNK = 256
_LLAMA_8B = KVShape(layers=32, heads=8, head_dim=128, dtype=torch.bfloat16)
_SMALL = KVShape(layers=8, heads=8, head_dim=64, dtype=torch.bfloat16)
_TINY = KVShape(layers=1, heads=1, head_dim=16, dtype=torch.bfloat16)
_CONCURRENT = 64
_START_S = 120.0
_SETTLE_S = 30.0
# LMCache gives the memory that engines map a name that begins so.
_SEGMENT = "lmcache_l1_pool_"

POOL = "second server on the pool"
OWN = "own private L1"

_requests = itertools.count(1)


def run(folder: Path, quick: bool, progress: Progress) -> Section:
    """Retrieves by the server, by engines that map its L1, and lookups of 64 requests at once.

    Args:
        folder: where the pool goes; needs 5 GiB of memory (quick: 1 GiB).
    """
    require(folder, (1 if quick else 5) * 1024 * _MIB)
    shape, chunks = (_SMALL, 16) if quick else (_LLAMA_8B, 32)
    prompt = chunks * _CHUNK * shape.bytes_per_token
    section = Section(
        f"LMCache server, {chunks} chunks of {prompt // chunks // _MIB} MiB: stored by another "
        "server on the pool, against its own private L1"
    )
    with contextlib.ExitStack() as stack:
        progress("three servers start")
        stock, storing, loading = _servers(stack, folder, 2.5 * prompt / (1 << 30))
        modes: dict[str, Mode] = {"the server copies": "lmcache_driven"}
        if _mapped(folder):
            modes["engines map the L1"] = "engine_driven"
        for title, mode in modes.items():
            progress(f"retrieve, {title}")
            _retrieve(section, title, mode, shape, chunks, (stock, storing, loading), quick)
        progress(f"{_CONCURRENT} lookups at once")
        _lookup(section, (stock, storing, loading), quick)
        status = loading.l1()["pool"]
        copied = status["bytes_read_by_copy"]
        section.add_value("copied before the transfer", copied, "bytes", Bar(True, 0))
        section.add_value("read from the pool itself", status["bytes_read_in_place"], "bytes")
    return section


def _mapped(folder: Path) -> bool:
    """Whether engines can map the L1s: not where the server leaves copying to a GPU."""
    return folder.parent == Path("/dev/shm") and not torch.cuda.is_available()


def _device() -> str:
    """Where servers expect the KV of engines."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _servers(
    stack: contextlib.ExitStack, folder: Path, gib: float
) -> tuple[MPServer, MPServer, MPServer]:
    """A stock server, and two on one pool."""
    pool = folder.parent / f"{_SEGMENT}{folder.name}"
    stack.callback(pool.unlink, missing_ok=True)
    size = int(gib * (1 << 30)) + 256 * _MIB
    Pool.format(pool, size=-(-size // _MIB) * _MIB)
    options = ("--chunk-size", str(_CHUNK), "--supported-transfer-mode", "auto")
    l1_size = ("--l1-size-gb", str(size / (1 << 30)))
    own = [*l1_size, "--eviction-policy", "LRU", "--no-l1-use-lazy"]
    if _mapped(folder):
        own += ["--shm-name", f"{folder.name}-stock"]
    with held_back():
        started = [
            stack.enter_context(MPServer(folder / "stock.log", None, (*options, *own))),
            stack.enter_context(MPServer(folder / "storing.log", pool, options)),
            stack.enter_context(MPServer(folder / "loading.log", pool, options)),
        ]
    try:
        stock, storing, loading = (server.wait(_START_S) for server in started)
    except ServerError as error:
        raise BenchError(str(error)) from None
    return stock, storing, loading


def _retrieve(
    section: Section,
    title: str,
    mode: Mode,
    shape: KVShape,
    chunks: int,
    servers: tuple[MPServer, MPServer, MPServer],
    quick: bool,
) -> None:
    blocks = chunks * _CHUNK // BLOCK
    tokens = list(range(chunks * _CHUNK))
    tokens[0] = 1_000_000 + len(mode)
    with contextlib.ExitStack() as stack:
        stock, storing, loading = (
            stack.enter_context(MPEngine(server.url, shape, blocks, mode, device=_device()))
            for server in servers
        )
        for engine in (stock, storing):
            engine.fill(1, len(tokens))
            _store(engine, tokens)
        expected = storing.copy(0, chunks)

        def timed(engine: MPEngine) -> float:
            name = f"request-{next(_requests)}"
            found = engine.lookup(tokens, name)
            engine.wipe()
            start = time.perf_counter()
            loaded = engine.retrieve(tokens, name, 0, found)
            seconds = time.perf_counter() - start
            engine.end(name)
            if found != chunks or not loaded or not torch.equal(engine.copy(0, chunks), expected):
                section.wrong.append(f"{title}: {found} chunks found, loaded {loaded}")
            return seconds

        samples = interleaved(
            7 if quick else 25, {POOL: lambda: timed(loading), OWN: lambda: timed(stock)}
        )
    for name, seconds in samples.items():
        section.add(f"retrieve, {title}: {name}", [1e3 * s for s in seconds], "ms")
    pairs = zip(samples[POOL], samples[OWN], strict=True)
    section.add(f"retrieve, {title}: ratio", [a / b for a, b in pairs], "x", Bar(True, 1.10))


def _store(engine: MPEngine, tokens: list[int]) -> None:
    chunks = len(tokens) // engine.chunk
    name = f"request-{next(_requests)}"
    if engine.lookup(tokens, name) or not engine.store(tokens, name, 0, chunks):
        raise BenchError("LMCache's server does not store")
    engine.end(name)
    deadline = time.monotonic() + _SETTLE_S
    while True:
        name = f"request-{next(_requests)}"
        found = engine.lookup(tokens, name)
        engine.free(tokens, name, found)
        engine.end(name)
        if found == chunks:
            return
        if time.monotonic() > deadline:
            raise BenchError("LMCache's server does not keep what it stores")
        time.sleep(0.01)


def _lookup(section: Section, servers: tuple[MPServer, MPServer, MPServer], quick: bool) -> None:
    """Every request is for a prompt of its own, all of which is there."""
    chunks = 32
    prompts = [[2_000_000 + number, *range(chunks * _CHUNK - 1)] for number in range(_CONCURRENT)]
    with contextlib.ExitStack() as stack:
        stock, storing, loading = (
            stack.enter_context(
                MPEngine(
                    server.url,
                    _TINY,
                    chunks * _CHUNK // BLOCK,
                    "lmcache_driven",
                    "tiny",
                    device=_device(),
                )
            )
            for server in servers
        )
        for engine, tokens in itertools.product((stock, storing), prompts):
            _store(engine, tokens)
        candidates = {POOL: loading, OWN: stock}
        samples: dict[str, list[float]] = {name: [] for name in candidates}
        tails: dict[str, list[float]] = {name: [] for name in candidates}
        for round_, turn in _rounds(15 if quick else 75, list(candidates)):
            for name in turn:
                latencies = _at_once(section, name, candidates[name], prompts)
                if round_ >= 0:
                    samples[name] += latencies
                    tails[name].append(percentile(latencies, 99))
    for name, seconds in samples.items():
        title = f"lookup of {chunks} chunks, {_CONCURRENT} at once: {name}"
        section.add(title, [1e3 * s for s in seconds], "ms")
        section.add(
            f"99th percentile of the {_CONCURRENT}: {name}", [1e3 * s for s in tails[name]], "ms"
        )
    # Of each round's pair: what else the machine does meets both.
    ratios = [a / b for a, b in zip(tails[POOL], tails[OWN], strict=True)]
    low, high = median_interval(ratios)
    note = f"95 % interval of the median: {low:.2f} to {high:.2f}"
    section.add("99th percentile: ratio", ratios, "x", Bar(True, 1.0), note)


def _rounds(count: int, names: list[str]) -> Iterator[tuple[int, list[str]]]:
    for number in range(-1, count):
        yield number, names if number % 2 else names[::-1]


def _at_once(
    section: Section, title: str, engine: MPEngine, prompts: list[list[int]]
) -> list[float]:
    """Seconds of each lookup, all of which begin at the same moment."""
    seconds = [0.0] * len(prompts)
    ready = threading.Barrier(len(prompts))

    def one(number: int) -> None:
        tokens, name = prompts[number], f"request-{next(_requests)}"
        ready.wait(_SETTLE_S)
        start = time.perf_counter()
        found = engine.lookup(tokens, name)
        seconds[number] = time.perf_counter() - start
        engine.free(tokens, name, found)
        engine.end(name)
        if found * engine.chunk != len(tokens):
            section.wrong.append(f"{title}: {found} chunks found by one of many lookups")

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds
