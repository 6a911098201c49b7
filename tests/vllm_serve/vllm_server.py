"""``vllm serve`` on the CPU, with LMCache or without, and what its users ask of it."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_llama import CONTEXT

from lmcache_beluga.free_ports import free_ports

ON_CPU = Path(__file__).parents[2] / "integration" / "vllm" / "on_cpu"
PAUSING = Path(__file__).parent / "pausing"
START_S = 240
ANSWER_S = 120
END_S = 30
REST_S = 10

BLOCK = 128
STEP_TOKENS = 512
"""What vLLM computes in one step: longer prompts are computed in several, one chunk at a time."""
REQUESTS = 32
"""That one instance works on at a time."""

BLOCKS = 512
"""Of vLLM's own KV cache: 64 thousand tokens."""

IN_PROCESS = {"kv_connector": "LMCacheConnectorV1", "kv_connector_module_path": "lmcache_pausing"}

ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONPATH": f"{ON_CPU}:{PAUSING}",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # for /reset_prefix_cache
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "LMCACHE_DISABLE_BANNER": "1",
}


@dataclasses.dataclass(frozen=True)
class Answer:
    tokens: list[int]
    #: Of the prompt, that vLLM did not compute: from its own cache or from LMCache.
    cached: int


class VLLM:
    """One instance; ``lmcache`` is its configuration file, ``connector`` how vLLM reaches LMCache.

    ``privileged``: started by root, it may also open what file modes forbid.

    Everything that it leaves in a file system is in ``folder``, or removed at its end.
    """

    def __init__(
        self,
        python: str,
        log: Path,
        model: Path,
        *arguments: str,
        lmcache: Path | None = None,
        connector: dict[str, Any] | None = None,
        cache: Path,
        privileged: bool = True,
    ) -> None:
        (self.port,) = free_ports(1)
        self.name = log.stem
        self._log = log
        # Not pytest's: sockets lie in it, and their paths must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="bv-"))
        self.pause = self._folder / "pause"
        """While this file exists, stores do not come to an end."""
        metrics = self._folder / "metrics"
        metrics.mkdir()
        environment = {
            **{name: value for name, value in os.environ.items() if not _is_ours(name)},
            **ENVIRONMENT,
            "TMPDIR": str(self._folder),
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            "VLLM_CACHE_ROOT": str(cache),
            "BELUGA_TEST_PAUSE": str(self.pause),
        }
        if lmcache is not None:
            environment["LMCACHE_CONFIG_FILE"] = str(lmcache)
        if connector is not None:
            connector = {"kv_role": "kv_both", "kv_load_failure_policy": "recompute", **connector}
            arguments = ("--kv-transfer-config", json.dumps(connector), *arguments)
        command = [python, str(ON_CPU / "vllm_command.py"), "serve", str(model)]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--served-model-name", "tiny", "--skip-tokenizer-init", "--enforce-eager"]
        command += ["--max-model-len", str(CONTEXT), "--max-num-seqs", str(REQUESTS)]
        command += ["--max-num-batched-tokens", str(STEP_TOKENS), "--enable-prompt-tokens-details"]
        command += ["--num-gpu-blocks-override", str(BLOCKS)]
        if "--block-size" not in arguments:
            command += ["--block-size", str(BLOCK)]
        if not privileged and os.geteuid() == 0:
            command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """Its log so far, without colours."""
        return re.sub(r"\x1b\[[0-9;]*m", "", self._log.read_text(errors="replace"))

    def told(self, *words: str) -> list[str]:
        """Lines of its log that have all of these words."""
        return [line for line in self.said.splitlines() if all(word in line for word in words)]

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def wait(self) -> VLLM:
        """Until it serves."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert not self.ended, f"{self.name} ended:\n{self.said[-3000:]}"
            with contextlib.suppress(OSError):
                self._ask("/health", timeout=5)
                return self
            time.sleep(0.2)
        raise AssertionError(f"{self.name} does not serve:\n{self.said[-3000:]}")

    def complete(self, prompt: Sequence[int], tokens: int = 8) -> Answer:
        """The likeliest continuation of a prompt of token ids."""
        request = {
            "model": "tiny",
            "prompt": list(prompt),
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        answer = json.loads(self._ask("/v1/completions", request))
        cached = (answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0
        return Answer(answer["choices"][0]["token_ids"], cached)

    def forget(self) -> None:
        """Empty vLLM's own prefix cache."""
        deadline = time.monotonic() + 30
        while not json.loads(self._ask("/reset_prefix_cache", {}))["success"]:
            assert time.monotonic() < deadline, "vLLM does not let go of its blocks"
            time.sleep(0.1)

    def metric(self, name: str) -> float:
        """The sum over all labels."""
        samples = [
            float(line.rsplit(" ", 1)[1])
            for line in self._ask("/metrics").splitlines()
            if re.match(rf"{re.escape(name)}[ {{]", line)
        ]
        assert samples, f"{self.name} has no metric {name}"
        return sum(samples)

    def kill(self) -> None:
        """SIGKILL for all its processes, but for the one that removes what others leave behind."""
        for pid in self._processes():
            with contextlib.suppress(OSError):
                if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        self._end()

    def stop(self) -> None:
        """In order, as far as it does so in time."""
        if not self.ended:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(END_S)
        self._end()

    def _ask(self, path: str, body: Any = None, timeout: float = ANSWER_S) -> str:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return str(response.read().decode())

    def _processes(self) -> list[int]:
        found = []
        for status in glob.glob("/proc/[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session = Path(status).read_text().rsplit(")", 1)[1].split()[:4]
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(status.split("/")[2]))
        return found

    def _end(self) -> None:
        deadline = time.monotonic() + REST_S
        while self._processes() and time.monotonic() < deadline:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(END_S)
        shutil.rmtree(self._folder, ignore_errors=True)
        for name in set(re.findall(r"vllm_dist_[0-9a-f]+", self.said)):
            for memory in glob.glob(f"/dev/shm/{name}-*"):  # between ranks; vLLM leaves it there
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(memory)


def _is_ours(name: str) -> bool:
    """Settings of the tests' own process, which are not meant for an instance."""
    return name.startswith(("BELUGA_", "LMCACHE_", "VLLM_")) or name == "PYTHONPATH"
