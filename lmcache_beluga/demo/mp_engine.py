"""An engine without a model, as LMCache's multiprocess server sees it: KV tensors and requests."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal

import torch
import zmq
from lmcache.utils import EngineType
from lmcache.v1.multiprocess.custom_types import IPCCacheServerKey
from lmcache.v1.multiprocess.group_view import EngineGroupInfo
from lmcache.v1.multiprocess.transfer_context import create_transfer_context
from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

from lmcache_beluga.demo.paged_kv import KVShape

Mode = Literal["engine_driven", "lmcache_driven"]

BLOCK = 16
"""Tokens per block of the engine's paged KV."""

_POLL_S = 0.001
_numbers = itertools.count(1)


class MPEngine:
    """One worker, through LMCache's own client.

    Args:
        url: of the server.
        shape: layout of one token's KV.
        blocks: capacity in blocks of BLOCK tokens.
        mode: who moves bytes: the server, which maps the engine's KV (``lmcache_driven``), or the
            engine, which maps the server's L1 or sends its bytes (``engine_driven``).
        model: the name in keys.
        timeout: seconds for each answer. TimeoutError is raised after that.
        device: where the KV lies.
    """

    def __init__(
        self,
        url: str,
        shape: KVShape,
        blocks: int,
        mode: Mode = "engine_driven",
        model: str = "model",
        timeout: float = 20.0,
        device: str = "cpu",
    ) -> None:
        self._model = model
        self._cuda = device != "cpu"
        self._timeout = timeout
        self._zmq = zmq.Context()
        self._zmq.setsockopt(zmq.LINGER, 0)
        self._client = RequestClientFactory.create(url, context=self._zmq)
        self.kv = {
            f"layer.{layer}": torch.zeros(
                (2, blocks, BLOCK, shape.heads, shape.head_dim), dtype=shape.dtype, device=device
            )
            for layer in range(shape.layers)
        }
        """Per layer ``[2, blocks, BLOCK, heads, head_dim]``."""
        number = next(_numbers)
        self._instance = 1_000_000 + number
        self._context: Any = create_transfer_context(
            self.kv, mode=mode, instance_id=self._instance, req_client=self._client
        )
        try:
            self.chunk: int = self._client.get_chunk_size().result(timeout=timeout)
            group = EngineGroupInfo(
                engine_group_id=0,
                layer_indices=tuple(range(shape.layers)),
                tokens_per_block=BLOCK,
            )
            self._context.register(
                self.kv,
                model,
                1,
                self.chunk // BLOCK,
                timeout,
                layout_hints={"kv_layout": "NHD"},
                engine_group_infos=[group],
                engine_type=EngineType.VLLM,
            )
        except BaseException:
            self.close()
            raise

    # One request

    def lookup(self, tokens: Sequence[int], request: str, salt: str = "") -> int:
        """How many chunks from the first on the server has; they are locked for ``request``."""
        whole = len(tokens) // self.chunk * self.chunk
        key = self._key(tokens, request, 0, whole, salt, worker=None)
        self._answer(self._client.lookup(key, 1))
        deadline = time.monotonic() + self._timeout
        while (found := self._answer(self._client.query_prefetch_status(request))) is None:
            if time.monotonic() > deadline:
                raise TimeoutError("the lookup does not end")
            time.sleep(_POLL_S)
        return int(found)

    def store(
        self, tokens: Sequence[int], request: str, first: int, chunks: int, salt: str = ""
    ) -> bool:
        """Store ``chunks`` chunks of the prompt from chunk ``first`` on; whether LMCache says that
        it did. Token ``t`` lies in slot ``t`` of the KV."""
        return self._transfer(self._context.submit_store, tokens, request, first, chunks, salt)

    def retrieve(
        self, tokens: Sequence[int], request: str, first: int, chunks: int, salt: str = ""
    ) -> bool:
        """Load what a lookup for the same request has found; whether it was loaded."""
        return self._transfer(self._context.submit_retrieve, tokens, request, first, chunks, salt)

    def free(self, tokens: Sequence[int], request: str, chunks: int, salt: str = "") -> None:
        """Give up what a lookup has locked."""
        key = self._key(tokens, request, 0, chunks * self.chunk, salt, worker=None)
        self._answer(self._client.free_lookup_locks(key, 1))

    def end(self, request: str) -> None:
        """The request is over."""
        self._answer(self._client.end_session(request))

    def _transfer(
        self,
        submit: Any,
        tokens: Sequence[int],
        request: str,
        first: int,
        chunks: int,
        salt: str,
    ) -> bool:
        begin, end = first * self.chunk, (first + chunks) * self.chunk
        key = self._key(tokens, request, begin, end, salt, worker=0)
        blocks = list(range(begin // BLOCK, end // BLOCK))
        event = self._context.create_recorded_event()
        future = submit(request, key, self.kv, [blocks], event, self.chunk // BLOCK)
        done = bool(future.result(timeout=self._timeout))
        if self._cuda:
            torch.cuda.synchronize()  # the answer is an event that the device waits for
        return done

    def _key(
        self,
        tokens: Sequence[int],
        request: str,
        begin: int,
        end: int,
        salt: str,
        worker: int | None,
    ) -> IPCCacheServerKey:
        return IPCCacheServerKey(
            model_name=self._model,
            world_size=1,
            worker_id=worker,
            token_ids=tuple(tokens),
            start=begin,
            end=end,
            request_id=request,
            cache_salt=salt,
            num_kv_readers=1,
        )

    def _answer(self, future: Any) -> Any:
        return future.result(timeout=self._timeout)

    # KV

    def fill(self, seed: int, tokens: int) -> None:
        """Random KV for the first ``tokens`` tokens, the same for the same seed and shape."""
        generator = torch.Generator().manual_seed(seed)
        for layer in self.kv.values():
            part = layer[:, : -(-tokens // BLOCK)]
            part.copy_(torch.randn(part.shape, generator=generator))

    def wipe(self) -> None:
        """Set every byte to 0xFF, so that a load which does nothing cannot go unnoticed."""
        for layer in self.kv.values():
            layer.view(torch.uint8).fill_(0xFF)

    def copy(self, first: int, chunks: int) -> torch.Tensor:
        """The bytes of some chunks, uint8 of shape [layers, bytes]."""
        begin, end = first * self.chunk // BLOCK, (first + chunks) * self.chunk // BLOCK
        parts = [layer[:, begin:end].reshape(-1).view(torch.uint8) for layer in self.kv.values()]
        return torch.stack(parts)

    # Life

    def close(self) -> None:
        """Unregister and let go. Idempotent; a server that is gone is not waited for long."""
        for end in (self._unregister, self._context.close, self._client.close, self._zmq.term):
            with contextlib.suppress(Exception):
                end()
        self.kv.clear()

    def _unregister(self) -> None:
        future = self._context.unregister()
        if future is not None:
            future.result(timeout=2)

    def __enter__(self) -> MPEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
