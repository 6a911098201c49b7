"""Tiers behind a network protocol, here over the loopback interface."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

from lmcache_beluga.signals import held_back

from ..child import Child
from ..counters import totals
from ..engine import EngineSetup, in_process
from ..ports import HOST, get, listens
from ..settings import Settings, child_environment
from .base import Backend, Moved


class Redis(Backend):
    """LMCache's connector that uses redis-py."""

    name = "redis"

    @classmethod
    def emulated(cls, settings: Settings) -> str:
        return "redis, resp: Redis is on the same machine; the network is its loopback interface"

    @classmethod
    def missing(cls, settings: Settings) -> str:
        if shutil.which("redis-server") is None:
            return "no redis-server: apt install redis-server"
        return _module_missing(settings, "redis")

    def start(self) -> None:
        self._port = next(self.ports)
        line = ["redis-server", "--port", str(self._port), "--bind", HOST, "--save", ""]
        line += ["--appendonly", "no", "--dir", str(self.folder)]
        line += ["--proto-max-bulk-len", "512mb"]
        line += ["--maxmemory", str(self.settings.pool_bytes), "--maxmemory-policy", "allkeys-lru"]
        self.children.append(Child("redis", "tier", line, self.folder, child_environment()))

    def wait(self, deadline: float) -> None:
        self.children[0].wait_until(lambda: listens(self._port), deadline)

    def setup(self, instance: int) -> EngineSetup:
        file = self.lmcache_file(remote_url=f"redis://{HOST}:{self._port}", remote_serde="naive")
        return EngineSetup(in_process(self.settings), file)

    def progress(self) -> int | None:
        return self._info("persistence")["rdb_changes_since_last_save"]

    def moved(self) -> Moved | None:
        info = self._info("stats")
        return Moved(
            info["total_net_input_bytes"],
            info["total_net_output_bytes"],
            "Redis, protocol included",
        )

    def _info(self, section: str) -> dict[str, int]:
        text = subprocess.run(
            ["redis-cli", "-h", HOST, "-p", str(self._port), "info", section],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
        return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)\r?\n", text)}


class Resp(Redis):
    """LMCache's own client for Redis, with threads and without Python in between."""

    name = "resp"

    def setup(self, instance: int) -> EngineSetup:
        extra = {
            "remote_storage_plugin.resp.module_path": "lmcache_resp",
            "remote_storage_plugin.resp.class_name": "PatientAdapter",
            "resp.url": f"resp://{HOST}:{self._port}",
            "resp_num_threads": 8,
            "save_chunk_meta": False,
        }
        file = self.lmcache_file(
            remote_storage_plugins=["resp"], remote_serde="naive", extra_config=extra
        )
        return EngineSetup(in_process(self.settings), file)


class RemoteServer(Backend):
    """LMCache's remote server, ``lm://``."""

    name = "lmserver"

    @classmethod
    def emulated(cls, settings: Settings) -> str:
        return "lmserver: the network is the loopback interface"

    def start(self) -> None:
        self._port = next(self.ports)
        line = [self.settings.python, "-m", "lmcache.v1.server", HOST, str(self._port)]
        self.children.append(Child("lmserver", "tier", line, self.folder, child_environment()))

    def wait(self, deadline: float) -> None:
        self.children[0].wait_until(lambda: listens(self._port), deadline)

    def setup(self, instance: int) -> EngineSetup:
        file = self.lmcache_file(remote_url=f"lm://{HOST}:{self._port}", remote_serde="naive")
        return EngineSetup(in_process(self.settings), file)

    def progress(self) -> int | None:
        return self.children[0].resident_bytes()


class Mooncake(Backend):
    """Mooncake's store: a master, and one process that has the memory."""

    name = "mooncake"

    @classmethod
    def emulated(cls, settings: Settings) -> str:
        return "mooncake: all of it is on one machine"

    @classmethod
    def missing(cls, settings: Settings) -> str:
        if shutil.which("mooncake_master") is None:
            return "no mooncake_master: pip install mooncake-transfer-engine"
        return _module_missing(settings, "mooncake")

    def start(self) -> None:
        self._master, self._metadata, self._metrics = (next(self.ports) for _ in range(3))
        line = ["mooncake_master", f"--rpc_port={self._master}"]
        line += ["--enable_http_metadata_server=true", f"--http_metadata_server_host={HOST}"]
        line += [f"--http_metadata_server_port={self._metadata}"]
        line += [f"--metrics_port={self._metrics}", "--default_kv_lease_ttl=600000"]
        self.children.append(Child("master", "tier", line, self.folder, child_environment()))

    def wait(self, deadline: float) -> None:
        self.children[0].wait_until(lambda: listens(self._metadata), deadline)
        if len(self.children) == 1:
            store = str(Path(__file__).with_name("mooncake_memory.py"))
            line = [self.settings.python, store, json.dumps(self._client(self.settings.pool_bytes))]
            with held_back():
                self.children.append(Child("store", "tier", line, self.folder, child_environment()))
        memory = self.children[1]
        memory.wait_until(lambda: "serves" in memory.said(), deadline)

    def setup(self, instance: int) -> EngineSetup:
        extra = self._client(0) | {"transfer_timeout": 120, "save_chunk_meta": False}
        file = self.lmcache_file(
            remote_url=f"mooncakestore://{HOST}:{self._master}/",
            remote_serde="naive",
            extra_config=extra,
        )
        return EngineSetup(in_process(self.settings), file)

    def progress(self) -> int | None:
        return int(totals(get(self._metrics, "/metrics")[1])["master_allocated_bytes"])

    def _client(self, memory: int) -> dict[str, object]:
        """How one takes part in the store; ``memory``: bytes that it gives."""
        return {
            "local_hostname": HOST,
            "metadata_server": f"http://{HOST}:{self._metadata}/metadata",
            "protocol": self.settings.mooncake_protocol,
            "device_name": self.settings.mooncake_device,
            "master_server_address": f"{HOST}:{self._master}",
            # The name that Mooncake 0.3.14 reads; LMCache documents the other one.
            "mooncake_master_server_addr": f"{HOST}:{self._master}",
            "global_segment_size": memory,
            "local_buffer_size": 64 << 20 if memory else 1 << 30,
        }


def _module_missing(settings: Settings, name: str) -> str:
    """Empty, or what to install where vLLM is."""
    found = subprocess.run(
        [settings.python, "-c", f"import importlib.util as u; exit(not u.find_spec({name!r}))"],
        env=child_environment(),
        timeout=60,
        check=False,
    )
    return f"no Python package {name!r} where vLLM is" if found.returncode else ""
