"""How LMCache's server may copy chunks to a GPU, in GB/s: 4 GiB of Llama-3.1-8B's shape.

``direct``: the copy engine puts every block of a layer in its place, handed over block by block.
``one stream``: whole chunks, each spread by a kernel, as LMCache does it. ``lanes``: this project's
way to do that. ``busy``: while another process on the GPU multiplies matrices that are as large as
an 8 B model's, for one token at a time, in CUDA graphs. ``launch`` is how long it takes to hand
everything over, and ``decode`` how long such a token takes meanwhile.

    python integration/benchmarks/server_copies.py         # CUDA, LMCache with its CUDA extension
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.multiprocess import object_group_transfer as server
from lmcache.v1.platform.devices.cuda.cache_context import GPUCacheContext

from lmcache_beluga.engines import l1_lanes

CHUNKS, CHUNK, LAYERS, HEADS, HEAD_DIM = 128, 256, 32, 8, 128
SHAPE = torch.Size((2, LAYERS, CHUNK, HEADS * HEAD_DIM))
NBYTES = SHAPE.numel() * 2
ROUNDS, STAGING_MIB = 3, (128, 256, 512, 1024)


def decode(told: Path) -> NoReturn:
    """The other process: says how long a token takes, until it is killed."""
    width, layers = 8192, 100
    weights = [
        torch.randn(width, width, dtype=torch.bfloat16, device="cuda") * 0.01 for _ in range(layers)
    ]
    x = torch.randn(1, width, dtype=torch.bfloat16, device="cuda")

    def token() -> None:
        y = x
        for weight in weights:
            y = torch.nn.functional.silu((y @ weight) * 0.5 + x)

    token()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        token()
    while True:
        count, start = 0, time.monotonic()
        while time.monotonic() - start < 0.5:
            graph.replay()
            torch.cuda.synchronize()
            count += 1
        told.write_text(f"{(time.monotonic() - start) / count * 1e3:.2f}")


@contextlib.contextmanager
def decoding() -> Iterator[Path]:
    """Inside, another process decodes; the file says how long a token takes, in ms."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "token_ms"
        with subprocess.Popen([sys.executable, __file__, str(told)]) as process:
            try:
                while not told.exists():
                    assert process.poll() is None, "the process that decodes has ended"
                    time.sleep(0.2)
                time.sleep(1.2)
                yield told
            finally:
                process.kill()


def chunks(raw: torch.Tensor) -> list[TensorMemoryObj]:
    """One behind the other in that memory."""
    found = []
    for number in range(CHUNKS):
        begin = number * NBYTES
        metadata = MemoryObjMetadata(
            SHAPE,
            torch.bfloat16,
            begin,
            NBYTES,
            1,
            0,
            MemoryFormat.KV_2LTD,
            [SHAPE],
            [torch.bfloat16],
        )
        found.append(TensorMemoryObj(raw[begin : begin + NBYTES], metadata, None))
    return found


def measure(name: str, stream: Any, copy: Callable[[], None], told: Path | None) -> None:
    """Prints a line: medians of ROUNDS after one that is not counted."""
    times, launches = [], []
    for _ in range(1 + ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.cuda.stream(stream):
            copy()
        launches.append(time.perf_counter() - start)
        stream.synchronize()
        times.append(time.perf_counter() - start)
    took, launch = statistics.median(times[1:]), statistics.median(launches[1:])
    token = told.read_text() if told else "-"
    rate = CHUNKS * NBYTES / took / 1e9
    print(
        f"{name:<44} {took * 1e3:7.1f} ms {rate:6.1f} GB/s launch {launch * 1e3:5.1f} ms"
        f" decode {token}",
        flush=True,
    )


def cache(layers: list[torch.Tensor]) -> Any:
    wrapped = [
        SimpleNamespace(to_tensor=lambda layer=layer: layer, close=lambda: None) for layer in layers
    ]
    return GPUCacheContext(wrapped, CHUNK, layout_hints={"kv_layout": "NHD"})


def cases(objs: list[TensorMemoryObj], block: int, told: Path | None) -> None:
    """Every way with blocks of so many tokens."""
    blocks = CHUNKS * CHUNK // block
    layers = [
        torch.zeros(2, blocks + 8, block, HEADS, HEAD_DIM, dtype=torch.bfloat16, device="cuda:0")
        for _ in range(LAYERS)
    ]
    context = cache(layers)
    to_gpu = server.lmcache_native.TransferDirection.H2D
    busy = "busy " if told else ""
    orders = {
        "ascending": torch.arange(blocks),
        "descending": torch.arange(blocks - 1, -1, -1),
        "random": torch.randperm(blocks),
    }
    for order, ids in orders.items():
        name, host = f"{busy}block {block} {order}", ids.tolist()

        def direct(host: list[int] = host) -> None:
            server.run_direct_transfer(context, [host], objs, 0, 0, to_gpu)

        measure(f"{name} direct", context.stream, direct, told)
    in_lanes = server._run_object_group_transfer_plan
    stock = in_lanes.__wrapped__
    scattered = [orders["random"].to("cuda:0")]

    def plan(run: Any, context: Any) -> Callable[[], None]:
        return lambda: run(context, scattered, objs, 0, 4, 0, to_gpu, transfer_key="copies")

    name = f"{busy}block {block} random"
    measure(f"{name} one stream", context.stream, plan(stock, context), told)
    for mib in STAGING_MIB:
        l1_lanes.STAGING_BYTES = mib << 20
        other = cache(layers)
        measure(f"{name} lanes {mib} MiB", other.stream, plan(in_lanes, other), told)
        del other


def main() -> None:
    l1_lanes.load_in_lanes()
    raw = torch.zeros(CHUNKS * NBYTES, dtype=torch.uint8).pin_memory()
    whole = torch.empty_like(raw, device="cuda")
    stream = torch.cuda.Stream()

    def at_once() -> None:
        whole.copy_(raw, non_blocking=True)

    measure("one pinned copy", stream, at_once, None)
    objs = chunks(raw)
    for block in (16, 32, 64, 128):
        cases(objs, block, None)
    with decoding() as told:
        print("decode alone", told.read_text())
        for block in (16, 32, 64):
            cases(objs, block, told)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        decode(Path(sys.argv[1]))
    else:
        main()
