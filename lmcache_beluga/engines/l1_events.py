"""Tells the rest of an LMCache server what happens to the objects of its L1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lmcache.v1.distributed.eviction import L1EvictionPolicy
from lmcache.v1.distributed.internal_api import L1ManagerListener, L1ObjectMeta
from lmcache.v1.mp_observability.event import Event, EventType
from lmcache.v1.mp_observability.event_bus import get_event_bus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from lmcache.v1.distributed.api import L1BackendType, ObjectKey
    from lmcache.v1.memory_management import MemoryObj


class L1Events:
    """Calls listeners and publishes on LMCache's event bus what its own L1 would.

    What the pool evicts is told to nobody: it is a decision of the chunk's owner, perhaps on
    another host. LMCache's eviction policy is not registered, since the pool evicts by itself, and
    the policy would keep every key that it hears of until it is told that the key is gone.
    """

    def __init__(self, tag: str, backend: L1BackendType) -> None:
        self._tag = tag
        self._backend = backend
        self._bus = get_event_bus()
        self._listeners: list[L1ManagerListener] = []

    def register(self, listener: L1ManagerListener) -> None:
        if not isinstance(listener, L1EvictionPolicy):
            self._listeners = [*self._listeners, listener]

    def read_reserved(self, keys: list[ObjectKey]) -> None:
        for listener in self._listeners:
            listener.on_l1_keys_reserved_read(keys)
        self._publish(EventType.L1_READ_RESERVED, keys)

    def read_finished(
        self, keys: list[ObjectKey], deleted: Sequence[tuple[ObjectKey, MemoryObj]]
    ) -> None:
        for listener in self._listeners:
            listener.on_l1_keys_read_finished(keys)
        self._publish(EventType.L1_READ_FINISHED, keys)
        if deleted:
            metas = self._metas([obj for _, obj in deleted])
            self.deleted([key for key, _ in deleted], metas)

    def write_reserved(self, keys: list[ObjectKey], writer: str) -> None:
        for listener in self._listeners:
            listener.on_l1_keys_reserved_write(keys)
        self._publish(EventType.L1_WRITE_RESERVED, keys, tag=writer)

    def write_finished(self, keys: list[ObjectKey], objs: list[MemoryObj]) -> None:
        if not keys:
            return
        for listener in self._listeners:
            listener.on_l1_keys_write_finished(keys)
        self._publish(EventType.L1_WRITE_FINISHED, keys, meta=self._metas(objs))

    def write_finished_and_read_reserved(
        self, keys: list[ObjectKey], objs: list[MemoryObj]
    ) -> None:
        for listener in self._listeners:
            listener.on_l1_keys_finish_write_and_reserve_read(keys)
        metas = self._metas(objs)
        self._publish(EventType.L1_WRITE_FINISHED_AND_READ_RESERVED, keys, meta=metas)

    def deleted(self, keys: list[ObjectKey], metas: list[L1ObjectMeta]) -> None:
        if not keys:
            return
        for listener in self._listeners:
            listener.on_l1_keys_deleted_by_manager(keys)
        self._publish(EventType.L1_KEYS_EVICTED, keys, meta=metas)

    def never_written(self, keys: list[ObjectKey]) -> None:
        """Reservations ended; nothing readable was deleted."""
        if keys:
            for listener in self._listeners:
                listener.on_l1_keys_deleted_by_manager(keys)

    def accessed(self, keys: list[ObjectKey]) -> None:
        for listener in self._listeners:
            listener.on_l1_keys_accessed(keys)
        if self._bus.has_subscribers(EventType.L1_KEYS_ACCESSED):
            self._publish(EventType.L1_KEYS_ACCESSED, keys)

    def _metas(self, objs: list[MemoryObj]) -> list[L1ObjectMeta]:
        return [L1ObjectMeta(obj.get_size(), self._backend) for obj in objs]

    def _publish(self, event_type: EventType, keys: list[ObjectKey], **more: Any) -> None:
        metadata = {"l1_tag": self._tag, "keys": keys, **more}
        self._bus.publish(Event(event_type=event_type, metadata=metadata))
