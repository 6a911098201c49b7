"""The serving benchmark's workloads ask for what they say, and say what of it was asked before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from serving import workload_burst, workload_chat, workload_documents, workload_reuse
from serving import workload_trace as trace
from serving.request import Phase, Request
from serving.trace_file import TraceRequest, write_trace
from serving.workload_tokens import Asked, TokenSource
from serving.workloads import Scale

WORKLOADS = {
    "documents": workload_documents.phases,
    "burst": workload_burst.phases,
    "reuse": workload_reuse.phases,
    "chat": workload_chat.phases,
    "trace": trace.phases,
}


#: So few ids that prompts often have their first ones in common by accident.
SMALL = Scale(
    vocabulary=40, seed=1, lengths=(64, 200), output_tokens=3, quick=False, count=2, bursts=(2, 5)
)


@pytest.fixture
def scale(tmp_path: Path) -> Scale:
    path = tmp_path / "small.jsonl"
    lines = [(0, 1100, 9, (0, 1, 2)), (5, 1400, 2, (0, 1, 3)), (9, 600, 1, (0, 4)), (9, 9, 1, (5,))]
    write_trace(path, [TraceRequest(*line) for line in lines])
    return replace(SMALL, trace=path)


def made(name: str, scale: Scale, repeat: int = 0) -> list[Phase]:
    return WORKLOADS[name](scale, repeat)


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Tokens at the beginning of both."""
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


@pytest.mark.parametrize("name", WORKLOADS)
def test_reused_tokens_are_what_earlier_prompts_have(scale: Scale, name: str) -> None:
    earlier: list[tuple[int, ...]] = []
    some = 0
    for phase in made(name, scale):
        assert phase.workload == name
        for number, request in enumerate(phase.requests):
            most = max((common(request.prompt, one) for one in earlier), default=0)
            # Requests of a phase have an order in which the first of the same prompts is new.
            assert request.reused_tokens == most, (phase.name, number)
            earlier.append(request.prompt)
            some += most
    assert some > 100


@pytest.mark.parametrize("name", WORKLOADS)
def test_same_seed_same_requests(scale: Scale, name: str) -> None:
    other_seed = replace(scale, seed=2)

    assert made(name, scale, 1) == made(name, scale, 1)
    assert made(name, scale, 1)[0].requests[0] != made(name, other_seed, 1)[0].requests[0]


@pytest.mark.parametrize("name", WORKLOADS)
def test_repeats_have_nothing_in_common(scale: Scale, name: str) -> None:
    first, second = (
        {request.prompt for phase in made(name, scale, n) for request in phase.requests}
        for n in (0, 1)
    )
    assert len(first) == len(second)
    # Some first tokens are the same by chance, of a vocabulary of 30; a block of a cache never is.
    assert max(common(one, other) for one in first for other in second) < 8


def test_workloads_have_nothing_in_common(scale: Scale) -> None:
    prompts = [
        {request.prompt for phase in made(name, scale) for request in phase.requests}
        for name in WORKLOADS
    ]
    for number, some in enumerate(prompts):
        for others in prompts[number + 1 :]:
            assert max(common(one, other) for one in some for other in others) < 8


@pytest.mark.parametrize("name", WORKLOADS)
def test_requests_can_be_sent(scale: Scale, name: str) -> None:
    """Ids are in the vocabulary and mean nothing special; what comes first comes first."""
    for phase in made(name, scale):
        assert phase.requests
        assert phase.concurrency >= 1
        for number, request in enumerate(phase.requests):
            assert request.prompt
            assert 10 <= min(request.prompt) <= max(request.prompt) < scale.vocabulary
            assert request.output_tokens >= 1
            assert request.after is None or request.after < number


def test_documents_are_stored_by_one_and_hit_by_the_other(scale: Scale) -> None:
    found = made("documents", scale)

    assert [phase.name for phase in found] == [
        "populate 64",
        "all-hit 64",
        "populate 200",
        "all-hit 200",
        "burst 2 x 200",
        "burst 5 x 200 of 2 documents",
        "decode while 4 x 200 load",
    ]
    for stored, hit in (found[0:2], found[2:4]):
        assert (stored.instance, hit.instance) == (0, 1)
        assert (stored.concurrency, hit.concurrency) == (1, 1)
        assert [r.prompt for r in stored.requests] == [r.prompt for r in hit.requests]
        assert len({r.prompt for r in stored.requests}) == scale.count
        assert all(r.reused_tokens == len(r.prompt) for r in hit.requests)
        assert all(r.reused_tokens < 8 for r in stored.requests)
    for burst, size in zip(found[4:6], scale.bursts, strict=True):
        assert len(burst.requests) == burst.concurrency == size == burst.axes["concurrency"]
        assert burst.instance == 1
        assert all(r.arrival_s is None and r.reused_tokens == 200 for r in burst.requests)


