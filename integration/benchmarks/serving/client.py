"""Asks vLLM instances what a phase says, when it says so, and measures the answers.

Prompts go to ``/v1/completions`` as token ids, answers come as a stream. A request that names a
moment (``arrival_s``) is measured from that moment on, so that one that had to wait for its turn
here is not made to look quick.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from .measured import Answer
from .request import Phase, Request

_LIMIT = "the run's time limit"
_ERROR_CHARACTERS = 300


@dataclass(frozen=True)
class Asked:
    """What came back from one phase."""

    answers: list[Answer]
    wall_s: float
    #: False: the time limit ended it.
    complete: bool


def ask(
    urls: Sequence[str], model: str, phase: Phase, instances: Sequence[int], limit_s: float
) -> Asked:
    """Run a phase to its end, or for ``limit_s`` seconds.

    Args:
        urls: of all instances.
        model: the name under which they serve it.
        instances: those that are asked, in turn.
    """
    bodies = [_body(request, model) for request in phase.requests]
    gc.collect()
    gc.disable()  # a collection in the middle would be measured as vLLM's
    try:
        return asyncio.run(_ask(urls, phase, bodies, instances, limit_s))
    finally:
        gc.enable()


def _body(request: Request, model: str) -> bytes:
    """Made before the clock starts: it takes a while for long prompts."""
    return json.dumps(
        {
            "model": model,
            "prompt": request.prompt,
            "max_tokens": request.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()


async def _ask(
    urls: Sequence[str],
    phase: Phase,
    bodies: Sequence[bytes],
    instances: Sequence[int],
    limit_s: float,
) -> Asked:
    # A connection that is kept may be closed by vLLM at the moment when it is used again.
    connections = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
    async with aiohttp.ClientSession(connector=connections, timeout=timeout) as session:
        turns = asyncio.Semaphore(phase.concurrency)
        ended = [asyncio.Event() for _ in phase.requests]
        start = time.perf_counter()

        async def one(index: int, request: Request) -> Answer:
            instance = instances[index % len(instances)]
            try:
                due = await _due(request, ended, start)
                async with turns:
                    begin = time.perf_counter() if due is None else due
                    return await _answer(
                        session, urls[instance], bodies[index], request, instance, begin, start
                    )
            finally:
                ended[index].set()

        tasks = [asyncio.create_task(one(i, request)) for i, request in enumerate(phase.requests)]
        _, late = await asyncio.wait(tasks, timeout=max(limit_s, 0))
        wall = time.perf_counter() - start
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        answers = [
            _failed(_LIMIT, instances[i % len(instances)], 0.0)
            if task.cancelled()
            else task.result()
            for i, task in enumerate(tasks)
        ]
    return Asked(answers, wall, complete=not late)


async def _due(request: Request, ended: Sequence[asyncio.Event], start: float) -> float | None:
    """Waits until a request may be sent; when it was due, None if it was at no given moment."""
    earliest = start
    if request.after is not None:
        await ended[request.after].wait()
        earliest = time.perf_counter()
    if request.arrival_s is None:
        return None
    due = max(start + request.arrival_s, earliest)
    while (wait := due - time.perf_counter()) > 0:
        await asyncio.sleep(wait)
    return due


async def _answer(
    session: aiohttp.ClientSession,
    url: str,
    body: bytes,
    request: Request,
    instance: int,
    begin: float,
    start: float,
) -> Answer:
    """Of one request; times count from ``begin``."""
    times: list[float] = []
    usage: dict[str, object] = {}
    sent = begin - start
    try:
        async with session.post(
            url + "/v1/completions", data=body, headers={"Content-Type": "application/json"}
        ) as response:
            if response.status != 200:
                text = await response.text()
                return _failed(f"status {response.status}: {text}", instance, sent)
            async for line in response.content:
                now = time.perf_counter()
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return _failed(str(event["error"]), instance, sent)
                if event.get("choices"):
                    times.append(now - begin)
                usage = event.get("usage") or usage
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return _failed(f"{type(error).__name__}: {error}", instance, sent)
    return _measured(request, instance, sent, times, usage)


def _measured(
    request: Request, instance: int, sent: float, times: list[float], usage: dict[str, object]
) -> Answer:
    prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not times or prompt != len(request.prompt) or output != request.output_tokens:
        told = f"{output} tokens for a prompt of {prompt}"
        wanted = f"{request.output_tokens} for {len(request.prompt)}"
        return _failed(f"an answer of {told}, not of {wanted}", instance, sent)
    details = usage.get("prompt_tokens_details")
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    return Answer(
        sent_s=sent,
        ttft_s=times[0],
        end_s=times[-1],
        prompt_tokens=len(request.prompt),
        output_tokens=request.output_tokens,
        instance=instance,
        cached_tokens=details.get("cached_tokens") if isinstance(details, dict) else None,
        longest_gap_s=max(gaps, default=0.0),
    )


def _failed(why: str, instance: int, sent: float) -> Answer:
    return Answer(sent, 0.0, 0.0, 0, 0, instance, error=why[:_ERROR_CHARACTERS])
