"""Sizes and durations as people write them: ``64GiB``, ``1.5 TiB``, ``500ms``, ``2m``."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER_AND_UNIT = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)

# A bare letter is binary, as in truncate(1) and dd(1); "B" after it makes it decimal, "iB" binary
# (IEC 80000-13).
_SIZE_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtp", start=1):
    _SIZE_UNITS[_letter] = _SIZE_UNITS[_letter + "i"] = _SIZE_UNITS[_letter + "ib"] = 1024**_power
    _SIZE_UNITS[_letter + "b"] = 1000**_power

_DURATION_UNITS_MS = {
    "us": Decimal("0.001"),
    "ms": Decimal(1),
    "": Decimal(1000),
    "s": Decimal(1000),
    "sec": Decimal(1000),
    "m": Decimal(60_000),
    "min": Decimal(60_000),
    "h": Decimal(3_600_000),
}


def parse_size(text: str) -> int:
    """Bytes in ``text`` (``4096``, ``512MiB``, ``1.5TiB``, ``64 GB``); raises ValueError."""
    number, unit = _split(text)
    try:
        return int(number * _SIZE_UNITS[unit])
    except KeyError:
        raise ValueError(f"unknown unit of size {unit!r}") from None


def parse_duration_ms(text: str) -> int:
    """Whole milliseconds in ``text`` (``10s``, ``500ms``, ``2m``; no unit: seconds); raises
    ValueError."""
    number, unit = _split(text)
    try:
        milliseconds = number * _DURATION_UNITS_MS[unit]
    except KeyError:
        raise ValueError(f"unknown unit of time {unit!r}") from None
    if milliseconds != int(milliseconds):
        raise ValueError("not a whole number of milliseconds")
    return int(milliseconds)


def format_size(size: int) -> str:
    """``size`` bytes for people, in binary units with at most one decimal: ``68719476736`` -> ``64
    GiB``."""
    if size < 1024:
        return f"{size} B"
    scaled = size / 1024
    units = iter(("KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = next(units)
    # 1023.95 would be shown as 1024.0: the next unit reads better.
    while scaled >= 1023.95 and (larger := next(units, None)):
        scaled, unit = scaled / 1024, larger
    return f"{scaled:.1f}".removesuffix(".0") + f" {unit}"


def format_duration_ms(milliseconds: int) -> str:
    """``milliseconds`` for people, in the largest unit of which there is at least one: ``90000`` ->
    ``1.5 min``."""
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if milliseconds >= length:
            return f"{milliseconds / length:.1f}".removesuffix(".0") + f" {unit}"
    return f"{milliseconds} ms"


def _split(text: str) -> tuple[Decimal, str]:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None:
        raise ValueError("not a number with a unit")
    return Decimal(match[1]), match[2].lower()
