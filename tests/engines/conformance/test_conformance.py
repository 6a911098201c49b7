"""What a user of the cache may rely on, whichever of LMCache's interfaces it is reached through."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from pathlib import Path

from processes import wait_until
from surface import SIZE, Chunk, Surface

from lmcache_beluga import Pool

Open = Callable[..., Surface]

PROMPT = [Chunk(number) for number in range(8)]


def put(surface: Surface, chunks: list[Chunk], version: int = 0) -> bool:
    return surface.store(chunks, [chunk.data(version) for chunk in chunks])


def expect(surface: Surface, chunks: list[Chunk], version: int = 0) -> None:
    assert surface.lookup(chunks) == [True] * len(chunks)
    assert surface.load(chunks) == [chunk.data(version) for chunk in chunks]


def test_what_was_stored_is_found_and_loaded(open_surface: Open) -> None:
    surface = open_surface()
    assert surface.lookup(PROMPT) == [False] * len(PROMPT)
    assert surface.load(PROMPT) == [None] * len(PROMPT)
    assert put(surface, PROMPT)
    expect(surface, PROMPT)
    assert surface.held() == 0


def test_gaps_are_misses_and_the_rest_is_found(open_surface: Open) -> None:
    surface = open_surface()
    assert put(surface, PROMPT[::2])
    assert surface.lookup(PROMPT) == [True, False] * 4
    for chunk, loaded in zip(PROMPT, surface.load(PROMPT), strict=True):
        assert loaded == (chunk.data() if chunk.number % 2 == 0 else None)


def test_a_chunk_never_changes(open_surface: Open) -> None:
    """Who stores a key again is told that it is there, and the bytes stay."""
    surface = open_surface()
    assert put(surface, PROMPT)
    assert put(surface, PROMPT, version=1)
    expect(surface, PROMPT, version=0)


def test_others_find_it_at_once(open_surface: Open) -> None:
    first, second = open_surface(), open_surface()
    assert put(first, PROMPT)
    expect(second, PROMPT)
    more = [Chunk(number) for number in range(100, 104)]
    assert put(second, more)
    expect(first, more)


def test_users_do_not_see_each_other(open_surface: Open) -> None:
    """The same tokens under three salts are three chunks, and a salt without one has none."""
    surface, other = open_surface(), open_surface()
    alice, bob, nobody = Chunk(1, "alice"), Chunk(1, "bob"), Chunk(1)
    assert put(surface, [alice])
    assert other.lookup([alice, bob, nobody]) == [True, False, False]
    assert other.load([bob, nobody]) == [None, None]
    assert put(other, [bob])
    expect(surface, [alice, bob])
    surface.delete([bob])
    wait_until(lambda: surface.lookup([bob]) == [False])
    expect(other, [alice])


def test_deleted_is_gone_everywhere_and_can_be_stored_anew(open_surface: Open) -> None:
    first, second = open_surface(), open_surface()
    assert put(first, PROMPT)
    second.delete(PROMPT[:3])
    wait_until(lambda: first.lookup(PROMPT[:3]) == [False] * 3)
    assert second.load(PROMPT[:3]) == [None] * 3
    expect(first, PROMPT[3:])
    assert put(second, PROMPT[:3], version=1)
    expect(first, PROMPT[:3], version=1)
    assert first.held() == second.held() == 0


def test_what_is_held_survives_any_pressure(open_surface: Open) -> None:
    """A pool for some sixty chunks: four stay, however much is stored by this and by others."""
    surface = open_surface(size="4MiB", extent_size="256KiB")
    other = open_surface(size="4MiB", extent_size="256KiB")
    kept = PROMPT[:4]
    assert put(surface, kept)
    assert surface.hold(kept) == [True] * 4
    for number in range(1000, 1400, 8):
        flood = [Chunk(n) for n in range(number, number + 8)]
        put(surface if number % 16 else other, flood)
    assert surface.load(kept) == [chunk.data() for chunk in kept]
    surface.let_go(kept)
    assert surface.held() == 0


def test_held_twice_is_let_go_twice(open_surface: Open) -> None:
    surface = open_surface()
    assert put(surface, PROMPT)
    surface.hold(PROMPT)
    surface.hold(PROMPT)
    surface.let_go(PROMPT)
    assert surface.held() > 0
    surface.let_go(PROMPT)
    assert surface.held() == 0
    surface.let_go(PROMPT)  # nothing to undo: no error
    assert surface.held() == 0


def test_a_pool_that_is_all_held_refuses_and_goes_on(open_surface: Open) -> None:
    surface = open_surface(size="4MiB", extent_size="256KiB")
    held: list[Chunk] = []
    refused: list[Chunk] = []
    for number in range(2 * (4 << 20) // SIZE):
        chunk = Chunk(number)
        (held if put(surface, [chunk]) and surface.hold([chunk])[0] else refused).append(chunk)
    assert held and refused
    assert surface.load(held) == [chunk.data() for chunk in held]
    assert surface.lookup(refused) == [False] * len(refused)
    surface.let_go(held)
    put(surface, refused[:8])
    found = surface.lookup(refused[:8])
    there = [chunk for chunk, hit in zip(refused[:8], found, strict=True) if hit]
    assert there, "there is room again (though chunks of one bucket may crowd each other out)"
    expect(surface, there)


def test_the_pool_is_warm_and_clean_for_the_next(open_surface: Open, pool: Path) -> None:
    surface = open_surface()
    assert put(surface, PROMPT)
    surface.hold(PROMPT)
    surface.close()
    surface.close()
    expect(open_surface(), PROMPT)
    with Pool.attach(pool, heartbeat_ms=20) as looking:
        report = looking.check()
        assert (report.errors, report.writing) == ([], 0)


def test_threads_on_two_handles(open_surface: Open) -> None:
    """Every load is the chunk's bytes or a miss, while others store, hold and delete the same."""
    handles = [open_surface(size="8MiB", extent_size="256KiB") for _ in range(2)]
    wrong: list[str] = []

    def work(number: int) -> None:
        surface, dice = handles[number % 2], random.Random(number)
        try:
            for _ in range(40):
                chunks = [Chunk(n) for n in dice.sample(range(40), 4)]
                step = dice.randrange(4)
                if step == 0:
                    put(surface, chunks)
                elif step == 1:
                    surface.delete(chunks[:1])
                else:
                    found = surface.hold(chunks)
                    for chunk, data in zip(chunks, surface.load(chunks), strict=True):
                        if data not in (None, chunk.data()):
                            wrong.append(f"{chunk} has other bytes")
                    surface.let_go([c for c, there in zip(chunks, found, strict=True) if there])
        except BaseException as error:
            wrong.append(repr(error))
            raise

    # The event descriptors of one handle are for one waiting thread.
    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert wrong == []
    assert [surface.held() for surface in handles] == [0, 0]
