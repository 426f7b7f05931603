"""`fedpft init` as people call it: what it writes is what they mean, and `coordinator` takes it."""

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.main import app
from common.config.file import load_config, parse_config
from common.errors import ConfigError
from common.trust.authority import Authority
from common.trust.identity import Identity, Role


def init(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["init", str(folder / "run.toml"), *arguments])


@pytest.mark.parametrize("labels", ["a, b", " a,b ", "a ,b", "a,\tb"])
def test_blanks_beside_the_names_of_classes_are_no_part_of_them(tmp_path: Path, labels: str) -> None:
    assert init(tmp_path, "--labels", labels).exit_code == 0
    assert load_config(tmp_path / "run.toml").task.labels == ("a", "b")


@pytest.mark.parametrize("labels", ["", " ", "a", "a,", "a,,b", ",a,b", "a,a", "a, a"])
def test_names_of_classes_that_are_none_are_refused(tmp_path: Path, labels: str) -> None:
    done = init(tmp_path, "--labels", labels)
    assert done.exit_code == 2
    assert f"--labels must name at least 2 classes, all different, got {labels!r}" in done.stderr
    assert not (tmp_path / "run.toml").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--labels", "a,b", "--preset", "sst2"], "--labels does not go with --preset"),
        (["--labels", "a,b", "--task", "causal-lm"], "--labels does not go with --task causal-lm"),
        (["--test", "x.csv", "--preset", "sst2"], "--test does not go with --preset"),
    ],
)
def test_what_would_be_passed_over_is_refused(tmp_path: Path, arguments: list[str], told: str) -> None:
    done = init(tmp_path, *arguments)
    assert done.exit_code == 2 and told in done.stderr


def test_a_path_means_the_same_when_the_file_is_written_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(
        app, ["init", "runs/one/run.toml", "--test", "data/test.csv", "--public", "p.csv"]
    )
    assert done.exit_code == 0, done.output
    config = load_config(tmp_path / "runs" / "one" / "run.toml")
    assert config.data.test is not None and config.data.test.path is not None
    assert config.data.public is not None and config.data.public.path is not None
    assert config.data.test.path.resolve() == tmp_path / "data" / "test.csv"
    assert config.data.public.path.resolve() == tmp_path / "p.csv"


@pytest.mark.parametrize("labels", [["a", " b"], ["a", "b "], ["a", ""], ["a", "\t"]])
def test_a_blank_around_a_class_in_the_configuration_is_refused(labels: list[str]) -> None:
    with pytest.raises(ConfigError, match="labels must neither be empty nor begin or end with a blank, got"):
        parse_config({"model.path": "x", "task.labels": labels}, "run.toml")


def test_certificates_bring_mutual_tls_and_secure_sums(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "authority", "test")
    authority.issue(Identity(Role.COORDINATOR, "hub"), tmp_path / "hub", ["127.0.0.1"])
    authority.issue(Identity(Role.WORKER, "a"), tmp_path / "a")
    done = init(tmp_path, "--labels", "a,b", "--tls", str(tmp_path / "hub"))
    assert done.exit_code == 0, done.output
    config = load_config(tmp_path / "run.toml")
    assert config.privacy.secure and config.rounds.minimum == 3
    assert config.tls.certificate == tmp_path / "hub" / "tls.crt"
    # A worker's certificate is no coordinator's.
    (tmp_path / "run.toml").unlink()
    done = init(tmp_path, "--tls", str(tmp_path / "a"))
    assert done.exit_code == 2 and "a certificate of role coordinator is needed" in done.stderr
    # What workers tell of their classes is in no sum: the file would be none that runs.
    done = init(tmp_path, "--labels", "ask", "--tls", str(tmp_path / "hub"))
    assert done.exit_code == 2 and "--labels ask does not go with --tls" in done.stderr
    done = init(tmp_path, "--tls", str(tmp_path / "nothing"))
    assert done.exit_code == 2 and not (tmp_path / "run.toml").exists()
