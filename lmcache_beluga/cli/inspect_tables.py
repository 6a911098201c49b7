"""The tables of ``beluga inspect``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from lmcache_beluga.cli.tables import facts, host_name, host_state, table
from lmcache_beluga.quantities import format_size

# Two columns halve the height, so that --watch fits on a screen.
_TWO_COLUMNS = 110


def tables_of(found: dict[str, Any], width: int) -> RenderableType:
    """What ``Pool.inspect()`` returned, drawn for a terminal of ``width`` characters."""
    geometry, occupancy = found["geometry"], found["occupancy"]
    state = Group(
        _geometry(geometry),
        _devices(geometry["devices"]),
        _hosts(found["hosts"]),
        _occupancy(occupancy, geometry),
        _slot_sizes(occupancy["cuts"]),
    )
    counters = _counters(found["counters"])
    if width < _TWO_COLUMNS:
        return Group(state, counters)
    columns = Table.grid(padding=(0, 4))
    columns.add_row(state, counters)
    return columns


def _geometry(geometry: dict[str, Any]) -> Table:
    created = datetime.fromtimestamp(geometry["created_unix_ms"] / 1000, UTC)
    return facts(
        "Pool",
        [
            ("uuid", geometry["uuid"]),
            ("format", f"version {geometry['version']}, {_visibility(geometry)}"),
            ("created", f"{created:%Y-%m-%d %H:%M:%S} UTC"),
            ("extents", f"{geometry['extents']} of {format_size(geometry['extent_size'])}"),
            (
                "slots",
                f"{format_size(geometry['min_slot'])} and larger, "
                f"at most {geometry['max_slots']} per extent",
            ),
            (
                "metadata",
                f"{format_size(geometry['metadata_bytes'])}, "
                f"{geometry['buckets']} buckets, {geometry['record_bytes']} B per record",
            ),
            ("key scheme", escape(geometry["key_scheme"] or "set by the first engine")),
        ],
    )


def _visibility(geometry: dict[str, Any]) -> str:
    if geometry["visibility"] == "coherent":
        return "coherent"
    return f"noncoherent, payload {geometry['payload_visibility']}"


def _devices(devices: list[dict[str, Any]]) -> Table:
    result = table("Path", "Kind", title="Devices")
    result.add_column("Size", justify="right")
    result.add_column("Extents", justify="right")
    for device in devices:
        result.add_row(
            escape(device["path"]),
            device["kind"],
            format_size(device["size"]),
            str(device["extents"]),
        )
    return result


def _hosts(hosts: list[dict[str, Any]]) -> Table:
    result = table("Host", "Name", "State", title="Hosts")
    for heading in ("Processes", "Extents", "Incarnation"):
        result.add_column(heading, justify="right")
    for host in hosts:
        result.add_row(
            f"{host['id']}{' (this one)' if host['self'] else ''}",
            host_name(host["name"]),
            host_state(host["state"], live=host["live"], left=host["left"]),
            str(host["processes"]),
            str(host["extents"]),
            str(host["incarnation"]),
        )
    return result


def _occupancy(occupancy: dict[str, Any], geometry: dict[str, Any]) -> Table:
    used, capacity = occupancy["bytes_used"], occupancy["bytes_capacity"]
    return facts(
        "Occupancy",
        [
            ("chunks", f"{occupancy['chunks']}, {occupancy['leased']} of them in use"),
            (
                "payload",
                f"{format_size(used)} of {format_size(capacity)} ({_percent(used, capacity)})",
            ),
            ("lost in slots", format_size(occupancy["bytes_wasted"])),
            (
                "extents",
                f"{occupancy['extents_owned']} owned, {occupancy['extents_free']} free, "
                f"{geometry['extents']} in all",
            ),
            ("being written", str(occupancy["writing"])),
            ("being removed", str(occupancy["closing"])),
        ],
    )


def _slot_sizes(cuts: list[dict[str, Any]]) -> Table:
    result = table(title="Slot sizes")
    for heading in ("Slot", "Extents", "Slots", "Used", "Full", "Payload", "Waste"):
        result.add_column(heading, justify="right")
    for cut in cuts:
        result.add_row(
            format_size(cut["slot_size"]),
            str(cut["extents"]),
            str(cut["slots"]),
            str(cut["used"]),
            _percent(cut["used"], cut["slots"]),
            format_size(cut["bytes_used"]),
            f"{cut['waste_ratio']:.1%}",
        )
    return result


def _counters(counters: dict[str, int]) -> Table:
    hits, misses = counters["hits"], counters["misses"]
    rows = [("hit rate", _percent(hits, hits + misses))]
    for name, value in counters.items():
        shown = format_size(value) if name.endswith("_bytes") else f"{value:,}"
        rows.append((name.replace("_", " "), shown))
    return facts("Counters", rows)


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
