"""Writes initramfs archives (cpio, "newc"). The kernel unpacks several that follow each other."""

from __future__ import annotations

from dataclasses import dataclass, field

_DIRECTORY = 0o040755
_REGULAR = 0o100000


@dataclass
class Archive:
    """Files by their path in the guest, without a leading slash; directories come by themselves."""

    _entries: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def add(self, path: str, data: bytes, mode: int = 0o644) -> None:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            self._entries.setdefault("/".join(parts[:depth]), (_DIRECTORY, b""))
        self._entries[path] = (_REGULAR | mode, data)

    def pack(self) -> bytes:
        out = bytearray()
        for inode, (path, (mode, data)) in enumerate(self._entries.items(), start=1):
            _append(out, path, inode, mode, data)
        _append(out, "TRAILER!!!", 0, 0, b"")
        return bytes(out) + b"\0" * (-len(out) % 512)


def _append(out: bytearray, path: str, inode: int, mode: int, data: bytes) -> None:
    name = path.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device and rdevice (major, minor), name, checksum
    numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name), 0)
    out += b"070701" + b"".join(b"%08x" % number for number in numbers) + name
    out += b"\0" * (-len(out) % 4)
    out += data
    out += b"\0" * (-len(out) % 4)
