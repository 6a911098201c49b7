#!/usr/bin/env python3
"""Two machines on one CXL memory device, as near as QEMU gets to them.

Two guests have one file as their CXL type-3 memory, make a region and a DAX device of it, and share
a pool there, each as a host of its own. They store and read, one is killed while it stores and
comes back, one is frozen for longer than the other believes it alive. Every byte that is read is
compared. Exit status 1 at the first broken promise. See README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import guest_image
from guest import Guest, GuestError, SharedMemory

DEVICE = "/dev/dax0.0"
DEAD_AFTER = 5.0  # seconds; the default of beluga.dead_after


class BrokenPromise(Exception):
    """Something that must hold did not."""


def require(condition: bool, what: str, seen: object) -> None:
    if not condition:
        raise BrokenPromise(f"{what}: {seen}")


@dataclass
class Story:
    """What happens, in order. The guests are ``a`` (host id 0) and ``b`` (host id 1)."""

    a: Guest
    b: Guest
    visibility: str
    chunks: int
    chunk_size: int
    steps: list[dict[str, Any]] = field(default_factory=list)
    boots: list[dict[str, Any]] = field(default_factory=list)
    #: Numbers of the chunks of which each guest was told that they are stored.
    stored: dict[str, list[int]] = field(default_factory=lambda: {"a": [], "b": []})

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[dict[str, Any]]:
        """Times a step; what is put into the dictionary goes into the results."""
        facts: dict[str, Any] = {"step": what}
        begin = time.monotonic()
        yield facts
        facts["seconds"] = round(time.monotonic() - begin, 3)
        self.steps.append(facts)
        told = ", ".join(f"{k} {v}" for k, v in facts.items() if k not in ("step", "seconds"))
        print(f"{facts['seconds']:8.2f} s  {what}" + (f": {told}" if told else ""), flush=True)

    def tell(self) -> None:
        self.boot(self.a, self.b)
        self.form_the_pool()
        self.refuse_what_no_lock_could_stop()
        self.exchange()
        self.hold_across_machines()
        self.kill_while_storing()
        self.come_back()
        self.freeze_while_holding()
        self.settle()

    # ---- the acts

    def boot(self, *guests: Guest) -> None:
        with self.step(f"boot {' and '.join(guest.name for guest in guests)}") as facts:
            for guest in guests:
                guest.start()
            for guest in guests:
                facts[guest.name] = round(guest.await_boot(), 2)
                self.boots.append({"guest": guest.name, "seconds": facts[guest.name]})
        with self.step("make the region and the DAX device"):
            for guest in guests:
                guest.run("cxl", "create-region", "-t", "ram", "-d", "decoder0.0", "-m", "mem0")
                guest.run("daxctl", "reconfigure-device", "--mode=devdax", "dax0.0")

    def form_the_pool(self) -> None:
        with self.step("b finds no pool"):
            self.refused(self.b, "NotAPoolError", host_id=1)
        with self.step("a formats") as facts:
            options = ["--max-hosts", "4", "--visibility", self.visibility]
            facts["said"] = self.a.run("beluga", "format", DEVICE, *options).strip()
        with self.step("a attaches as host 0") as facts:
            facts.update(self.attach(self.a))
            require(facts["kind"] == "devdax", "the device is a DAX device", facts)
            require(facts["visibility"] == self.visibility, "visibility as formatted", facts)

    def refuse_what_no_lock_could_stop(self) -> None:
        """Machines do not see each other's file locks: only the pool itself can tell."""
        with self.step("b is refused a's host id"):
            self.refused(self.b, "HostInUseError", host_id=0)
        with self.step("b is refused to format over a"):
            try:
                self.b.run("beluga", "format", DEVICE, "--max-hosts", "4")
            except GuestError as error:
                require("is in use (host 0)" in str(error), "format says why", error)
            else:
                raise BrokenPromise("a pool was formatted over a live host")
        with self.step("b attaches as host 1") as facts:
            facts.update(self.attach(self.b))

    def exchange(self) -> None:
        for guest, other in ((self.a, self.b), (self.b, self.a)):
            with self.step(f"{guest.name} stores {self.chunks} chunks") as facts:
                self.store(guest, self.chunks)
                facts["bytes"] = self.chunks * self.chunk_size
            with self.step(f"{other.name} reads them"):
                self.read_all(other, of=guest)

    def hold_across_machines(self) -> None:
        """A lease of one machine keeps the other from reusing the chunk."""
        held = self.stored["a"][:4]
        with self.step("b holds chunks of a, which a removes and stores over") as facts:
            slots = self.b.order("hold", owner="a", numbers=held)
            require(len(slots) == len(held), "every chunk can be held", slots)
            self.remove_all(self.a)
            facts["reused"] = self.store_over(slots, first=1000, limit=4 * self.chunks)
            require(facts["reused"] == 0, "no slot is reused while it is leased", facts)
        with self.step("b looks at what it holds") as facts:
            facts.update(self.b.order("let_go", size=self.chunk_size))
            require(facts["valid"] == len(held), "leased chunks stay as they are", facts)
        with self.step("b reads what a stored"):
            self.read_all(self.b, of=self.a)

    def kill_while_storing(self) -> None:
        before = [*self.stored["a"]]
        self.a.send("store", owner="a", first=2000, count=100_000, size=self.chunk_size)
        self.b.send(
            "work", owner="b", first=2000, peer="a", peers=before, size=self.chunk_size,
            seconds=2 + 2 * DEAD_AFTER,
        )  # fmt: skip
        with self.step("a is killed while it stores, b works on") as facts:
            begin = time.monotonic()
            killed = 0.0
            alive: list[dict[str, Any]] = []
            dead: list[dict[str, Any]] = []
            for event in self.b.events():
                (dead if killed else alive).append(event)
                require(event["result"] in ("STORED", "hits"), "b is served", event)
                if event["event"] == "store":
                    self.stored["b"].append(event["number"])
                if not killed and time.monotonic() - begin > 2:
                    self.a.kill()
                    killed = time.monotonic()
            self.stored["a"] += [
                e["number"] for e in self.a.last_words() if e["result"] == "STORED"
            ]
            facts["a_stored"] = len(self.stored["a"]) - len(before)
            facts["b_operations"] = {"a_alive": len(alive), "a_dead": len(dead)}
            facts["b_slowest_ms"] = {
                when: round(1000 * max(event["seconds"] for event in events), 1)
                for when, events in (("a_alive", alive), ("a_dead", dead))
            }
            slowest = max(event["seconds"] for event in dead)
            require(slowest < DEAD_AFTER / 2, "b does not wait until a is judged dead", facts)
        with self.step("b reads all that a had stored"):
            self.read_all(self.b, of=self.a)
        with self.step("b checks the pool, and is refused the dead a's host id") as facts:
            facts["said"] = self.b.run("beluga", "check", DEVICE).strip()
            self.refused(self.b, "HostInUseError", host_id=0)

    def come_back(self) -> None:
        self.boot(self.a)
        with self.step("a attaches as host 0 again") as facts:
            facts.update(self.attach(self.a))
        with self.step("a finds its chunks warm"):
            self.read_all(self.a, of=self.a)
        with self.step("a reads b's"):
            self.read_all(self.a, of=self.b)
        with self.step("a asks b to remove chunks") as facts:
            unwanted = self.stored["b"][: self.chunks]
            facts["asked"] = self.a.order("remove", owner="b", numbers=unwanted)
            limit = time.monotonic() + DEAD_AFTER
            while left := self.a.order("present", owner="b", numbers=unwanted):
                require(time.monotonic() < limit, "a live owner removes what it is asked to", left)
            del self.stored["b"][: self.chunks]
        with self.step("a stores again, b reads"):
            self.store(self.a, self.chunks, first=500_000)
            self.read_all(self.b, of=self.a)

    def freeze_while_holding(self) -> None:
        """A frozen guest's clocks stand still: when it wakes, its leases seem fresh to it."""
        held = self.stored["a"][:8]
        with self.step("b holds chunks of a, and is frozen past dead_after") as facts:
            slots = self.b.order("hold", owner="a", numbers=held)
            require(len(slots) == len(held), "every chunk can be held", slots)
            self.b.freeze()
            time.sleep(2 * DEAD_AFTER)
            self.remove_all(self.a)
            capacity = self.a.order("stats")["bytes_capacity"] // self.chunk_size
            facts["reused"] = self.store_over(slots, first=600_000, limit=capacity)
            facts["stored"] = len(self.stored["a"])
            require(facts["reused"] > 0, "what the dead held is used again", facts)
            self.b.thaw()
        with self.step("b looks at what it holds") as facts:
            facts.update(self.b.order("let_go", size=self.chunk_size))
            require(facts["wrong"] == 0, "no view is valid and has wrong bytes", facts)
        with self.step("b reads what a stored"):
            self.read_all(self.b, of=self.a)
        with self.step("b stores, a reads"):
            self.store(self.b, self.chunks, first=600_000)
            self.read_all(self.a, of=self.b)

    def settle(self) -> None:
        for guest in (self.a, self.b):
            with self.step(f"beluga check on {guest.name}") as facts:
                facts["said"] = guest.run("beluga", "check", DEVICE).strip()
            with self.step(f"counters of {guest.name}") as facts:
                facts.update(guest.order("stats"))
                require(facts["garbage"] == 0, "no garbage was met", facts)
            guest.order("detach")

    # ---- what the acts are made of

    def attach(self, guest: Guest) -> dict[str, Any]:
        attached: dict[str, Any] = guest.order("attach", path=DEVICE, host_id=guest.host_id)
        return attached

    def refused(self, guest: Guest, kind: str, **options: Any) -> None:
        try:
            seen = guest.order("attach", path=DEVICE, **options)
        except GuestError as error:
            require(error.kind == kind, f"refused with {kind}", error)
        else:
            raise BrokenPromise(f"{guest.name} was not refused: {seen}")

    def store(self, guest: Guest, count: int, first: int = 0) -> None:
        guest.send("store", owner=guest.name, first=first, count=count, size=self.chunk_size)
        for event in guest.events():
            require(event["result"] == "STORED", "a chunk is stored", event)
            self.stored[guest.name].append(event["number"])

    def remove_all(self, guest: Guest) -> None:
        """Removes all chunks that it has stored."""
        numbers = self.stored[guest.name]
        removed = guest.order("remove", owner=guest.name, numbers=numbers)
        require(removed == len(numbers), "every own chunk is removed", removed)
        left = guest.order("present", owner=guest.name, numbers=numbers)
        require(left == 0, "a removed chunk is not found", left)
        numbers.clear()

    def store_over(self, slots: list[int], *, first: int, limit: int) -> int:
        """``a`` stores until it gets some of these slots, or ``limit`` chunks. How many it got."""
        for at in range(0, limit, self.chunks):
            self.store(self.a, self.chunks, first=first + at)
            numbers = self.stored["a"][-self.chunks :]
            taken = set(self.a.order("slots", owner="a", numbers=numbers))
            if reused := len(taken & set(slots)):
                return reused
        return 0

    def read_all(self, guest: Guest, *, of: Guest) -> None:
        numbers = self.stored[of.name]
        found = guest.order("read", owner=of.name, numbers=numbers, size=self.chunk_size)
        require(found["hits"] == len(numbers), "every chunk is there, and right", found)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "?")


