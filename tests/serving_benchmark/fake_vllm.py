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
STATUS = {200: "OK", 400: "Bad Request", 404: "Not Found"}


class Server:
    def __init__(self, caches: bool) -> None:
        self._caches = caches
        self._known: list[list[int]] = []
        self.prompt = self.hits = self.requests = self.running = self.most = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                length = 0
                while (header := await reader.readline()).strip():
                    name, _, value = header.decode().partition(":")
                    length = int(value) if name.lower() == "content-length" else length
                body = await reader.readexactly(length)
                await self._answer(line.decode().split()[1], body, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path == "/v1/completions":
            await self._complete(json.loads(body), writer)
            return
        texts = {"/health": "", "/metrics": self._metrics(), "/most": str(self.most)}
        await self._say(writer, 200 if path in texts else 404, texts.get(path, ""))

    async def _say(self, writer: asyncio.StreamWriter, status: int, text: str) -> None:
        head = f"HTTP/1.1 {status} {STATUS[status]}\r\nContent-Length: {len(text)}\r\n\r\n"
        writer.write((head + text).encode())
        await writer.drain()

    async def _complete(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.requests += 1
        if self.requests > OPTIONS.get("dies_after", 1 << 30):
            os._exit(3)
        if body["prompt"][0] == 666:
            await self._say(writer, 400, json.dumps({"error": {"message": "no such thing"}}))
            return
        self.running += 1
        self.most = max(self.most, self.running)
        cached = self._cached(body["prompt"])
        self.prompt += len(body["prompt"])
        self.hits += cached
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        wanted = body["max_tokens"] - OPTIONS.get("short", False)
        for number in range(wanted):
            # The answer to a prompt that begins with 777 stops for a while after its third token.
            slow = 0.3 if number == 3 and body["prompt"][0] == 777 else 0.0
            await asyncio.sleep(OPTIONS.get("token_s", 0.005) + slow)
            await self._stream(writer, {"choices": [{"index": 0, "text": ""}]})
        usage = {
            "prompt_tokens": len(body["prompt"]),
            "completion_tokens": wanted,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        await self._stream(writer, {"choices": [], "usage": usage})
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await writer.drain()
        self.running -= 1

    async def _stream(self, writer: asyncio.StreamWriter, event: dict[str, Any]) -> None:
        text = f"data: {json.dumps(event)}\n\n"
        writer.write(f"{len(text):x}\r\n{text}\r\n".encode())
        await writer.drain()

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

    def _metrics(self) -> str:
        return (
            "# TYPE vllm:prompt_tokens counter\n"
            f'vllm:prompt_tokens_total{{engine="0"}} {self.prompt}.0\n'
            "# TYPE vllm:external_prefix_cache_hits counter\n"
            f'vllm:external_prefix_cache_hits_total{{engine="0"}} {self.hits}.0\n'
        )


async def serve(port: int, caches: bool) -> None:
    server = await asyncio.start_server(Server(caches).connected, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main() -> None:
    if sys.argv[1] == "-c":
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    if OPTIONS.get("fails"):
        print("no GPU today")
        raise SystemExit(4)
    print(*sys.argv, flush=True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kv-transfer-config")
    options, _ = parser.parse_known_args()
    asyncio.run(serve(options.port, caches=options.kv_transfer_config is not None))


if __name__ == "__main__":
    main()
