"""The types that settings have: what each accepts, from YAML or from text, and how it is shown."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from lmcache_beluga.quantities import (
    format_duration_ms,
    format_size,
    parse_duration_ms,
    parse_size,
)

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Kind(Generic[T_co]):
    """One type of setting."""

    name: str
    """A few words for the table of settings, with the unit of a bare number."""
    accepts: str
    """For error messages: ``a size such as 64GiB``."""
    parse: Callable[[object], T_co]
    """From a value in YAML, or text; raises ValueError with a reason."""
    show: Callable[[Any], str]
    """A value, as it may be written in a setting."""
    unit: str = ""
    """Of the parsed value: ``bytes``, ``ms`` or nothing."""
    split: Callable[[str], object] | None = None
    """Takes a variable of the environment apart before ``parse``, for kinds that are lists."""


def _text_or_number(value: object) -> str:
    # bool is an int in Python; "size: true" is a mistake, not a size of 1.
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"this is a {type(value).__name__}")
    if isinstance(value, float):
        return f"{value:f}"
    return str(value).strip()


def _whole(value: object) -> int:
    text = _text_or_number(value)
    try:
        return int(text)
    except ValueError:
        raise ValueError("not a whole number") from None


def integer(lowest: int, highest: int) -> Kind[int]:
    """Whole numbers from ``lowest`` to ``highest``, both included."""

    def parse(value: object) -> int:
        number = _whole(value)
        if not lowest <= number <= highest:
            raise ValueError("out of range")
        return number

    return Kind("integer", f"a whole number from {lowest} to {highest}", parse, str)


def _parse_size(value: object) -> int:
    size = parse_size(_text_or_number(value))
    if size < 1:
        raise ValueError("must be larger than zero")
    return size


SIZE = Kind(
    "size in bytes",
    "a size such as 64GiB, 1.5TiB, 64GB (decimal) or 4096 (bytes)",
    _parse_size,
    lambda size: "none" if size is None else format_size(size).replace(" ", ""),
    "bytes",
)


def duration(lowest_ms: int) -> Kind[int]:
    """Durations of at least ``lowest_ms`` milliseconds, kept in milliseconds; a bare number is
    seconds."""

    def parse(value: object) -> int:
        milliseconds = parse_duration_ms(_text_or_number(value))
        if milliseconds < lowest_ms:
            raise ValueError(f"must be at least {lowest_ms} ms")
        return milliseconds

    return Kind(
        "duration in seconds",
        f"a duration of {lowest_ms} ms or more such as 10s, 500ms, 2m or 10 (seconds)",
        parse,
        lambda milliseconds: format_duration_ms(milliseconds).replace(" ", ""),
        "ms",
    )


_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def _parse_boolean(value: object) -> bool:
    text = str(value).strip().lower()
    if not isinstance(value, (bool, int, str)) or text not in _BOOLEANS:
        raise ValueError("neither true nor false")
    return _BOOLEANS[text]


BOOLEAN = Kind("boolean", "true or false", _parse_boolean, lambda on: "true" if on else "false")


def choice(*values: str) -> Kind[str]:
    """One of several words."""

    def parse(value: object) -> str:
        if value not in values:
            raise ValueError("not one of the choices")
        return str(value)

    return Kind(" or ".join(f"`{v}`" for v in values), " or ".join(values), parse, str)


def _parse_text(value: object) -> str:
    text = _text_or_number(value)
    if not text:
        raise ValueError("empty")
    return text


TEXT = Kind("text", "a text", _parse_text, lambda text: "none" if text is None else str(text))


def _parse_uuid(value: object) -> str:
    digits = _text_or_number(value).lower().replace("-", "")
    if not re.fullmatch("[0-9a-f]{32}", digits):
        raise ValueError("not a uuid")
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


UUID = Kind(
    "uuid",
    "the uuid that `beluga inspect` shows, 32 hexadecimal digits",
    _parse_uuid,
    lambda uuid: "none" if uuid is None else str(uuid),
)


def _parse_mode(value: object) -> int:
    # YAML 1.1 reads an unquoted 0660 as the octal number it looks like; text is taken as octal too.
    if isinstance(value, int) and not isinstance(value, bool):
        mode = value
    else:
        text = _text_or_number(value).lower().removeprefix("0o")
        if not re.fullmatch("[0-7]{1,5}", text):
            raise ValueError("not an octal number")
        mode = int(text, 8)
    if mode & ~0o666:
        raise ValueError("only read and write permissions make sense")
    if mode & 0o600 != 0o600:
        raise ValueError("the owner must be able to read and write")
    return mode


FILE_MODE = Kind(
    "file mode",
    "an octal file mode in quotes such as '0600' or '0660'",
    _parse_mode,
    lambda mode: f"{mode:04o}",
)


def _parse_paths(value: object) -> tuple[str, ...]:
    if isinstance(value, (str, os.PathLike)):
        items: list[object] = [value]
    elif isinstance(value, (list, tuple)):
        items = list(value)
    else:
        raise ValueError(f"this is a {type(value).__name__}")
    paths = []
    for item in items:
        path = os.fspath(item) if isinstance(item, (str, os.PathLike)) else None
        if not isinstance(path, str) or not path.strip() or "\0" in path:
            raise ValueError("a path is a text that is not empty")
        paths.append(os.path.expanduser(path.strip()))
    if not paths:
        raise ValueError("an empty list")
    if len(set(paths)) != len(paths):
        raise ValueError("the same path twice")
    return tuple(paths)


def split_paths(text: str) -> list[str]:
    """The paths in a text such as ``/dev/dax0.0:/dev/dax1.0`` or ``/dev/dax0.0,/dev/dax1.0``."""
    return [part for part in re.split("[,:]", text) if part.strip()]


def _parse_path(value: object) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise ValueError(f"this is a {type(value).__name__}")
    return _parse_paths(value)[0]


PATH = Kind(
    "path",
    "a path such as /dev/shm",
    _parse_path,
    lambda path: "none" if path is None else str(path),
)

PATHS = Kind(
    "path or list",
    "a path such as /dev/shm/beluga.pool, or a list of paths",
    _parse_paths,
    lambda paths: ":".join(paths) or "none",
    split=split_paths,
)
