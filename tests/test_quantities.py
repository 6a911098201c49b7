"""Sizes and durations: what people write is what they read back."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcache_beluga.quantities import (
    format_duration_ms,
    format_size,
    parse_duration_ms,
    parse_size,
)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        ((1 << 20) - 1, "1 MiB"),
        (64 << 30, "64 GiB"),
        (3 << 39, "1.5 TiB"),
        (5000 << 50, "5000 PiB"),
    ],
)
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1000, "1 s"),
        (90_000, "1.5 min"),
        (7_200_000, "2 h"),
        (36 * 3_600_000, "1.5 d"),
    ],
)
def test_format_duration(milliseconds: int, text: str) -> None:
    assert format_duration_ms(milliseconds) == text


@given(st.integers(0, 1 << 60))
def test_shown_size_is_close_to_the_size(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.05)


@given(st.integers(0, 1 << 62))
def test_bytes_are_exact(size: int) -> None:
    assert parse_size(f"{size}") == parse_size(f"{size} B") == size


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (parse_size, parse_duration_ms):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0
