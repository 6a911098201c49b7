"""The benchmark's client, asking a server that answers like vLLM."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving.child import Child
from serving.client import Asked, ask
from serving.ports import answers, get, ports_from
from serving.request import Phase, Request
from serving.settings import child_environment

FAKE = Path(__file__).with_name("fake_vllm.py")
OUTPUT = 5


class Fake:
    def __init__(self, folder: Path, name: str, options: str = "{}") -> None:
        self.port = next(ports_from(0))
        self.child = Child(
            name,
            "vllm",
            [sys.executable, str(FAKE), "-m", "vllm", "--port", str(self.port)],
            folder,
            child_environment(FAKE_VLLM=options),
        )
        self.url = f"http://127.0.0.1:{self.port}"

    def wait(self) -> Fake:
        self.child.wait_until(lambda: answers(self.port), time.monotonic() + 60)
        return self


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Fake]]:
    folder = tmp_path_factory.mktemp("fake")
    started = [Fake(folder, name) for name in ("zero", "one")]
    yield [server.wait() for server in started]
    for server in started:
        server.child.kill()


def request(
    first: int = 1, arrival_s: float | None = None, after: int | None = None, output: int = OUTPUT
) -> Request:
    return Request((first, *range(30)), output, arrival_s, after)


def run(
    servers: list[Fake], *requests: Request, concurrency: int = 1, limit_s: float = 60
) -> Asked:
    phase = Phase("test", "test", requests, concurrency)
    return ask([server.url for server in servers], "model", phase, [0, 1], limit_s)


def test_answers_are_measured_and_instances_take_turns(servers: list[Fake]) -> None:
    got = run(servers, *[request()] * 4)
    assert got.complete
    assert [answer.instance for answer in got.answers] == [0, 1, 0, 1]
    for answer in got.answers:
        assert answer.error == ""
        assert (answer.prompt_tokens, answer.output_tokens) == (31, OUTPUT)
        assert answer.cached_tokens == 0
        # The server waits 5 ms before each token.
        assert 0.005 <= answer.ttft_s <= answer.end_s
        assert answer.end_s >= OUTPUT * 0.005
        assert answer.sent_s + answer.end_s <= got.wall_s


def test_one_at_a_time(servers: list[Fake]) -> None:
    answers = run(servers, *[request()] * 4).answers
    for earlier, later in itertools.pairwise(answers):
        assert later.sent_s >= earlier.sent_s + earlier.end_s


def test_no_more_at_a_time_than_the_phase_allows(servers: list[Fake]) -> None:
    got = run(servers, *[request(output=20)] * 12, concurrency=4)
    assert all(answer.error == "" for answer in got.answers)
    ends = [(answer.sent_s, 1) for answer in got.answers]
    ends += [(answer.sent_s + answer.end_s, -1) for answer in got.answers]
    running = most = 0
    for _, change in sorted(ends):
        running += change
        most = max(most, running)
    assert most == 4
    assert max(int(get(server.port, "/most")[1]) for server in servers) <= 4


def test_arrivals_are_kept(servers: list[Fake]) -> None:
    got = run(servers, request(arrival_s=0.4), request(arrival_s=0.2), concurrency=9)
    assert [answer.sent_s for answer in got.answers] == pytest.approx([0.4, 0.2])


def test_waiting_for_a_turn_counts_from_the_arrival_on(servers: list[Fake]) -> None:
    # Both arrive at once, and the first holds the only turn for 40 tokens.
    got = run(servers, request(arrival_s=0, output=40), request(arrival_s=0.0))
    first, second = got.answers
    assert second.sent_s == pytest.approx(0)
    assert second.ttft_s > first.end_s >= 40 * 0.005


def test_a_turn_of_a_conversation_waits_for_the_one_before(servers: list[Fake]) -> None:
    got = run(servers, request(output=20), request(after=0), request(after=1), concurrency=9)
    for earlier, later in zip(got.answers, got.answers[1:], strict=False):
        assert later.sent_s >= earlier.sent_s + earlier.end_s


def test_a_later_turn_may_also_have_a_moment(servers: list[Fake]) -> None:
    got = run(
        servers, request(output=20), request(arrival_s=0.01, after=0), request(arrival_s=2, after=0)
    )
    first, early, late = got.answers
    assert early.sent_s >= first.sent_s + first.end_s
    assert late.sent_s == pytest.approx(2)


def test_the_longest_gap_of_a_stream(servers: list[Fake]) -> None:
    even, stopped = run(servers, request(), request(777)).answers
    # The server stops for 0.3 s; the client may be late for the token before.
    assert stopped.longest_gap_s > 0.15 and even.longest_gap_s > 0


def test_what_fails_is_an_answer_too(servers: list[Fake]) -> None:
    fine, failed, turn = run(servers, request(), request(666), request(after=1)).answers
    assert fine.error == "" and turn.error == ""
    assert "400" in failed.error and "no such thing" in failed.error


def test_nobody_listens() -> None:
    phase = Phase("test", "test", (request(),))
    got = ask(["http://127.0.0.1:1"], "model", phase, [0], 60)
    assert got.complete and "ConnectorError: Cannot connect" in got.answers[0].error


def test_a_server_that_dies_while_it_answers(tmp_path: Path) -> None:
    server = Fake(tmp_path, "dies", '{"dies_after": 1}')
    try:
        answers = run([server.wait()] * 2, *[request(output=30)] * 2, concurrency=2).answers
        assert all(answer.error for answer in answers)
    finally:
        server.child.kill()


def test_an_answer_that_is_too_short_is_an_error(tmp_path: Path) -> None:
    server = Fake(tmp_path, "short", '{"short": true}')
    try:
        (answer,) = run([server.wait()] * 2, request()).answers
        assert answer.error == "an answer of 4 tokens for a prompt of 31, not of 5 for 31"
    finally:
        server.child.kill()


def test_the_limit_ends_a_phase(servers: list[Fake]) -> None:
    got = run(servers, request(), request(output=4000), request(arrival_s=60), limit_s=0.5)
    assert not got.complete and got.wall_s < 30
    assert [bool(answer.error) for answer in got.answers] == [False, True, True]
    assert "limit" in got.answers[1].error
