"""A server's configuration, and those of the runs that are submitted to it."""

from pathlib import Path

import pytest

from common.config.run import RunConfig
from common.config.service import TlsSection
from common.config.serving import ServeConfig, load_serve_config, submitted_config
from common.errors import ConfigError

RUN = '[model]\npath = "./fm"\n[task]\nlabels = ["a", "b"]\n[alignment]\nsteps = 0\n'


def submitted(text: str, *settings: str, serving: ServeConfig | None = None) -> RunConfig:
    return submitted_config(
        text, settings, serving or ServeConfig(), Path("/srv/fedpft/runs/r1"), Path("/srv/fedpft")
    )


def test_paths_are_the_servers_and_its_folder_is_the_runs() -> None:
    config = submitted(RUN + '[data.test]\npath = "data/test.csv"\n', "rounds.count=3")
    assert config.run.directory == Path("/srv/fedpft/runs/r1")
    assert config.model.path == "/srv/fedpft/fm"
    assert config.data.test is not None and config.data.test.path == Path("/srv/fedpft/data/test.csv")
    assert config.rounds.count == 3


def test_certificates_are_the_servers_and_rules_between_keys_know_of_them() -> None:
    private = RUN + "[privacy]\nsecure = true\n[rounds]\nworkers = 3\nminimum = 3\n"
    with pytest.raises(ConfigError, match=r"privacy\.secure"):
        submitted(private)
    tls = TlsSection(certificate=Path("/c/tls.crt"), key=Path("/c/tls.key"), ca=Path("/c/ca.crt"))
    config = submitted(private, serving=ServeConfig(tls=tls))
    assert config.privacy.secure and config.tls == tls


@pytest.mark.parametrize(
    ("text", "settings", "told"),
    [
        (RUN + "[server]\nlisten = '127.0.0.1:1'\n", (), r"leave out \[server\]: where the coordinator"),
        (RUN + "[tls]\nkey = 'k'\n", (), r"leave out \[tls\]: the certificates are the server's"),
        (RUN, ("tls.key=k",), r"leave out \[tls\]"),
        (RUN + "[run]\ndirectory = 'x'\n", (), r"leave out run\.directory: the server chooses it"),
        (RUN, ("tracking.directory=x",), r"leave out tracking\.directory: it is in the run's own"),
        (RUN, ("rounds.count=0",), r"rounds\.count must be >= 1, got 0"),
        (RUN, ("model.path.x=1",), r"model\.path\.x cannot be set: path is no section"),
        (RUN, ("odd",), r"setting 'odd' must be SECTION\.KEY=VALUE"),
        ("[", (), "not valid TOML"),
        ("run = 1\n" + RUN, (), "run is not valid"),
        ("", (), r"model must be set"),
        (RUN + "[odd]\n", (), "unknown key odd"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(text: str, settings: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        submitted(text, *settings)
    assert "\n" not in str(caught.value)


def test_the_command_line_goes_on_top_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(
        '[runs]\nat_once = 2\nquota = 10\n[tls]\ncertificate = "tls.crt"\nkey = "tls.key"\nca = "ca.crt"\n'
    )
    config = load_serve_config(path, {"runs": {"at_once": 7}, "server": {"listen": "127.0.0.1:0"}})
    assert (config.runs.at_once, config.runs.quota) == (7, 10)
    assert config.server.listen == "127.0.0.1:0"
    assert config.tls.key == tmp_path / "tls.key"
    assert load_serve_config(None, {}) == ServeConfig()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[runs]\nat_once = 0\n", r"runs\.at_once must be >= 1, got 0"),
        ("[rounds]\n", "unknown key rounds"),
        ("[runs\n", "not valid TOML"),
        ("runs = 1\n", "runs is not valid"),
    ],
)
def test_what_is_wrong_with_the_servers_file_is_told(tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"{path}.*{told}"):
        load_serve_config(path, {"runs": {}})


def test_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_serve_config(tmp_path / "nothing.toml", {})
