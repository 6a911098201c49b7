"""Stands in for an interpreter with vLLM: answers as its HTTP interface does, and computes nothing.

Started with the arguments of a Python that runs vLLM's server. It finds in its own memory what it
was asked before, to the token, as an instance with a cache of its own would if it was given a
connector. FAKE_VLLM (JSON) may say otherwise: ``fails``: it ends at the start; ``dies_after``: so
many requests; ``token_s``: what a token takes; ``short``: it answers one token too few.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from typing import Any

OPTIONS = json.loads(os.environ.get("FAKE_VLLM", "{}"))


class Server:
    def __init__(self, caches: bool) -> None:
        self._caches = caches
        self._known: list[list[int]] = []
        self.prompt = self.hits = self.requests = self.running = self.most = 0

    async def complete(self, request: Any) -> Any:
        from aiohttp import web

        body = await request.json()
        self.requests += 1
        if self.requests > OPTIONS.get("dies_after", 1 << 30):
            os._exit(3)
        if body["prompt"][0] == 666:
            return web.json_response({"error": {"message": "no such thing"}}, status=400)
        self.running += 1
        self.most = max(self.most, self.running)
        cached = self._cached(body["prompt"])
        self.prompt += len(body["prompt"])
        self.hits += cached
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        wanted = body["max_tokens"] - OPTIONS.get("short", False)
        for number in range(wanted):
            # The answer to a prompt that begins with 777 stops for a while after its third token.
            slow = 0.3 if number == 3 and body["prompt"][0] == 777 else 0.0
            await asyncio.sleep(OPTIONS.get("token_s", 0.005) + slow)
            await self._say(response, {"choices": [{"index": 0, "text": ""}]})
        usage = {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": wanted,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        await self._say(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        self.running -= 1
        return response

    def _cached(self, prompt: list[int]) -> int:
        if not self._caches:
            return 0
        longest = 0
        for known in self._known:
            same = 0
            while same < min(len(known), len(prompt)) and known[same] == prompt[same]:
                same += 1
            longest = max(longest, same)
        self._known.append(prompt)
        return min(longest, len(prompt) - 1)

    async def _say(self, response: Any, event: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def metrics(self) -> str:
        return (
            "# TYPE vllm:prompt_tokens counter\n"
            f'vllm:prompt_tokens_total{{engine="0"}} {self.prompt}.0\n'
            "# TYPE vllm:external_prefix_cache_hits counter\n"
            f'vllm:external_prefix_cache_hits_total{{engine="0"}} {self.hits}.0\n'
        )


def serve(port: int, caches: bool) -> None:
    from aiohttp import web

    server = Server(caches)

    async def answer(text: str) -> web.Response:
        return web.Response(text=text)

    app = web.Application(client_max_size=64 << 20)
    app.router.add_get("/health", lambda request: answer(""))
    app.router.add_get("/metrics", lambda request: answer(server.metrics()))
    app.router.add_get("/most", lambda request: answer(str(server.most)))
    app.router.add_post("/v1/completions", server.complete)
    web.run_app(app, host="127.0.0.1", port=port, print=None, handle_signals=False)


def main() -> None:
    if sys.argv[1] == "-c":
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    if OPTIONS.get("fails"):
        print("no GPU today")
        raise SystemExit(4)
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kv-transfer-config")
    options, _ = parser.parse_known_args()
    serve(options.port, caches=options.kv_transfer_config is not None)


if __name__ == "__main__":
    main()
