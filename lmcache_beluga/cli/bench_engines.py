"""``beluga bench engine`` and ``compare``: LMCache on the pool against LMCache's own backends.

One process, one LMCache version, one set of chunks; only the backend differs. Rounds alternate.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lmcache_beluga.cli.bench_redis import RedisServer, redis_missing
from lmcache_beluga.cli.bench_report import Bar, BenchError, Progress, Section, interleaved
from lmcache_beluga.cli.bench_scratch import require
from lmcache_beluga.demo.cache_engine import CacheEngine
from lmcache_beluga.demo.paged_kv import KVShape, PagedKV
from lmcache_beluga.quantities import format_size
from lmcache_beluga.signals import held_back

_LLAMA_8B = KVShape(layers=32, heads=8, head_dim=128, dtype=torch.bfloat16)
_SMALL = KVShape(layers=8, heads=8, head_dim=64, dtype=torch.bfloat16)
_CHUNK_TOKENS = 256
_SETTLE_S = 20.0
_ATTEMPTS = 5

POOL = "beluga"
UNHOOKED = "beluga, LMCache as it is"
HOT = "hot cache"
REDIS = "Redis"
DISK = "disk"
DAX = "DAX"


@dataclass(frozen=True)
class Workload:
    """One prompt's KV: ``chunks`` chunks of 256 tokens."""

    shape: KVShape
    chunks: int

    @property
    def tokens(self) -> int:
        """Length of the prompt."""
        return self.chunks * _CHUNK_TOKENS

    @property
    def bytes(self) -> int:
        """KV of the prompt."""
        return self.tokens * self.shape.bytes_per_token

    @property
    def gib(self) -> float:
        """The same in GiB, with room for a second prompt: how LMCache wants its sizes."""
        return 2.25 * self.bytes / (1 << 30)

    def __str__(self) -> str:
        chunk = self.bytes // self.chunks
        return f"{self.chunks} chunks of {format_size(chunk)}"


@dataclass(frozen=True)
class Backend:
    """An LMCache backend under test.

    Attributes:
        name: in the storage manager.
        prepare: called before the engine starts.
        drop: forgets everything, where LMCache cannot remove a prompt; None where it can.
    """

    title: str
    name: str
    yaml: str
    prepare: Callable[[], None] = lambda: None
    drop: Callable[[], None] | None = None


