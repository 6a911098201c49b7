"""An engine in a process of its own, driven by lines of JSON. As a script, it is that process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

ANSWER_S = 120


class EngineProcess:
    """Starts an engine (see ``engine_harness.Options``) and asks it to do things.

    ``environment`` is added to this process's, without PYTHONHASHSEED.
    """

    def __init__(
        self, yaml_file: Path, pool: Path, environment: dict[str, str], **options: Any
    ) -> None:
        inherited = {name: v for name, v in os.environ.items() if name != "PYTHONHASHSEED"}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(yaml_file), str(pool), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**inherited, **environment},
        )
        self._heard = b""

    def ask(self, action: str, **arguments: Any) -> None:
        """Send an action; its answer comes with ``answer``."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([action, arguments]).encode() + b"\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What the oldest unanswered action returned."""
        assert self._process.stdout is not None
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_S)
            assert ready, "the engine's process does not answer"
            more = os.read(self._process.stdout.fileno(), 65536)
            assert more, f"the engine's process ended with status {self._process.wait()}"
            self._heard += more
        line, self._heard = self._heard.split(b"\n", 1)
        return json.loads(line)

    def do(self, action: str, **arguments: Any) -> Any:
        self.ask(action, **arguments)
        return self.answer()

    def close(self) -> None:
        """End it in order, or kill it when it does not end."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def main(yaml_file: str, pool: str, options: str) -> None:
    import hashlib
    import logging
    import random

    from engine_harness import CHUNK, Engine, Options, prompt

    # LMCache and its libraries may print; only answers go to the real standard output.
    out, sys.stdout = sys.stdout, sys.stderr
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda log: said.append(log.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lmcache_beluga").addHandler(handler)

    def digest(layers: list[Any]) -> str:
        return hashlib.sha256(b"".join(layer.numpy().tobytes() for layer in layers)).hexdigest()

    with Engine(Path(yaml_file), Path(pool), Options(**json.loads(options))) as engine:

        def backends() -> list[str]:
            return list(engine.storage.storage_backends)

        def store(tokens: int, seed: int) -> str:
            return digest(engine.store(prompt(tokens, seed), seed + 1000 * engine.options.rank))

        def load(tokens: int, seed: int) -> list[Any]:
            request = f"request {seed}"
            hit = engine.lookup(prompt(tokens, seed), request)
            loaded, found = engine.retrieve(prompt(tokens, seed)[:hit], request)
            return [hit, loaded, digest(found)]

        def churn(steps: int, prompts: int, tokens: int, seed: int) -> list[int]:
            """Load prompts in random order, and store them where chunks are missing. How many
            chunks were loaded, were missing, and were wrong."""
            order = random.Random(seed)
            loaded = missing = wrong = 0
            for step in range(steps):
                number = order.randrange(prompts)
                slots = engine.kv.slots(tokens, number)
                engine.kv.write_random(slots, number)
                expected = engine.kv.read(slots)
                hit = engine.lookup(prompt(tokens, number), f"step {step}")
                whole = prompt(tokens, number)[:hit]
                got, found = engine.retrieve(whole, f"step {step}") if hit else (0, [])
                if any(not a.equal(b[:, :got]) for a, b in zip(found, expected, strict=False)):
                    wrong += 1
                loaded += got // CHUNK
                missing += (tokens - got) // CHUNK
                if got < tokens:
                    engine.store(prompt(tokens, number), number)
            return [loaded, missing, wrong]

        def stats() -> dict[str, int]:
            return engine.stats

        def chunks() -> int:
            return engine.chunks

        def clean() -> bool:
            engine.assert_clean()
            return True

        def log() -> list[str]:
            return said

        actions = {f.__name__: f for f in (backends, store, load, churn, stats, chunks, clean, log)}
        for line in sys.stdin:
            action, arguments = json.loads(line)
            print(json.dumps(actions[action](**arguments)), file=out, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
