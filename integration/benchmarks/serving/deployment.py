"""A backend and the vLLM instances on it, started together and ended together."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from lmcache_beluga.errors import BelugaError

from .backends import Backend, Moved
from .child import Child, ChildError
from .client import Asked, ask
from .engine import MODEL_NAME, Engine
from .measured import HIT, PhaseResult
from .request import Phase
from .settings import Settings, kv_bytes_per_token

_POLL_S = 0.1

#: What a process that ends, a tier that says something else than expected, or a pool may raise.
FAILURES = (
    *(ChildError, OSError, subprocess.SubprocessError, BelugaError),
    *(KeyError, TypeError, ValueError),
)


class PhaseCutShort(Exception):
    """The time limit came before the last answer."""


class Deployment:
    """A context manager: inside, processes run; after :meth:`wait`, vLLM serves.

    Args:
        kind: of backend.
        phases: all that will be run, by which instances are chosen.
        folder: for logs.
    """

    def __init__(
        self,
        kind: type[Backend],
        settings: Settings,
        phases: list[Phase],
        folder: Path,
        ports: Iterator[int],
    ) -> None:
        self._settings = settings
        self._ports = ports
        self._engines: dict[int, Engine] = {}
        # Names in /dev/shm come from the folder's, and must not meet those of another run.
        self._folder = folder / f"{kind.name}-{os.getpid()}"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._all = tuple(range(len(settings.gpus)))
        self._shared = kind.shared
        used = sorted({number for phase in phases for number in self.asked(phase)})
        self.backend = kind(settings, self._folder, ports, tuple(used))

    def asked(self, phase: Phase) -> list[int]:
        """Which instances a phase asks here, in turn.

        What an instance alone has stored, only that one can hit: a phase that names another is
        sent to instance 0, as all others that name one.
        """
        if phase.instance is None:
            return list(self._all)
        return [phase.instance % len(self._all) if self._shared else 0]

    def __enter__(self) -> Self:
        try:
            # All at once, to save minutes: vLLM takes longer to reach for its tier than tiers need.
            self.backend.start()
            for number in self.backend.instances:
                port, setup = next(self._ports), self.backend.setup(number)
                engine = Engine(self._settings_of(number), number, port, setup, self._folder)
                self._engines[number] = engine
        except BaseException:
            self.close()
            raise
        return self

    def _settings_of(self, number: int) -> Settings:
        """Of one instance: one that only stores needs room for a prompt at a time."""
        storing = self._settings.storing_kv_cache_bytes
        if number == 0 and self._shared and storing:
            return replace(self._settings, kv_cache_bytes=storing)
        return self._settings

    def wait(self, limit_s: float) -> None:
        """Until vLLM serves; raises ChildError if a process does not come up in that time."""
        deadline = time.monotonic() + limit_s
        self.backend.wait(deadline)
        for engine in self._engines.values():
            engine.wait(deadline)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything; logs stay."""
        for engine in self._engines.values():
            engine.child.strike()
        for engine in self._engines.values():
            engine.child.kill()
        self.backend.close()

    def run(self, phase: Phase, repeat: int, limit_s: float, exactly: bool = False) -> PhaseResult:
        """One phase, and what changed in counters meanwhile.

        ``exactly``: the instance that it names is asked, whatever is shared.

        Raises:
            PhaseCutShort: it took longer than ``limit_s``.
        """
        if not self.backend.caches and phase.recomputed is not None:
            phase = replace(phase, requests=phase.requests[: phase.recomputed])
        asked = [phase.instance] if exactly and phase.instance is not None else self.asked(phase)
        cpu, tokens, moved = self._cpu(), self._tokens(), self.backend.moved()
        urls = [self._engines[n].url if n in self._engines else "" for n in self._all]
        got = ask(urls, MODEL_NAME, phase, asked, limit_s)
        if not got.complete:
            raise PhaseCutShort
        result = PhaseResult(
            backend=self.backend.name,
            workload=phase.workload,
            name=phase.name,
            repeat=repeat,
            concurrency=phase.concurrency,
            axes=phase.axes,
            answers=got.answers,
            wall_s=got.wall_s,
            prompt_tokens=sum(len(request.prompt) for request in phase.requests),
            reused_tokens=sum(request.reused_tokens for request in phase.requests),
            instances=asked,
            asked_who_stored=self.backend.caches and phase.instance not in (None, asked[0]),
        )
        try:
            settled = self._settle()
            after, now = self._tokens(), self._cpu()
            loaded, local = after[0] - tokens[0], after[1] - tokens[1]
            counted = self._bytes(moved, got, loaded)
        except FAILURES as error:
            return replace(result, flag=f"counters cannot be read after it: {error!r}")
        return replace(
            result,
            cpu_s={group: now[group] - cpu.get(group, 0.0) for group in now},
            loaded_tokens=loaded,
            local_tokens=local,
            stored_bytes=counted.stored,
            loaded_bytes=counted.loaded,
            bytes_counted_by=counted.counted_by,
            settled_s=settled,
            flag=self._flag(phase, got, loaded + local),
        )

    def dead(self, grace_s: float = 0.0) -> str:
        """Which processes have ended though they should not, and what they said; empty: none.

        ``grace_s``: for one that is ending, and answers no more.
        """
        children = [*(engine.child for engine in self._engines.values()), *self.backend.children]
        deadline = time.monotonic() + grace_s
        while all(child.alive() for child in children) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return "\n".join(
            f"{child.name} has ended:\n{child.said()}" for child in children if not child.alive()
        )

    def _flag(self, phase: Phase, got: Asked, hit: int) -> str:
        """Whether what was hit is about what a cache could hit, in whole chunks."""
        reasons = []
        if failed := sum(bool(answer.error) for answer in got.answers):
            reasons.append(f"{failed} of {len(got.answers)} requests failed")
        if self.backend.caches or self._settings.prefix_caching:
            chunk = self._settings.chunk
            could = sum(request.reused_tokens // chunk * chunk for request in phase.requests)
            # vLLM computes the last token of a prompt whatever is cached of it.
            least = HIT * (could - len(phase.requests))
            most = sum(request.reused_tokens for request in phase.requests)
            if hit < least:
                reasons.append(f"hit {hit} of {could} tokens that could be hit")
            elif hit > most:
                reasons.append(f"hit {hit} tokens where {most} had been asked for before")
        return "; ".join(reasons)

    def _bytes(self, before: Moved | None, got: Asked, loaded_tokens: int) -> Moved:
        """What moved in the phase: as the tier counts, else as follows from the tokens."""
        after = self.backend.moved()
        if before is not None and after is not None:
            return Moved(
                _difference(after.stored, before.stored),
                _difference(after.loaded, before.loaded),
                after.counted_by,
            )
        if not self.backend.caches:
            return Moved(0, 0, "there is no tier")
        per_token, chunk = kv_bytes_per_token(self._settings.model), self._settings.chunk
        stored = sum(
            answer.prompt_tokens // chunk * chunk - -(-(answer.cached_tokens or 0) // chunk) * chunk
            for answer in got.answers
        )
        return Moved(
            max(stored, 0) * per_token, loaded_tokens * per_token, "tokens times the KV of one"
        )

    def _settle(self) -> float:
        """Wait until the tier has what it is still being given; how long that took."""
        start = time.monotonic()
        last, changed = self.backend.progress(), start
        if last is None:
            return 0.0
        while (now := time.monotonic()) < start + self._settings.settle_s:
            if now - changed > self._settings.quiet_s:
                break
            time.sleep(_POLL_S)
            if (current := self.backend.progress()) != last:
                last, changed = current, time.monotonic()
        return changed - start

    def _tokens(self) -> tuple[int, int]:
        """Loaded through connectors, and found in GPU memory, by all instances so far."""
        seen = [engine.seen() for engine in self._engines.values()]
        return sum(one.loaded for one in seen), sum(one.local for one in seen)

    def _cpu(self) -> dict[str, float]:
        """Seconds so far, by group of processes."""
        children: list[Child] = [engine.child for engine in self._engines.values()]
        spent: dict[str, float] = {}
        for child in [*children, *self.backend.children]:
            spent[child.group] = spent.get(child.group, 0.0) + child.cpu_s()
        return spent


def _difference(after: int | None, before: int | None) -> int | None:
    return None if after is None or before is None else after - before