class Contender:
    """One engine: stores and retrieves prompts, timing the calls.

    Args:
        reference: KV that every prompt has, one tensor like `PagedKV.layers` per layer.
    """

    def __init__(
        self,
        engine: CacheEngine,
        backend: Backend,
        workload: Workload,
        reference: list[torch.Tensor],
        section: Section,
    ) -> None:
        self._engine = engine
        self._backend = backend
        self._workload = workload
        self._reference = reference
        self._section = section
        self._round = 0
        self.lost = 0
        self.series: dict[str, list[float]] = {
            name: []
            for name in ("store", "stored", "lookup", "retrieve", "inside", "from_gpu", "to_gpu")
        }
        self._spent = {"inside": 0.0, "from_gpu": 0.0, "to_gpu": 0.0}
        self._watch(engine.backend, "batched_get_blocking", "inside")
        self._watch(engine.lmcache.gpu_connector, "batched_from_gpu", "from_gpu")
        self._watch(engine.lmcache.gpu_connector, "batched_to_gpu", "to_gpu")

    def round(self, keep: bool) -> None:
        """Store a new prompt, retrieve it, compare every byte, drop it.

        LMCache's remote backends give up storing now and then on a busy machine; such a round is
        counted and played again. Of the pool it is an error.

        Raises:
            BenchError: it happened too often.
        """
        for _ in range(_ATTEMPTS):
            values, hit, loaded = self._play()
            whole = (hit, loaded) == (self._workload.tokens, self._workload.tokens)
            if whole:
                self._compare()
            elif self._backend.title in (POOL, UNHOOKED):
                self._section.wrong.append(
                    f"{self._backend.title}: {hit} tokens hit, {loaded} loaded"
                )
            if self._backend.drop is None:
                self._engine.lmcache.clear(self._tokens())
            else:
                self._backend.drop()
            if whole:
                for name, value in zip(self.series, values, strict=True):
                    self.series[name] += [value] if keep else []
                return
            self.lost += 1
        raise BenchError(f"{self._backend.title} does not keep what LMCache stores in it")

    def _play(self) -> tuple[tuple[float, ...], int, int]:
        """Seconds of each series, tokens hit, tokens loaded."""
        self._round += 1
        tokens = self._tokens()
        kv = self._engine.kv
        for layer, wanted in zip(kv.layers, self._reference, strict=True):
            layer.copy_(wanted)
        self._spent["from_gpu"] = self._spent["to_gpu"] = 0.0
        start = time.perf_counter()
        self._engine.store(tokens)
        store = time.perf_counter() - start
        self._settle(tokens)
        stored = time.perf_counter() - start
        kv.fill(0xFF)
        start = time.perf_counter()
        hit = self._engine.lookup(tokens, f"request-{self._round}")
        lookup = time.perf_counter() - start
        self._spent["inside"] = 0.0
        start = time.perf_counter()
        loaded = self._engine.retrieve(tokens, f"request-{self._round}")
        retrieve = time.perf_counter() - start
        return (store, stored, lookup, retrieve, *self._spent.values()), hit, loaded

    def _tokens(self) -> torch.Tensor:
        """This round's prompt: every chunk's hash depends on its first token."""
        tokens = torch.arange(self._workload.tokens)
        tokens[0] = 1_000_000 + self._round
        return tokens

    def _watch(self, owner: Any, method: str, series: str) -> None:
        """Have the time summed up that is spent in a method."""
        watched = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return watched(*args, **kwargs)
            finally:
                self._spent[series] += time.perf_counter() - start

        setattr(owner, method, timed)

    def _compare(self) -> None:
        for layer, wanted in zip(self._engine.kv.layers, self._reference, strict=True):
            if not torch.equal(layer.view(torch.int16), wanted.view(torch.int16)):
                self._section.wrong.append(f"{self._backend.title}: loaded KV differs")
                return

    def _settle(self, tokens: torch.Tensor) -> None:
        """Wait until all of it can be found: several backends store in the background."""
        deadline = time.perf_counter() + _SETTLE_S
        while self._engine.lmcache.lookup(tokens) < self._workload.tokens:
            if time.perf_counter() > deadline:
                break  # the lookup that follows shows it
            time.sleep(0.001)


def run_engine(folder: Path, quick: bool, progress: Progress) -> Section:
    """The pool, also without hooks in LMCache, against LMCache's own hot cache."""
    workload = _workload(quick)
    section = Section(f"LMCache engine, {workload}: pool against LMCache's hot cache")
    backends = [
        _pool_backend(folder, workload),
        _pool_backend(folder, workload, hooks=False),
        _hot_backend(workload),
    ]
    found = _contest(section, folder, workload, backends, 5 if quick else 15, progress)
    for series in ("store", "lookup", "retrieve"):
        for title, contender in found.items():
            section.add(f"{series}, {title}", _ms(contender, series), "ms")
    for title in (POOL, UNHOOKED):
        for series in ("store", "retrieve"):
            ratios = [
                ours / theirs
                for ours, theirs in zip(
                    found[title].series[series], found[HOT].series[series], strict=True
                )
            ]
            hooked = series == "retrieve" and title == POOL
            bar = Bar(True, 1.10) if hooked else None
            section.add(f"{series}, {title} / {HOT}", ratios, "x", bar)
    if torch.cuda.is_available():
        _add_connector(section, found, workload)
    return section


