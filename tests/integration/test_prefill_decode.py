"""The proxy between prefill and decode instances, with servers that only note what they get."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

NOBODY = 1
"""A port below those that the system gives away; tcpmux, of which nobody has heard since."""

FILE = Path(__file__).parents[2] / "integration" / "vllm" / "prefill_decode.py"


def proxy(prefill: str, decode: str) -> web.Application:
    spec = importlib.util.spec_from_file_location("prefill_decode", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.application([prefill], [decode])


class Instance(TestServer):
    def __init__(self, name: str, log: list[tuple[str, dict[str, Any]]]) -> None:
        async def answer(request: web.Request) -> web.Response:
            log.append((name, await request.json()))
            return web.Response(text=f"data: {name}\n\n", content_type="text/event-stream")

        app = web.Application()
        app.router.add_post("/v1/completions", answer)
        super().__init__(app)


async def ask(prefill_is_up: bool) -> tuple[str, str, list[tuple[str, dict[str, Any]]]]:
    log: list[tuple[str, dict[str, Any]]] = []
    async with Instance("prefill", log) as prefill, Instance("decode", log) as decode:
        urls = [str(server.make_url("")).rstrip("/") for server in (prefill, decode)]
        if not prefill_is_up:
            # Not a port that was just closed: the proxy may be given it, and would ask itself.
            urls[0] = f"http://127.0.0.1:{NOBODY}"
        async with TestClient(TestServer(proxy(*urls))) as client:
            body = {"prompt": "x", "max_tokens": 9, "stream": True, "stream_options": {}}
            async with client.post("/v1/completions", json=body) as response:
                return await response.text(), response.content_type, log


def test_prefill_then_decode() -> None:
    text, kind, log = asyncio.run(asyncio.wait_for(ask(True), 30))
    assert (text, kind) == ("data: decode\n\n", "text/event-stream")
    first = {"prompt": "x", "max_tokens": 1, "stream": False, "n": 1}
    then = {"prompt": "x", "max_tokens": 9, "stream": True, "stream_options": {}}
    assert log == [("prefill", first), ("decode", then)]


def test_without_a_prefill_instance_the_prompt_is_answered() -> None:
    text, _, log = asyncio.run(asyncio.wait_for(ask(False), 30))
    assert text == "data: decode\n\n"
    assert [name for name, _ in log] == ["decode"]
