"""The service around a run: where it listens, whom it lets in, what it allows, where it computes."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from common.address import Address
from common.config.section import Positive, Section
from common.errors import AddressError
from common.trust.identity import NAME

WorkerName = Annotated[str, Field(pattern=NAME)]


def _address(text: str) -> str:
    try:
        Address.parse(text)
    except AddressError as error:
        raise ValueError(str(error)) from None
    return text


Listen = Annotated[str, AfterValidator(_address)]


# Of `compute.device_map`.
AUTO, DISK = "auto", "disk"
_LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?")


def _device_map(given: object) -> object:
    if given is None or given == AUTO:
        return given
    if not isinstance(given, dict) or not given:
        raise ValueError(
            'must be "auto", or name layers and their devices, such as { "layers.0-11" = "cpu" }'
        )
    for key, place in given.items():
        match = _LAYERS.fullmatch(str(key))
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f'keys must be "layers.N" or "layers.N-M", N <= M, got "{key}"')
        if not isinstance(place, str) or not place:
            raise ValueError(f'"{key}" must be a device, such as "cuda:1", "cpu" or "disk", got {place!r}')
    return given


DeviceMap = Annotated[Literal["auto"] | dict[str, str], BeforeValidator(_device_map)]


class ServerSection(Section):
    """Where the coordinator listens."""

    listen: Listen = "127.0.0.1:7070"
    """HOST:PORT for workers and `fedpft status`; port 0 takes a free one."""
    metrics: Listen | None = "127.0.0.1:7071"
    """HOST:PORT of the Prometheus metrics; port 0 takes a free one, unset serves none."""
    insecure: bool = False
    """Allow plain text on addresses other machines can reach, of the metrics also beside [tls]."""
    page: Listen | None = None
    """HOST:PORT of a read-only web page that shows the run; plain text, so that addresses that other machines
    can reach need insecure."""
    health: Listen | None = None
    """HOST:PORT of gRPC's health service alone, in plain text also beside [tls], for probes of containers."""
    linger_seconds: Annotated[float, Field(ge=0)] = 0.0
    """After the run's end go on serving its status and metrics this long, for what scrapes and watches."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Workers report this often; one silent for three intervals counts as lost."""
    keepalive_seconds: Annotated[float, Field(ge=1)] = 20.0
    """A connection silent for so long is probed; without an answer for as long again it counts as dead."""
    max_transfers: Positive = 8
    """Artifact downloads served at the same time; more wait their turn."""


class TlsSection(Section):
    """Mutual TLS, with the files that `fedpft certs issue` writes; files that change are read anew."""

    certificate: Path | None = None
    """The coordinator's certificate, tls.crt; unset speaks plain text."""
    key: Path | None = None
    """Its key, tls.key."""
    ca: Path | None = None
    """Certificate of the authority whose workers and admins are let in, ca.crt."""
    revoked: Path | None = None
    """The authority's list of revoked certificates, revoked.pem; unset knows of none."""

    @model_validator(mode="after")
    def _complete(self) -> "TlsSection":
        given = [path is not None for path in (self.certificate, self.key, self.ca)]
        if any(given) and not all(given):
            raise ValueError("certificate, key and ca must be set together")
        if self.revoked is not None and not all(given):
            raise ValueError("revoked needs certificate, key and ca")
        return self


class AdmissionSection(Section):
    """Who may take part in the run."""

    workers: tuple[WorkerName, ...] | None = None
    """Names of the workers that may join; unset admits any, under TLS any that has a worker's certificate."""


class LimitsSection(Section):
    """What workers may ask for. Who goes beyond is refused and told why; the run goes on."""

    examples: Positive = 10_000_000
    """Most examples that a worker may name: with the mean, its weight."""
    target_tokens: Positive = 10_000_000_000
    """Most target tokens that a worker may name: of a language model, its weight."""
    workers: Positive = 10_000
    """Most names under which workers may join."""
    updates_per_round: Positive = 3
    """Different updates of one worker that a round takes; each stays on disk until the round is over."""
    calls_per_second: Annotated[float, Field(gt=0)] = 50.0
    """Calls that a worker may make in the long run; those of ten seconds at once."""
    streams: Positive = 64
    """Streams that a worker may have open at the same time: tasks, downloads, uploads; those of connections
    that died unnoticed count until they are noticed."""
    calls: Positive = 30_000
    """Calls and streams of all workers at the same time; more are turned away."""
    upload_bytes_per_second: Annotated[float, Field(gt=0)] = 1024.0
    """An upload slower than this on average, after a minute, is broken off; it may go on where it was."""
    disk_gigabytes: Annotated[float, Field(gt=0)] | None = None
    """While artifacts and uploads take more than this, no update is taken; workers try again. Unset: any."""


class ComputeSection(Section):
    """Where the coordinator computes."""

    device: str = "cpu"
    """A torch device, such as "cpu" or "cuda:0"."""
    device_map: DeviceMap | None = None
    """Where the FM's layers are held: "auto" fills device, then other GPUs, memory and disk, in this order;
    or by number, such as { "layers.0-11" = "cuda:1", "layers.12" = "disk" }, on a device, in memory ("cpu")
    or on "disk". What is not named is on device, and so is all of it where this is unset."""
    max_gigabytes: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Under device_map = "auto": most of the FM on a device, such as { "cuda:0" = 20, "cpu" = 60 }. Of others
    nine tenths of what is free, of device itself, where the sub-FM is too, half."""
    offload_folder: Path | None = None
    """Folder for layers on "disk": a copy of them lies there while the coordinator runs."""
    threads: Positive | None = None
    """CPU threads of torch; unset takes all cores. Part of what makes a result repeat."""

    @model_validator(mode="after")
    def _placed(self) -> "ComputeSection":
        if self.max_gigabytes and self.device_map != AUTO:
            raise ValueError('max_gigabytes needs device_map = "auto"')
        on_disk = isinstance(self.device_map, dict) and DISK in self.device_map.values()
        if on_disk and self.offload_folder is None:
            raise ValueError('offload_folder must be set for layers on "disk" in device_map')
        return self
