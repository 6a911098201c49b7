"""Real vLLM over LMCache's multiprocess server: the pool as its L1 against its own private L1.

    python integration/benchmarks/vllm_mp/run.py --model DIR --out result.json

Needs a GPU with 140 GB, 120 GiB of memory of which 48 in /dev/shm, and vLLM with LMCache 0.5.6. DIR
holds the config.json of a model; weights are drawn at random. Three servers and four engines:

    none     no connector: what a prompt costs without storing it
    writer   stores every prompt through server A, whose L1 is the pool
    reader   finds them through server B, a process of its own on the same pool
    private  stores and finds them through LMCache's server as it is, with an L1 of its own

Reader and private take turns, so that what else happens on the machine meets both.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from lmcache_beluga.cli.bench_report import machine, versions

HERE = Path(__file__).parent
PROMPTS = {"8192": 4, "32768": 8, "65536": 1}
POOL = Path("/dev/shm/vllm-mp.pool")
BYTES_PER_TOKEN = 131072
KV_GB, COLD_KV_GB = 36.5, 9.5
ROUNDS = 4
_STOCK = "import sys; from lmcache.cli.main import main; sys.argv[0] = 'lmcache'; main()"


class Server:
    """An LMCache server."""

    def __init__(self, name: str, port: int, command: list[str], logs: Path, **env: str) -> None:
        self.name, self.port, self._http = name, port, port + 1000
        ports = ["--host", "127.0.0.1", "--port", str(port), "--http-port", str(self._http)]
        with (logs / f"server-{name}.log").open("w") as log:
            self._process = subprocess.Popen(
                [*command, *ports], stdout=log, stderr=log, env=os.environ | env
            )

    def wait(self) -> None:
        for _ in range(600):
            try:
                self.get("healthcheck")
                return
            except OSError:
                if self._process.poll() is not None:
                    raise SystemExit(f"server {self.name} has ended: see its log") from None
                time.sleep(0.3)
        raise SystemExit(f"server {self.name} does not answer")

    def get(self, what: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http}/{what}", timeout=5) as answer:
            return json.loads(answer.read())

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Engine:
    """A vLLM process that does what it is told."""

    def __init__(self, name: str, model: str, kv_gb: float, port: int, logs: Path) -> None:
        self.name = name
        command = [sys.executable, str(HERE / "engine.py"), "--model", model, "--kv-gb", str(kv_gb)]
        command += ["--port", str(port), "--prompts", json.dumps(PROMPTS)]
        with (logs / f"engine-{name}.log").open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        self.results: dict[str, list[Any]] = {}

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"engine {self.name} has ended: see its log")
        return json.loads(line)

    def do(self, step: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(step + "\n")
        self._process.stdin.flush()
        result = self.answer()
        self.results.setdefault(step, []).append(result)
        print(f"{self.name:8} {step:8} {_short(result)}", flush=True)
        return result

    def end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("end\n")
        self._process.stdin.close()
        self._process.wait(60)


def _short(result: Any) -> str:
    times = result.get("ttft_ms")
    if isinstance(times, dict):
        return "  ".join(f"{k}: {statistics.median(v):.1f}" for k, v in times.items())
    if isinstance(times, list):
        return f"first {times[0]:.1f} median {statistics.median(times):.1f} last {times[-1]:.1f}"
    return f"longest gap {result['longest_gap_ms']:.1f} (before: {result['gap_before_ms']:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--logs", type=Path, default=Path("/tmp/vllm-mp-logs"))
    parser.add_argument("--pool-size", default="48GiB")
    parser.add_argument("--l1-gb", default="47")
    options = parser.parse_args()
    options.logs.mkdir(parents=True, exist_ok=True)
    POOL.unlink(missing_ok=True)
    shared = [sys.executable, "-m", "lmcache_beluga", "lmcache-server", "--pool", str(POOL)]
    shared += ["--pool-size", options.pool_size]
    stock = [sys.executable, "-c", _STOCK, "server", "--l1-size-gb", options.l1_gb]
    stock += [
        "--no-l1-use-lazy",
        "--eviction-policy",
        "LRU",
        "--eviction-trigger-watermark",
        "0.99",
    ]
    running: list[Server | Engine] = []

    def server(name: str, port: int, command: list[str], **env: str) -> Server:
        running.append(Server(name, port, command, options.logs, **env))
        return running[-1]

    def engine(name: str, kv_gb: float, port: int = 0) -> Engine:
        running.append(Engine(name, options.model, kv_gb, port, options.logs))
        return running[-1]

    try:
        a = server("a", 5601, shared, BELUGA_PREFAULT="true")
        own = server("private", 5599, stock)
        none = engine("none", COLD_KV_GB)
        a.wait(), own.wait()
        writer, private = engine("writer", COLD_KV_GB, 5601), engine("private", KV_GB, 5599)
        for one in (none, writer, private):
            one.answer()
        for one in (none, writer, private):
            one.do("cold")
        none.end(), writer.end()
        b = server("b", 5602, shared)
        b.wait()
        reader = engine("reader", KV_GB, 5602)
        reader.answer()
        time.sleep(3)
        for step in ("warm", "burst 8"):  # once to get warm
            private.do(step), reader.do(step)
        for one in (private, reader):
            one.results.pop("warm"), one.results.pop("burst 8")
        for number in range(ROUNDS):
            turn = (private, reader) if number % 2 else (reader, private)
            for step in ("warm", "burst 4", "burst 8", "burst 8", "stall 4"):
                for one in turn:
                    one.do(step)
        status = {one.name: one.get("status") for one in (a, b)}
        cpu = {one.name: one.cpu_s() for one in (a, b, own)}
        private.end(), reader.end()
    finally:
        for one in running:
            if one._process.poll() is None:
                one.end() if isinstance(one, Server) else one._process.kill()
        POOL.unlink(missing_ok=True)
    engines = {one.name: one.results for one in (none, writer, private, reader)}
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine() | _gpu(),
        "versions": versions() | _vllm(),
        "table": _table(engines),
        "server_cpu_s": cpu,
        "pool_status": {name: _figures(one) for name, one in status.items()},
        "engines": engines,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["table"], indent=1))


def _table(engines: dict[str, Any]) -> dict[str, Any]:
    def all_of(name: str, step: str, tokens: str) -> list[float]:
        return [t for one in engines[name][step] for t in one["ttft_ms"][tokens]]

    table: dict[str, Any] = {"cold TTFT ms": {}, "warm TTFT ms": {}, "burst": {}}
    for name in ("none", "writer", "private"):
        table["cold TTFT ms"][name] = {
            n: round(statistics.median(all_of(name, "cold", n)), 1) for n in PROMPTS
        }
    for name in ("private", "reader"):
        table["warm TTFT ms"][name] = {
            n: round(statistics.median(all_of(name, "warm", n)), 1) for n in PROMPTS
        }
        for step in ("burst 4", "burst 8"):
            runs = [one["ttft_ms"] for one in engines[name][step]]
            last = statistics.median(run[-1] for run in runs)
            moved = len(runs[0]) * 32768 * BYTES_PER_TOKEN
            table["burst"][f"{step}, {name}"] = {
                "median ms": round(statistics.median(statistics.median(run) for run in runs), 1),
                "last ms": round(last, 1),
                "GB/s": round(moved / last / 1e6, 1),
            }
        gaps = [one["longest_gap_ms"] for one in engines[name]["stall 4"]]
        table.setdefault("longest decode gap ms", {})[name] = round(statistics.median(gaps), 1)
    steps = [
        (r, p) for r, p in zip(engines["reader"]["warm"], engines["private"]["warm"], strict=True)
    ]
    table["same log-probabilities"] = all(r["logprobs"] == p["logprobs"] for r, p in steps)
    table["all hits"] = all(
        one["all_hit"]
        for name in ("private", "reader")
        for step in ("warm", "burst 4", "burst 8")
        for one in engines[name][step]
    )
    return table


def _figures(status: Any) -> dict[str, Any]:
    """The pool's part of a server's status, wherever it is in it."""
    if isinstance(status, dict):
        if "bytes_read_in_place" in status:
            return {k: v for k, v in status.items() if isinstance(v, int | str)}
        for value in status.values():
            if found := _figures(value):
                return found
    return {}


def _gpu() -> dict[str, Any]:
    import torch

    return {"gpu": torch.cuda.get_device_name(0)}


def _vllm() -> dict[str, str]:
    from importlib.metadata import version

    return {"vllm": version("vllm")}


if __name__ == "__main__":
    main()
