"""Hosts of their own on one machine: network namespaces, joined by a switch over slow and lossy links.

A link is a pair of TAP devices. A thread takes the Ethernet frames that leave by one and brings them to the
other, late or not at all: what `tc netem` does, on kernels that are built without it too.
"""

import asyncio
import contextlib
import fcntl
import os
import random
import secrets
import shutil
import struct
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_TUN = Path("/dev/net/tun")
# Of linux/if_tun.h: attach to a device; Ethernet frames, without a header of the driver's.
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
# Longer than any frame of a device whose MTU is 1500.
_FRAME = 2048
# Files here are laid over those in /etc by `ip netns exec`.
_ETC = Path("/etc/netns")


class NoNamespaces(Exception):
    """This machine does not let us make hosts; says why."""


class Link:
    """A cable between a host and the switch, with a file descriptor for the device at each end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ends: tuple[int, int], delay: float, loss: float):
        self._loop, self._ends, self._delay, self._loss = loop, ends, delay, loss
        self._draw = random.Random(7)
        self._is_cut = False
        self.carried = self.lost = self.swallowed = 0

    def cut(self) -> None:
        """Nothing passes any more, and nobody is told: no reset, no unreachable host."""
        self._is_cut = True

    def mend(self) -> None:
        """Everything passes again."""
        self._is_cut = False

    def open(self) -> None:
        """Begin to carry."""
        for one, other in (self._ends, self._ends[::-1]):
            self._loop.add_reader(one, self._take, one, other)

    def _take(self, one: int, other: int) -> None:
        while True:
            try:
                frame = os.read(one, _FRAME)
            except OSError:
                return
            if self._is_cut:
                self.swallowed += 1
            elif self._draw.random() < self._loss:
                self.lost += 1
            else:
                self._loop.call_later(self._delay, self._give, other, frame)

    def _give(self, end: int, frame: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(end, frame)
            self.carried += 1


class Network:
    """Hosts that reach each other over one switch, by name: `names` maps a host to what others call it.

    Each link takes `delay` seconds and loses the share `loss` of the frames, each way; from host to host
    are two of them. The hosts have an empty network otherwise, and nothing of this machine's is touched.
    Raises NoNamespaces.
    """

    def __init__(self, names: dict[str, str], delay: float, loss: float) -> None:
        self._names, self._delay, self._loss = names, delay, loss
        # Several such networks can be on a machine, also one that was left behind.
        self._token = secrets.token_hex(3)
        self._undo = contextlib.ExitStack()
        self._loop = asyncio.new_event_loop()
        self.links: dict[str, Link] = {}
        self.addresses = {host: f"10.77.0.{number}" for number, host in enumerate(names, 1)}

    def on(self, host: str) -> list[str]:
        """What to put before a command, so that it runs on the host."""
        return ["ip", "netns", "exec", self._namespace(host)]

    def _namespace(self, host: str) -> str:
        return f"fedpft-{self._token}-{host}"

    def __enter__(self) -> Self:
        with self._undo as undo:
            self._build()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _build(self) -> None:
        if reason := _lacking():
            raise NoNamespaces(reason)
        switch = self._add_namespace("switch")
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        known = "".join(f"{self.addresses[host]} {name}\n" for host, name in self._names.items())
        for number, host in enumerate(self._names):
            namespace = self._add_namespace(host)
            self._write_etc(namespace, f"127.0.0.1 localhost\n{known}")
            here = self._add_device(f"fp{self._token}h{number}", namespace, "eth0")
            there = self._add_device(f"fp{self._token}s{number}", switch, f"port{number}")
            _ip("-n", namespace, "address", "add", f"{self.addresses[host]}/24", "dev", "eth0")
            _ip("-n", switch, "link", "set", f"port{number}", "master", "bridge")
            for where, device in ((namespace, "lo"), (namespace, "eth0"), (switch, f"port{number}")):
                _ip("-n", where, "link", "set", device, "up")
            self.links[host] = Link(self._loop, (here, there), self._delay, self._loss)
            self.links[host].open()
        thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        thread.start()
        self._undo.callback(self._loop.close)
        self._undo.callback(thread.join)
        self._undo.callback(self._loop.call_soon_threadsafe, self._loop.stop)

    def _add_namespace(self, host: str) -> str:
        namespace = self._namespace(host)
        try:
            _ip("netns", "add", namespace)
        except RuntimeError as error:
            raise NoNamespaces(str(error)) from None
        self._undo.callback(_ip, "netns", "delete", namespace)
        return namespace

    def _write_etc(self, namespace: str, hosts: str) -> None:
        folder = _ETC / namespace
        if not _ETC.exists():
            _ETC.mkdir()
            self._undo.callback(_ETC.rmdir)
        folder.mkdir()
        self._undo.callback(shutil.rmtree, folder)
        (folder / "hosts").write_text(hosts)

    def _add_device(self, name: str, namespace: str, renamed: str) -> int:
        """A TAP device in a namespace; it lives as long as the descriptor that is returned."""
        try:
            end = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            self._undo.callback(os.close, end)
            fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH", name.encode(), _IFF_TAP | _IFF_NO_PI))
        except OSError as error:
            raise NoNamespaces(f"{_TUN}: {error.strerror}") from None
        _ip("link", "set", name, "netns", namespace, "name", renamed)
        return end


def _lacking() -> str | None:
    """What this machine lacks to make hosts."""
    if os.geteuid():
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "there is no `ip` (Debian: iproute2)"
    return None if _TUN.exists() else f"there is no {_TUN}: the kernel has no TAP devices"


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
