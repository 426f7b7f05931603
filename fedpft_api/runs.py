"""A run: started, watched, looked at."""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from common.address import Address, require_loopback
from common.config.file import anchored, load_config, parse_config, template
from common.config.run import RunConfig
from common.errors import StoreError, Unreachable
from common.run_status import Event, RunStatus
from common.storage.files import holder, write_atomically
from common.trust.identity import Role
from common.trust.tls import open_tls
from coordinator.campaign.liveness import ENDPOINT_FILE, resting_status
from coordinator.campaign.status import open_run
from coordinator.owner.admin_client import Admin
from coordinator.storage.store import Store
from fedpft_api.processes import Service

T = TypeVar("T")

# A configuration: a run.toml, or its keys; dotted, or as tables within tables.
Configuration = Path | str | Mapping[str, Any]

_LOOK_SECONDS = 0.3
# Of a run that a notebook starts: whichever ports are free, unless it names some.
_FREE_PORTS = {"server.listen": "127.0.0.1:0", "server.metrics": "127.0.0.1:0"}


class Run(Service):
    """A run whose coordinator is a process of this one."""

    def __init__(self, config: RunConfig, file: Path) -> None:
        self.directory, self.config = config.run.directory, config
        arguments = ["--config", str(file), "--log", "human"]
        super().__init__("the coordinator", "coordinator", arguments, self.directory / "coordinator.log")

    @property
    def address(self) -> str:
        """Where its workers find it, HOST:PORT, as soon as it listens. Raises RunFailed when it has ended."""
        while self.alive:
            if (found := _endpoint(self.directory)).get("pid") == self.pid:
                # Where it listens may be every address of this host.
                return str(Address.parse(found["address"]).from_here)
            time.sleep(_LOOK_SECONDS)
        raise self.failure()


def configuration(given: Configuration) -> RunConfig:
    """A run's configuration, checked. Paths count from the run.toml's folder, or from here.

    Raises ConfigError that names the key, the rule and the value.
    """
    if isinstance(given, Mapping):
        return anchored(parse_config(_dotted(given), "the configuration"), Path.cwd())
    return load_config(Path(given))


def submit(given: Configuration) -> Run:
    """Start a run's coordinator as a process, or go on with the run that its directory holds.

    Keys are written to run.toml in the directory. The process ends with this one, in order. What keeps it
    from starting is told by `address`, `wait` and `watch`. Raises ConfigError, StoreError.
    """
    if isinstance(given, Mapping):
        settings = _FREE_PORTS | _dotted(given)
        config = configuration(settings)
        file = config.run.directory / "run.toml"
        written = {key: _value(config, key) for key in settings} | {"run.directory": "."}
        write_atomically(file, template(written).encode())
    else:
        config, file = configuration(given), Path(given)
    return Run(config, file)


def status(where: Run | Path | str, tls: Path | None = None, insecure: bool = False) -> RunStatus:
    """Where a run stands: by its directory, also after its end, or, with more of its workers, by HOST:PORT.

    `tls` and `insecure` are those of `fedpft status`, for an address. Raises StoreError, Unreachable,
    AddressError, CertificateError, NotAllowed.
    """
    if not isinstance(where, str):
        store, config = open_run(_directory(where))
        with closing(store):
            return resting_status(store, config)
    with _admin(where, tls, insecure) as (admin, run):
        told: RunStatus = run(admin.status())
        return told


def watch(
    where: Run | Path | str, after: int = 0, tls: Path | None = None, insecure: bool = False
) -> Iterator[Event]:
    """What has happened in a run since event number `after`, and what happens, until its process ends.

    Raises what `status` raises, and, of a `Run`, RunFailed when its process ended badly.
    """
    if isinstance(where, str):
        yield from _told_by(where, after, tls, insecure)
        return
    directory = _directory(where)
    while True:
        at_work = where.alive if isinstance(where, Run) else holder(directory) is not None
        for event in _events(directory, after, waits=at_work or isinstance(where, Run)):
            yield event
            after = event.sequence
        if not at_work:
            break
        time.sleep(_LOOK_SECONDS)
    if isinstance(where, Run):
        where.wait()


def _events(directory: Path, after: int, waits: bool) -> list[Event]:
    """None yet where the store is still being made, if that is waited for. Raises StoreError."""
    try:
        with closing(Store.existing(directory)) as store:
            return store.events.all(after)
    except StoreError:
        if not waits:
            raise
        return []


def _told_by(address: str, after: int, tls: Path | None, insecure: bool) -> Iterator[Event]:
    with _admin(address, tls, insecure) as (admin, run):
        run(admin.status())
        events = admin.events(after)
        while True:
            try:
                yield run(anext(events))
            except (StopAsyncIteration, Unreachable):
                return


@contextmanager
def _admin(address: str, tls: Path | None, insecure: bool) -> Iterator[tuple[Admin, Any]]:
    """A connection, and what runs its calls: in a thread, for a notebook's own thread has a loop at work."""
    peer = Address.of_peer(address)
    if tls is None:
        require_loopback(peer, insecure)
    opened = open_tls(tls, Role.ADMIN)
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as thread:

        async def awaited(work: Awaitable[T]) -> T:
            return await work

        def run(work: Awaitable[T]) -> T:
            return thread.submit(loop.run_until_complete, awaited(work)).result()

        async def connected() -> Admin:
            return Admin(peer, opened)

        admin = run(connected())
        try:
            yield admin, run
        finally:
            run(admin.__aexit__(None, None, None))
            thread.submit(loop.close).result()


def _directory(where: Run | Path) -> Path:
    return where.directory if isinstance(where, Run) else where


def _endpoint(directory: Path) -> Mapping[str, Any]:
    try:
        found = json.loads((directory / ENDPOINT_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _dotted(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Tables within tables → dotted keys, the last value of a key; paths as text."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            found |= _dotted(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return found


def _value(config: RunConfig, key: str) -> Any:
    """As it is to stand in a file that lies elsewhere."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return str(value) if isinstance(value, Path) else value
