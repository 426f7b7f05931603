"""`fedpft serve`: its own configuration, and those of the runs that are submitted to it."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from common.config.file import anchored, explain, parse_settings
from common.config.run import RunConfig
from common.config.section import Positive, Section
from common.config.service import ServerSection, TlsSection
from common.errors import ConfigError

# What is the server's to say; and where it says so.
_THE_SERVERS = {
    "server": "where the coordinator listens is the server's matter",
    "tls": "the certificates are the server's",
}


class RunsSection(Section):
    """How many runs are held, and what they may take."""

    at_once: Positive = 4
    """Runs that are held open at the same time; the others wait, by priority, then age."""
    quota: Positive | None = None
    """Bytes that all runs may take on disk: beyond, none begins. Unset: any."""
    run_quota: Positive | None = None
    """Bytes that one run may take on disk: beyond, it fails. Unset: any."""
    calls: Positive = 30_000
    """Calls and streams of all runs' workers at the same time; more are turned away."""
    queue: Annotated[int, Field(ge=1)] = 1000
    """Runs that may wait; more are refused."""


class ServeConfig(Section):
    """The whole file."""

    runs: RunsSection = RunsSection()
    """How many runs are held, and what they may take."""
    server: ServerSection = ServerSection()
    """Where the coordinator listens."""
    tls: TlsSection = TlsSection()
    """Mutual TLS, with the files that `fedpft certs issue` writes; files that change are read anew."""


def load_serve_config(path: Path | None, given: dict[str, dict[str, Any]]) -> ServeConfig:
    """A server's configuration: what its file says, and on top what the command line gives, by section.

    Relative paths in the file are relative to its folder. Raises ConfigError.
    """
    raw = {} if path is None else _toml(_text(path), str(path))
    for name, values in given.items():
        if values:
            section = raw.get(name, {})
            raw[name] = (section if isinstance(section, dict) else {}) | values
    try:
        config = ServeConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path or 'fedpft serve'}: {explain(error, ServeConfig)}") from None
    if path is None:
        return config
    folder = path.parent.resolve()
    files = {name: getattr(config.tls, name) for name in type(config.tls).model_fields}
    found = {name: None if file is None else folder / file for name, file in files.items()}
    return config.model_copy(update={"tls": config.tls.model_copy(update=found)})


def submitted_config(
    text: str, settings: Sequence[str], serving: ServeConfig, directory: Path, folder: Path
) -> RunConfig:
    """A submitted run's configuration, with the server's [server] and [tls], in `directory`.

    Relative paths in it are relative to `folder`, on the server's host. Raises ConfigError.
    """
    origin = "the submitted configuration"
    raw = _toml(text, origin)
    for key, value in parse_settings(settings).items():
        *sections, name = key.split(".")
        table = raw
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{origin}: {key} cannot be set: {section} is no section")
        table[name] = value
    for section, why in _THE_SERVERS.items():
        if section in raw:
            raise ConfigError(f"{origin}: leave out [{section}]: {why}")
    run = raw.get("run", {})
    if isinstance(run, dict) and "directory" in run:
        raise ConfigError(f"{origin}: leave out run.directory: the server chooses it")
    tracking = raw.get("tracking", {})
    if isinstance(tracking, dict) and "directory" in tracking:
        raise ConfigError(f"{origin}: leave out tracking.directory: it is in the run's own")
    # Before the rules between keys are looked at, for they need to know of TLS.
    raw |= {"server": serving.server.model_dump(), "tls": serving.tls.model_dump()}
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error, RunConfig)}") from None
    placed = config.model_copy(update={"run": config.run.model_copy(update={"directory": directory})})
    return anchored(placed, folder)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _toml(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{origin}: not valid TOML: {error}") from error