def first_line(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[
        0
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lmcache-beluga-guests"
    parser.add_argument("--visibility", choices=("coherent", "noncoherent"), default="noncoherent")
    parser.add_argument("--chunks", type=int, default=32, help="that each guest stores at a time")
    parser.add_argument("--chunk-size", type=int, default=256 << 10, help="bytes")
    parser.add_argument(
        "--memory-size", type=int, default=512, help="MiB of CXL memory, a multiple of 256"
    )
    parser.add_argument("--ram", type=int, default=768, help="MiB of each guest's own memory")
    parser.add_argument("--cache", type=Path, default=cache, help="where the guest image is kept")
    parser.add_argument("--wheel", type=Path, help="of this package, for Python 3.13; else built")
    parser.add_argument("--mirror", default=guest_image.MIRROR, help="of Debian packages")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit that switches the guests off
    memory = SharedMemory(
        Path(f"/dev/shm/beluga-guests-{os.getpid()}.memory"), options.memory_size << 20
    )
    with tempfile.TemporaryDirectory(prefix="beluga-guests-") as name:
        directory = Path(name)
        begin = time.monotonic()
        image = guest_image.build(
            options.cache, directory, wheel=options.wheel, mirror=options.mirror
        )
        built = time.monotonic() - begin
        print(f"{built:8.2f} s  build the guest's image", flush=True)
        a, b = (
            Guest(name, host_id, image, memory, directory, ram=options.ram << 20)
            for host_id, name in enumerate("ab")
        )
        story = Story(a, b, options.visibility, options.chunks, options.chunk_size)
        failure = ""
        begin = time.monotonic()
        try:
            memory.create()
            story.tell()
        except (BrokenPromise, GuestError, RuntimeError) as error:
            failure = f"{type(error).__name__}: {error}"
        finally:
            for guest in (a, b):
                if guest.running:
                    guest.kill()
            memory.path.unlink(missing_ok=True)
        seconds = time.monotonic() - begin
    print(f"{seconds:8.2f} s  all of it: {failure or 'every promise was kept'}", flush=True)
    if options.json:
        packages = ("cxl", "daxctl", "python3")
        result = {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "load_at_end": os.getloadavg()[0],
            "qemu": first_line("qemu-system-x86_64", "--version"),
            "accelerator": "tcg",
            "guest": {name: image.packages.get(name) for name in packages}
            | {"kernel": next((x for x in image.packages if x.startswith("linux-image-6")), None)},
            "visibility": options.visibility,
            "chunk_bytes": options.chunk_size,
            "memory_mib": options.memory_size,
            "build_seconds": round(built, 2),
            "run_seconds": round(seconds, 2),
            "boots": story.boots,
            "failure": failure or None,
            "steps": story.steps,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
