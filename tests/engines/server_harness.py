"""LMCache's own multiprocess server in a process of its own, and LMCache's own client of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lmcache.cli.commands.bench.server_bench.client import RequestContext, ServerBenchClient
from lmcache.cli.commands.bench.server_bench.config import BenchConfig
from processes import wait_until

from lmcache_beluga.demo.mp_server import MPServer

SHAPE = "(2,256,16,4,64):bfloat16:4"
CHUNK_BYTES = 2 * 4 * 256 * 4 * 64 * 2
TOKENS = 1023
"""Four chunks of 256 tokens: the client adds a token that begins every prompt."""
CHUNKS = 4


class Server(MPServer):
    """``lmcache server`` with one L2 adapter."""

    def __init__(self, log: Path, l2: dict[str, Any], *arguments: str) -> None:
        memory = ("--l1-size-gb", "0.1", "--no-l1-use-lazy", "--eviction-policy", "LRU")
        adapter = ("--supported-transfer-mode", "auto", "--l2-adapter", json.dumps(l2))
        quiet = {"PYTHONWARNINGS": "ignore"}
        super().__init__(log, None, (*memory, *adapter, *arguments), quiet)

    @property
    def l2(self) -> dict[str, Any]:
        """Status of the adapter."""
        (status,) = self.http("/status")["storage_manager"]["l2_adapters"]
        return dict(status)

    def settle(self, chunks: int) -> None:
        """Until the pool has that many chunks, seen from this server's host, and no task waits."""
        wait_until(lambda: self.l2["chunks"] >= chunks and self.l2["tasks"] == 0)


class Client:
    """An engine as LMCache's benchmark plays it, with paged KV of its own."""

    count = 0

    def __init__(self, server: Server, mode: str = "engine_driven", shape: str = SHAPE) -> None:
        config = BenchConfig(
            rpc_url=server.url,
            http_url=server.http_url,
            mode="cpu",
            transfer_mode=mode,
            tp_size=1,
            use_mla=False,
            num_tokens=TOKENS,
            kvcache_shape_spec=shape,
            num_blocks=256,
            block_size=16,
        )
        self._server = server
        self._client = ServerBenchClient(config, lambda line: None)
        self._client.start()

    def prompt(self, number: int) -> RequestContext:
        Client.count += 1
        request = self._client.create_request(number, f"request-{Client.count}", "test")
        assert request is not None and request.total_chunks == CHUNKS
        return request

    def kv(self, request: RequestContext) -> list[torch.Tensor]:
        """The pages of a request, one tensor per layer; they can be written."""
        first, count = request.block_offset, request.num_blocks
        caches = self._client._workers[0].kv_caches.values()
        return [layer[:, first : first + count] for layer in caches]

    def fill(self, request: RequestContext, seed: int) -> list[torch.Tensor]:
        """Random KV into the pages; a copy of it."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.kv(request):
            layer.copy_(torch.randn(layer.shape, generator=generator).to(layer.dtype))
        return [layer.clone() for layer in self.kv(request)]

    def lookup(self, request: RequestContext) -> int:
        result = self._client.lookup(request)
        assert result.succeeded, result.error
        return int(result.hit_chunks)

    def store(self, number: int) -> list[torch.Tensor]:
        """Look up in vain, compute, store; what was stored."""
        request = self.prompt(number)
        assert self.lookup(request) == 0
        wanted = self.fill(request, seed=number)
        assert self._client.store(request, 0, request.num_full_tokens).succeeded
        self._client.end_session(request)
        return wanted

    def expect(self, number: int, wanted: list[torch.Tensor], hits: int = CHUNKS) -> None:
        """Look up and retrieve ``hits`` chunks into scrambled pages, bit for bit."""
        request = self.prompt(number)
        assert self.lookup(request) == hits
        self.retrieve(request, wanted, hits)

    def retrieve(self, request: RequestContext, wanted: list[torch.Tensor], hits: int) -> None:
        for layer in self.kv(request):
            layer.view(torch.uint8).fill_(0x5A)
        if hits:
            assert self._client.retrieve(request, 0, hits * request.chunk_size).succeeded
        blocks = hits * request.chunk_size // 16
        for found, layer in zip(self.kv(request), wanted, strict=True):
            assert torch.equal(
                found[:, :blocks].contiguous().view(torch.uint8),
                layer[:, :blocks].contiguous().view(torch.uint8),
            )
        self._client.end_session(request)

    def close(self) -> None:
        if self._server.process.poll() is not None:
            for worker in self._client._workers:  # nobody would answer
                worker.transfer_context.unregister = lambda: None
        self._client.close()