def _add_connector(section: Section, found: dict[str, Contender], workload: Workload) -> None:
    """What LMCache's GPU connector gets out of the bus; the rest of a retrieve is not transfer."""
    for series, way, bar in (("to_gpu", "load", 50), ("from_gpu", "store", 45)):
        rates = {
            title: [workload.bytes / seconds / 1e9 for seconds in contender.series[series]]
            for title, contender in found.items()
        }
        for title, samples in rates.items():
            held = Bar(False, bar) if title == POOL else None
            section.add(f"connector's {way}, {title}", samples, "GB/s", held)
        for title in (POOL, UNHOOKED):
            ratios = [ours / theirs for ours, theirs in zip(rates[title], rates[HOT], strict=True)]
            held = Bar(False, 0.98) if way == "load" and title == POOL else None
            section.add(f"connector's {way}, {title} / {HOT}", ratios, "x", held)


def run_compare(folder: Path, quick: bool, progress: Progress) -> Section:
    """The pool against LMCache's Redis, local-disk and DAX backends."""
    workload = _workload(quick)
    section = Section(f"LMCache backends, {workload}; disk and DAX on tmpfs")
    backends = [
        _pool_backend(folder, workload),
        _disk_backend(folder, workload),
        _dax_backend(folder, workload),
    ]
    with contextlib.ExitStack() as stack:
        missing = redis_missing()
        if missing is None:
            with held_back():
                server = stack.enter_context(RedisServer(folder))
            server.wait()
            backends.append(_redis_backend(server, workload))
        found = _contest(section, folder, workload, backends, 2 if quick else 5, progress)
    for series, name in (("stored", "store"), ("retrieve", "retrieve")):
        for title, contender in found.items():
            values = contender.series[series]
            note = f"{workload.bytes / statistics.median(values) / 1e9:.2f} GB/s"
            if contender.lost and series == "stored":
                note += f"; {contender.lost} prompts not stored in {_SETTLE_S:g} s, played again"
            section.add(f"{name}, {title}", _ms(contender, series), "ms", note=note)
        if missing is not None:
            section.add_value(f"{name}, {REDIS}", None, "ms", note=missing)
    for title, contender in found.items():
        # The rest is LMCache's own copy into the paged cache.
        section.add(f"in the backend, {title}", _ms(contender, "inside"), "ms")
    ours = found[POOL].series["retrieve"]
    # LMCache's own copies on the CPU are most of a retrieve there.
    bars = {REDIS: Bar(False, 10)}
    if torch.cuda.is_available():
        bars = {REDIS: Bar(False, 20), DAX: Bar(False, 2)}
    for title, contender in found.items():
        if title != POOL:
            pairs = zip(contender.series["retrieve"], ours, strict=True)
            section.add(
                f"retrieve, {title} / {POOL}",
                [theirs / mine for theirs, mine in pairs],
                "x",
                bars.get(title),
            )
    return section


def _contest(
    section: Section,
    folder: Path,
    workload: Workload,
    backends: list[Backend],
    rounds: int,
    progress: Progress,
) -> dict[str, Contender]:
    require(folder, (len(backends) * 4 + 2) * workload.bytes)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    kv = PagedKV(workload.shape, workload.tokens, device, seed=7)
    generator = torch.Generator().manual_seed(11)
    for layer in kv.layers:
        flat = layer.view(torch.int16)
        flat.copy_(torch.randint(-(1 << 15), 1 << 15, flat.shape, generator=generator))
    reference = [layer.clone() for layer in kv.layers]
    contenders: dict[str, Contender] = {}
    with contextlib.ExitStack() as stack:
        for number, backend in enumerate(backends):
            progress(f"starting {backend.title}")
            backend.prepare()
            config = folder / f"backend-{number}.yaml"
            config.write_text(backend.yaml)
            engine = CacheEngine(f"{folder.name}-{number}", config, kv, backend.name)
            stack.callback(_close, engine)
            contenders[backend.title] = Contender(engine, backend, workload, reference, section)
        _rounds(section, contenders, rounds, progress)
    return contenders


