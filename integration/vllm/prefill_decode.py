"""Sends each prompt to a prefill instance, which stores its KV in the pool, then to a decode one.

    python integration/vllm/prefill_decode.py --prefill http://127.0.0.1:8100 \
        --decode http://127.0.0.1:8200 --port 8000

Both may be given several times; instances take turns. Nothing passes here but text: the decode
instance finds the KV in the pool. It computes what is not there, so a prefill instance that fails
or is down costs time, not the answer. Needs aiohttp, which LMCache brings along.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, web

GENERATING = ("/v1/completions", "/v1/chat/completions")
CONNECT_S = 10
PREFILL_S = 600
"""After which the decode instance computes the prompt itself."""


def application(prefill: Sequence[str], decode: Sequence[str]) -> web.Application:
    """A proxy for vLLM's OpenAI interface."""
    prefills, decodes = itertools.cycle(prefill), itertools.cycle(decode)
    sessions: list[ClientSession] = []

    async def session(app: web.Application) -> Any:
        timeout = ClientTimeout(total=None, sock_connect=CONNECT_S)
        async with ClientSession(timeout=timeout) as opened:
            sessions.append(opened)
            yield

    async def generate(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        headers = {
            k: v for k, v in request.headers.items() if k in ("Authorization", "X-Request-Id")
        }
        first = {k: v for k, v in body.items() if k not in ("stream_options", "min_tokens")}
        first |= {"stream": False, "max_tokens": 1, "n": 1}
        if "max_completion_tokens" in first:
            first["max_completion_tokens"] = 1
        try:
            url, timeout = next(prefills) + request.path, ClientTimeout(PREFILL_S)
            async with sessions[0].post(url, json=first, headers=headers, timeout=timeout) as done:
                await done.read()
        except (ClientError, TimeoutError) as error:
            print(f"prefill: {error!r}", flush=True)
        return await relay(request, next(decodes), headers, body)

    async def relay(
        request: web.Request, server: str, headers: dict[str, str], body: Any = None
    ) -> web.StreamResponse:
        url = server + request.path_qs
        try:
            upstream = await sessions[0].request(request.method, url, json=body, headers=headers)
        except (ClientError, TimeoutError) as error:
            raise web.HTTPBadGateway(text=f"{server}: {error!r}") from None
        async with upstream:
            kind = {"Content-Type": upstream.headers.get("Content-Type", "application/json")}
            response = web.StreamResponse(status=upstream.status, headers=kind)
            await response.prepare(request)
            async for part in upstream.content.iter_any():
                await response.write(part)
            await response.write_eof()
        return response

    async def other(request: web.Request) -> web.StreamResponse:
        return await relay(request, next(decodes), {})

    app = web.Application(client_max_size=64 << 20)
    app.cleanup_ctx.append(session)
    for path in GENERATING:
        app.router.add_post(path, generate)
    for path in ("/v1/models", "/health"):
        app.router.add_get(path, other)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prefill", action="append", required=True, metavar="URL")
    parser.add_argument("--decode", action="append", required=True, metavar="URL")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    web.run_app(application(options.prefill, options.decode), host=options.host, port=options.port)


if __name__ == "__main__":
    main()