def test_hits_one_at_a_time_can_be_repeated(scale: Scale) -> None:
    stored, *hits = made("documents", replace(scale, hits=3))[:4]

    prompts = [request.prompt for request in stored.requests]
    assert [[request.prompt for request in hit.requests] for hit in hits] == 3 * [prompts]
    assert len({hit.name for hit in hits}) == 1, "they are one row"
    assert [hit.recomputed for hit in hits] == [scale.count, 0, 0], (
        "what is computed anyway need not be asked again"
    )


def test_hits_arrive_in_the_middle_of_an_answer(scale: Scale) -> None:
    phase = made("burst", scale)[-1]
    decoding, *hits = phase.requests

    assert decoding.arrival_s == 0 and decoding.reused_tokens < 8
    assert decoding.output_tokens > 10 * max(hit.output_tokens for hit in hits)
    assert len(hits) == 4
    assert all(hit.arrival_s and hit.reused_tokens == len(hit.prompt) for hit in hits)
    assert phase.concurrency == 5


def test_requests_reuse_what_their_ratio_says(scale: Scale) -> None:
    populate, *ratios = made("reuse", scale)

    assert populate.instance == 0
    assert sum(request.reused_tokens for request in populate.requests) < 8 * 6
    assert [phase.axes["reuse"] for phase in ratios] == [0, 0.1, 0.3, 0.5, 0.9, 1]
    for phase in ratios:
        shared = round(phase.axes["reuse"] * 200)
        assert phase.instance == 1
        assert len(phase.requests) == scale.count
        for request in phase.requests:
            assert len(request.prompt) == 200
            # By chance, a few of the tokens after the system prompt are the same.
            assert shared <= request.reused_tokens < shared + 8
    assert len({r.prompt for r in ratios[-2].requests}) == scale.count


def test_a_ratio_out_of_range_is_refused(scale: Scale) -> None:
    with pytest.raises(ValueError, match=r"1\.5.*from 0 to 1"):
        workload_reuse.phases(scale, 0, (0.5, 1.5))


def test_turns_continue_on_the_other_instance(scale: Scale) -> None:
    shape = workload_chat.ChatShape(4, turns=3, system=5, first=20, turn=7, answer=4, think_s=2)
    before, first, later = workload_chat.phases(scale, 0, shape)

    assert (first.instance, later.instance) == (None, None)
    assert len(first.requests) == 4 and len(later.requests) == 8
    assert not before.measured
    assert {request.prompt[:5] for request in first.requests} == {before.requests[0].prompt}
    assert all(5 <= request.reused_tokens < 5 + 8 for request in first.requests)
    served = {request.prompt: i % 2 for i, request in enumerate(first.requests)}
    for index, request in enumerate(later.requests):
        before = request.prompt[: -7 - 4]
        assert served.pop(before) != index % 2
        served[request.prompt] = index % 2
        assert request.reused_tokens >= len(before)
        if index >= 4:
            assert request.after is not None
            last = later.requests[request.after]
            assert last.prompt == before
            assert last.arrival_s is not None and request.arrival_s is not None
            assert last.arrival_s < request.arrival_s


def test_without_think_time_turns_follow_at_once(scale: Scale) -> None:
    *_, later = made("chat", scale)

    assert all(request.arrival_s is None for request in later.requests)


@pytest.mark.parametrize("shape", [{"conversations": 3}, {"turns": 1}])
def test_an_impossible_chat_is_refused(shape: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"conversations|turns"):
        workload_chat.ChatShape(**shape)


def test_reused_agrees_with_brute_force_on_prefixes_of_each_other() -> None:
    source, asked = TokenSource(26, 0), Asked()
    base = source.prompt(source.draw(50))
    prompts = [base[:n] for n in (20, 50, 10, 20, 35)]
    prompts += [base[:n] + source.prompt(source.draw(5)) for n in (0, 0, 15, 30, 48, 50)]
    prompts += [source.prompt(source.draw(n)) for n in range(1, 40)]
    earlier: list[tuple[int, ...]] = []
    for prompt in prompts:
        expected = max((common(prompt, one) for one in earlier), default=0)
        assert asked.reused(prompt) == expected
        earlier.append(prompt)


