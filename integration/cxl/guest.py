"""One QEMU guest: a machine with a CXL memory device that another guest has too."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guest_image import Image

BOOT_LIMIT = 180.0
ANSWER_LIMIT = 180.0


class GuestError(Exception):
    """What an order ended with in the guest."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


@dataclass
class SharedMemory:
    """The file that is both guests' CXL memory. CXL regions are multiples of 256 MiB."""

    path: Path
    size: int

    def create(self) -> None:
        with self.path.open("xb") as file:
            file.truncate(self.size)


@dataclass
class Guest:
    name: str
    host_id: int
    image: Image
    memory: SharedMemory
    directory: Path
    ram: int = 768 << 20
    #: As on a disk: the same after each boot.
    machine_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def command(self) -> list[str]:
        """CPU emulation, not KVM: QEMU models CXL windows as I/O, and KVM's instruction emulator
        does not know the vector and cache instructions that then reach it. Linux refuses CXL
        regions on a CPU that says it is virtual, for such a one cannot flush all its caches."""
        window = self.memory.size
        return [
            "qemu-system-x86_64", "-nodefaults", "-no-reboot", "-display", "none",
            "-accel", "tcg", "-cpu", "max,hypervisor=off", "-smp", "1", "-m", f"{self.ram >> 20}M",
            "-M", f"q35,cxl=on,cxl-fmw.0.targets.0=cxl.0,cxl-fmw.0.size={window}",
            "-object", f"memory-backend-file,id=shared,share=on,mem-path={self.memory.path},"
            f"size={self.memory.size}",
            "-device", "pxb-cxl,id=cxl.0,bus=pcie.0,bus_nr=12",
            "-device", "cxl-rp,id=port0,bus=cxl.0,port=0,chassis=0,slot=2",
            "-device", "cxl-type3,bus=port0,volatile-memdev=shared,id=cxl-memory",
            "-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd),
            "-append", "console=ttyS0 panic=-1 quiet "
            f"systemd.machine_id={self.machine_id} systemd.hostname={self.name}",
            "-chardev", f"file,id=console,path={self.console},append=on",
            "-serial", "chardev:console",
            "-chardev", f"socket,id=orders,path={self._socket('orders')},server=on,wait=off",
            "-device", "virtio-serial,bus=pcie.0", "-device", "virtserialport,chardev=orders",
            "-qmp", f"unix:{self._socket('qmp')},server=on,wait=off",
        ]  # fmt: skip

    @property
    def console(self) -> Path:
        return self.directory / f"{self.name}.console"

    def _socket(self, what: str) -> Path:
        return self.directory / f"{self.name}.{what}"

    # ---- power

    def start(self) -> None:
        """Switches it on."""
        self._started = time.monotonic()
        self._buffer = b""
        self._process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL)
        self._orders = self._connect("orders")
        self._qmp = self._connect("qmp")
        self._monitor("qmp_capabilities")

    def await_boot(self) -> float:
        """Waits until it takes orders. Seconds since it was switched on."""
        ready = self._message(BOOT_LIMIT)
        assert ready.get("event") == "ready", ready
        return time.monotonic() - self._started

    def kill(self) -> None:
        """Ends the machine between any two instructions: SIGKILL to QEMU."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._qmp.close()
        with self._orders:
            while received := self._orders.recv(65536):
                self._buffer += received

    def last_words(self) -> list[dict[str, Any]]:
        """Events that it still got out before it was killed."""
        *lines, _cut_off = self._buffer.split(b"\n")
        self._buffer = b""
        return [json.loads(line) for line in lines]

    @property
    def running(self) -> bool:
        return hasattr(self, "_process") and self._process.poll() is None

    def freeze(self) -> None:
        """Stops its CPU and its clocks, as a hypervisor does that migrates or saves it."""
        self._monitor("stop")

    def thaw(self) -> None:
        self._monitor("cont")

    def _connect(self, what: str) -> socket.socket:
        path = self._socket(what)
        deadline = time.monotonic() + 20
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(path))
                return connection
            except OSError:
                connection.close()
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{self.name}: QEMU did not start") from None
                time.sleep(0.02)

    def _monitor(self, command: str) -> None:
        self._qmp.sendall(json.dumps({"execute": command}).encode() + b"\n")
        answers = self._qmp.makefile("r")
        while "return" not in json.loads(answers.readline()):
            pass

    # ---- orders

    def send(self, do: str, **arguments: Any) -> None:
        """Gives an order without waiting for anything."""
        self._orders.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")

    def events(self) -> Iterator[dict[str, Any]]:
        """Events of the order that was sent last, until its answer, which ends it."""
        while True:
            message = self._message(ANSWER_LIMIT)
            if "error" in message:
                raise GuestError(message["error"], message["message"])
            if "answer" in message:
                self.answer = message["answer"]
                return
            yield message

    def order(self, do: str, **arguments: Any) -> Any:
        """Gives an order and waits for its answer."""
        self.send(do, **arguments)
        for _ in self.events():
            pass
        return self.answer

    def run(self, *argv: str) -> str:
        """Runs a command in the guest, and returns what it printed."""
        done = self.order("run", argv=list(argv), env={"BELUGA_HOST_ID": str(self.host_id)})
        if done["status"] != 0:
            raise GuestError(argv[0], f"exit status {done['status']}: {done['stderr']}")
        return str(done["stdout"])

    def _message(self, limit: float) -> dict[str, Any]:
        deadline = time.monotonic() + limit
        while b"\n" not in self._buffer:
            self._orders.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                received = self._orders.recv(65536)
            except TimeoutError:
                raise RuntimeError(f"{self.name} is silent\n{self._console_tail()}") from None
            if not received:
                raise RuntimeError(f"{self.name} has ended\n{self._console_tail()}")
            self._buffer += received
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def _console_tail(self) -> str:
        return "\n".join(self.console.read_text(errors="replace").splitlines()[-30:])
