"""Whether LMCache's server is to hand single blocks to the copy engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lmcache.v1.multiprocess import object_group_transfer

from lmcache_beluga import Pool
from lmcache_beluga.engines.l1_copy_path import copy_small_blocks_as_wholes

KIB = 1024


def context(*blocks: int) -> Any:
    """A cache whose layers have blocks of so many bytes of keys."""
    shapes = [SimpleNamespace(bs=16, nh=1, hs=nbytes // 32, element_size=2) for nbytes in blocks]
    group = SimpleNamespace(kernel_group_indices=list(range(len(blocks))))
    return SimpleNamespace(
        kv_layer_groups_manager=SimpleNamespace(object_groups=[group]),
        get_shape_desc=shapes.__getitem__,
    )


@pytest.mark.parametrize(
    ("blocks", "direct"),
    [
        ((32 * KIB,), False),
        ((64 * KIB,), True),
        ((1024 * KIB, 32 * KIB), False),
    ],
)
def test_small_blocks_are_copied_as_wholes(
    monkeypatch: pytest.MonkeyPatch, blocks: tuple[int, ...], direct: bool
) -> None:
    def stock(
        cache_context: Any, object_group_id: int, memory_objs: Any, block_ids_host: Any
    ) -> bool:
        return True

    monkeypatch.setattr(object_group_transfer, "direct_transfer_supported", stock)
    copy_small_blocks_as_wholes()
    assert object_group_transfer.direct_transfer_supported(context(*blocks), 0, [], [[1]]) is direct


def test_stores_are_left_alone(monkeypatch: pytest.MonkeyPatch, pool_path: Path) -> None:
    """A kernel that gathers for them would slow the prompt that is being computed."""

    def stock(
        cache_context: Any, object_group_id: int, memory_objs: Any, block_ids_host: Any
    ) -> bool:
        return True

    monkeypatch.setattr(object_group_transfer, "direct_transfer_supported", stock)
    copy_small_blocks_as_wholes()
    Pool.format(pool_path, size=16 << 20)
    with Pool.attach(pool_path) as pool, pool.reserve(KIB) as slot:
        written = SimpleNamespace(hold=slot)
        direct = object_group_transfer.direct_transfer_supported
        assert direct(context(32 * KIB), 0, [None, written], [[1]])


def test_lmcache_may_still_say_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of layouts that the copy engine cannot do."""

    def stock(
        cache_context: Any, object_group_id: int, memory_objs: Any, block_ids_host: Any
    ) -> bool:
        return False

    monkeypatch.setattr(object_group_transfer, "direct_transfer_supported", stock)
    copy_small_blocks_as_wholes()
    assert not object_group_transfer.direct_transfer_supported(context(2048 * KIB), 0, [], [[1]])


def test_a_function_that_has_changed_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stock(request: Any) -> bool:
        return True

    monkeypatch.setattr(object_group_transfer, "direct_transfer_supported", stock)
    copy_small_blocks_as_wholes()
    assert object_group_transfer.direct_transfer_supported is stock
    assert "block by block" in caplog.text


def test_it_fits_the_lmcache_that_is_installed() -> None:
    assert object_group_transfer.transfer_kv_per_object_group.__code__.co_names.count(
        "direct_transfer_supported"
    )