def _rounds(
    section: Section, contenders: dict[str, Contender], rounds: int, progress: Progress
) -> None:
    turns = dict.fromkeys(contenders, -1)  # the first round warms up and is not kept

    def turn(title: str) -> Callable[[], float]:
        def play() -> float:
            turns[title] += 1
            progress(f"{title}, round {turns[title]} of {rounds}")
            contenders[title].round(keep=turns[title] > 0)
            return 0.0

        return play

    interleaved(rounds, {title: turn(title) for title in contenders}, discard=1)
    for title, contender in contenders.items():
        for series, values in contender.series.items():
            section.samples[f"{series}, {title}, s"] = list(values)


def _close(engine: CacheEngine) -> None:
    connection = getattr(engine.backend, "connection", None)
    if connection is not None:
        # LMCache 0.5.6 waits in its event loop for a task of that same loop when it closes a Redis
        # connection, for ever.
        connection.close = _closed
    engine.close()


async def _closed() -> None:
    return None


def _workload(quick: bool) -> Workload:
    if quick:
        return Workload(_SMALL, 16)
    return Workload(_LLAMA_8B, 64 if torch.cuda.is_available() else 16)


def _ms(contender: Contender, series: str) -> list[float]:
    return [seconds * 1e3 for seconds in contender.series[series]]


def _yaml(workload: Workload, lines: str, local_cpu: bool = False) -> str:
    return (
        f"chunk_size: {_CHUNK_TOKENS}\n"
        f"local_cpu: {str(local_cpu).lower()}\n"
        f"max_local_cpu_size: {workload.gib:.3f}\n"
    ) + lines


def _pool_backend(folder: Path, workload: Workload, hooks: bool = True) -> Backend:
    path = folder / f"{'hooked' if hooks else 'unhooked'}.pool"
    lines = f"""\
storage_plugins: ["beluga"]
extra_config:
  storage_plugin.beluga.module_path: lmcache_beluga
  storage_plugin.beluga.class_name: BelugaBackend
  beluga.pool: {path}
  beluga.size: {int(workload.gib * (1 << 30)) + (256 << 20)}
  beluga.chunk_hint: {workload.bytes // workload.chunks}
  beluga.lmcache_hooks: {str(hooks).lower()}
"""

    def fresh() -> None:
        path.unlink(missing_ok=True)

    return Backend(POOL if hooks else UNHOOKED, "beluga", _yaml(workload, lines), fresh)


def _hot_backend(workload: Workload) -> Backend:
    return Backend(HOT, "LocalCPUBackend", _yaml(workload, "", local_cpu=True))


def _disk_backend(folder: Path, workload: Workload) -> Backend:
    # LMCache 0.5.6 goes on counting removed files; the limit must not be reached.
    lines = f"local_disk: file://{folder}/disk/\nmax_local_disk_size: {100 * workload.gib:.3f}\n"
    return Backend(DISK, "LocalDiskBackend", _yaml(workload, lines))


def _dax_backend(folder: Path, workload: Workload) -> Backend:
    device = folder / "dax.file"
    # Its size counts whole slots, of a chunk each.
    lines = f"""\
storage_plugins: ["dax"]
extra_config:
  storage_plugin.dax.module_path: lmcache.v1.storage_backend.plugins.dax_backend
  storage_plugin.dax.class_name: DaxBackend
  dax.device_path: {device}
  dax.max_dax_size: {workload.gib:.3f}
"""

    def create() -> None:
        with device.open("wb") as file:
            file.truncate(int(workload.gib * (1 << 30)) + (64 << 20))

    return Backend(DAX, "dax", _yaml(workload, lines), create)


def _redis_backend(server: RedisServer, workload: Workload) -> Backend:
    lines = f"remote_url: redis://127.0.0.1:{server.port}\nremote_serde: naive\n"
    return Backend(REDIS, "RemoteBackend", _yaml(workload, lines), drop=server.flush)