def test_a_vocabulary_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary of 12"):
        TokenSource(12, 0)


def test_replay_keeps_arrivals_lengths_and_prefixes(scale: Scale) -> None:
    (phase,) = workload_trace_phases(scale, trace.Replay())
    one, two, three, four = phase.requests

    assert phase.name == "small, 4 requests"
    assert phase.instance is None and phase.concurrency == 4
    assert [r.arrival_s for r in phase.requests] == [0, 0.005, 0.009, 0.009]
    assert [len(r.prompt) for r in phase.requests] == [1100, 1400, 600, 9]
    assert [r.output_tokens for r in phase.requests] == [9, 2, 1, 1]
    assert 1024 <= common(one.prompt, two.prompt) < 1032
    assert 512 <= common(one.prompt, three.prompt) < 520
    assert four.reused_tokens < 8


def test_replay_on_another_scale(scale: Scale) -> None:
    replay = trace.Replay(count=3, time_scale=2, length_scale=0.25, longest=300, longest_output=1)
    (phase,) = workload_trace_phases(scale, replay)
    one, two, three = phase.requests

    assert [r.arrival_s for r in phase.requests] == [0, 0.01, 0.018]
    assert [len(r.prompt) for r in phase.requests] == [275, 299, 150]  # the second would have 350
    assert [r.output_tokens for r in phase.requests] == [1, 1, 1]
    assert 256 <= common(one.prompt, two.prompt) < 264
    assert 128 <= common(one.prompt, three.prompt) < 136


def test_replay_begins_where_it_is_told(scale: Scale) -> None:
    (phase,) = workload_trace_phases(scale, trace.Replay(skip=2))

    assert [r.arrival_s for r in phase.requests] == [0, 0]
    assert all(r.reused_tokens < 8 for r in phase.requests)


def test_replay_after_what_came_before(scale: Scale) -> None:
    """What the first two requests have in common with the third is stored, and nothing else."""
    cold, warm = (
        workload_trace_phases(scale, trace.Replay(skip=2, warm=warm)) for warm in (False, True)
    )
    before, after = warm

    assert [phase.measured for phase in warm] == [False, True]
    assert [request.prompt for request in before.requests] == [cold[0].requests[0].prompt[:512]]
    assert [r.prompt for r in after.requests] == [r.prompt for r in cold[0].requests]
    assert after.requests[0].reused_tokens == 512
    assert after.name == "small, 2 requests after 2, warm"


def test_what_came_before_is_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    ids = [(0, 1, 2), (7,), (0, 1), (0, 1, 2, 3), (0, 9), (8,)]
    write_trace(path, [TraceRequest(0, 512 * len(one), 1, one) for one in ids])
    scale = replace(SMALL, trace=path)
    before, after = workload_trace_phases(scale, trace.Replay(skip=2, warm=True, longest=1101))

    assert [len(request.prompt) for request in before.requests] == [1100]
    assert [len(request.prompt) for request in after.requests] == [1024, 1100, 1024, 512]
    assert [r.reused_tokens // 8 * 8 for r in after.requests] == [1024, 1096, 512, 0]


def test_replay_without_a_trace_says_so() -> None:
    with pytest.raises(trace.TraceError, match="name one"):
        made("trace", SMALL)


@pytest.mark.parametrize("bad", [{"time_scale": -1}, {"length_scale": 0}, {"longest": 1}])
def test_an_impossible_replay_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"scale|longest"):
        trace.Replay(**bad)  # type: ignore[arg-type]


def workload_trace_phases(scale: Scale, replay: trace.Replay) -> list[Phase]:
    return trace.phases(scale, 0, replay)


def test_prompts_share_their_tokens_as_objects(scale: Scale) -> None:
    """Millions of tokens are kept until a run ends: eight bytes each, not forty."""
    one, two = (
        Request(phase.requests[0].prompt, 1)
        for phase in workload_documents.phases(replace(SMALL, vocabulary=5000), 0)[0:3:2]
    )
    same = set(one.prompt) & set(two.prompt)
    ids = {token: id(token) for token in one.prompt}
    assert all(ids[token] == id(token) for token in two.prompt if token in same)
