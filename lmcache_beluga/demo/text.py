"""The demo's prompt: a long real text, one token per byte.

The text is the Constitution of the United States with its amendments, then the Declaration of
Independence, as Debian ships them (``us-constitution`` and ``us-declaration`` of the package
``miscfiles`` 1.5, there marked public domain). Byte tokens need no tokenizer, hence no download.
"""

from __future__ import annotations

from importlib import resources

VOCABULARY = 256
"""Number of distinct tokens: one per byte value."""

_FILES = ("constitution.txt", "declaration.txt")


def text() -> bytes:
    """The whole text, as ASCII bytes."""
    folder = resources.files(__package__)
    return b"\n\n".join(folder.joinpath(name).read_bytes() for name in _FILES)


def tokens(count: int) -> list[int]:
    """The first ``count`` tokens of the text.

    Raises:
        ValueError: ``count`` is not positive, or the text is shorter.
    """
    whole = text()
    if not 0 < count <= len(whole):
        raise ValueError(f"the demo's text has {len(whole)} tokens, {count} were asked for")
    return list(whole[:count])
