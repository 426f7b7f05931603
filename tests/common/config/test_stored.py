"""A run's configuration as its directory holds it: without the service around it, which may change."""

from pathlib import Path

import pytest

from common.config.file import parse_config
from common.config.run import RunConfig
from common.errors import ConfigError
from coordinator.context import identity

SETTINGS: dict[str, object] = {
    "model.path": "unused",
    "task.labels": ("no", "yes"),
    "alignment.steps": 0,
    "realignment.every": 0,
    "privacy.secure": True,
    "rounds.minimum": 3,
    "tls.certificate": Path("tls.crt"),
    "tls.key": Path("tls.key"),
    "tls.ca": Path("ca.crt"),
}


def test_a_run_of_sums_with_certificates_is_read_again_without_them(tmp_path: Path) -> None:
    """By status, export, rewind: what names the certificates is no part of the run."""
    config = parse_config(SETTINGS | {"run.directory": tmp_path}, "a test")
    stored = RunConfig.of_stored(identity(config))
    assert stored.privacy == config.privacy and stored.tls.certificate is None
    assert identity(stored) == identity(config)


def test_what_is_not_stored_must_say_by_what_workers_know_each_other(tmp_path: Path) -> None:
    without = {key: value for key, value in SETTINGS.items() if not key.startswith("tls.")}
    with pytest.raises(ConfigError, match=r"privacy\.secure needs"):
        parse_config(without | {"run.directory": tmp_path}, "a test")
