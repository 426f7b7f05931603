"""The run's configuration: valid from birth, and errors that name key, rule and value."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.config import RunConfig
from common.config_file import load_config, template
from common.errors import ConfigError
from common.records import AdapterTargets

GIVEN: dict[str, Any] = {
    "model.path": "model",
    "task.labels": ("negative", "positive"),
    "data.public.path": "public.csv",
    "data.test.path": "test.csv",
}
SMALLEST = '[model]\npath = "m"\n[task]\nlabels = ["a", "b"]\n[data.public]\npath = "public.csv"\n'


def load(folder: Path, text: str) -> RunConfig:
    (folder / "run.toml").write_text(text, encoding="utf-8")
    return load_config(folder / "run.toml")


def test_the_template_loads_and_holds_every_default(tmp_path: Path) -> None:
    config = load(tmp_path, template(GIVEN))
    assert config.task.labels == ("negative", "positive")
    smallest = load(tmp_path, SMALLEST)
    for section in ("sub_fm", "alignment", "realignment", "adapter", "training", "rounds", "server"):
        assert getattr(config, section) == getattr(smallest, section), section


def test_the_template_takes_values_for_any_key(tmp_path: Path) -> None:
    values = {"adapter.targets": AdapterTargets.NONE, "rounds.sample": 2, "server.insecure": True}
    config = load(tmp_path, template(GIVEN | values))
    assert config.adapter.targets is AdapterTargets.NONE
    assert config.rounds.sample == 2
    assert config.server.insecure is True


def test_the_template_explains_every_key() -> None:
    lines = template(GIVEN).splitlines()
    keys = [i for i, line in enumerate(lines) if " =" in line and not line.startswith("# A")]
    assert len(keys) > 40
    for i in keys:
        assert lines[i - 1].startswith("# ") and len(lines[i - 1]) > 4, lines[i]


@given(st.lists(st.text(min_size=1), min_size=2, max_size=4, unique=True))
def test_the_template_keeps_any_text(labels: list[str]) -> None:
    written = tomllib.loads(template(GIVEN | {"task.labels": tuple(labels)}))
    assert written["task"]["labels"] == labels


def test_an_unknown_key_is_named_beside_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key adapter\.rnak \(known there: targets, rank, alpha"):
        load(tmp_path, SMALLEST + "[adapter]\nrnak = 8\n")


def test_an_unknown_key_in_an_optional_section_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key data\.public\.column \(known there: path, text_col"):
        load(tmp_path, SMALLEST + 'column = "text"\n')


def test_an_unknown_section_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key lora \(known there: run, model, task, data"):
        load(tmp_path, SMALLEST + "[lora]\nrank = 8\n")


@pytest.mark.parametrize(
    ("section", "entry", "told"),
    [
        ("adapter", "rank = 0", "adapter.rank must be >= 1, got 0"),
        ("adapter", "dropout = 1.0", "adapter.dropout must be < 1.0, got 1.0"),
        ("adapter", "alpha = 0", "adapter.alpha must be > 0.0, got 0"),
        ("adapter", 'targets = "all"', "adapter.targets must be 'none' or 'attention', got 'all'"),
        ("sub_fm", "drop_ratio = 1.0", "sub_fm.drop_ratio must be < 1.0, got 1.0"),
        ("sub_fm", "keep_first = -1", "sub_fm.keep_first must be >= 0, got -1"),
        ("sub_fm", 'construction = "x"', "construction must be 'ffn-pruning' or 'full', got 'x'"),
        ("realignment", "proportion = 0", "realignment.proportion must be > 0.0, got 0"),
        ("alignment", "warmup = 1.5", "alignment.warmup must be <= 1.0, got 1.5"),
        ("training", "learning_rate = nan", "training.learning_rate must be finite, got nan"),
        ("rounds", "workers = 0", "rounds.workers must be >= 1, got 0"),
        ("run", "seed = -1", "run.seed must be >= 0, got -1"),
    ],
)
def test_a_value_out_of_range_names_key_rule_and_value(
    tmp_path: Path, section: str, entry: str, told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, f"{SMALLEST}[{section}]\n{entry}\n")
    assert told in str(caught.value)
    assert str(tmp_path / "run.toml") in str(caught.value)


def test_all_faults_are_told_at_once_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, '[task]\nlabels = ["a", "a"]\n[adapter]\nrank = 0\n')
    told = str(caught.value)
    assert "model must be set" in told
    assert "labels must be distinct" in told
    assert "adapter.rank must be >= 1, got 0" in told
    assert "\n" not in told


def test_a_value_of_another_type_names_key_and_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rounds\.count is not valid \(.*integer.*\), got 'five'"):
        load(tmp_path, SMALLEST + '[rounds]\ncount = "five"\n')


def test_an_alignment_needs_public_data(tmp_path: Path) -> None:
    bare = '[model]\npath = "m"\n[task]\nlabels = ["a", "b"]\n'
    with pytest.raises(ConfigError, match=r"data\.public\.path must be set for an alignment"):
        load(tmp_path, bare)
    assert not load(tmp_path, bare + "[alignment]\nsteps = 0\n").aligns
    assert not load(tmp_path, bare + '[sub_fm]\nconstruction = "full"\n').aligns
    with pytest.raises(ConfigError, match=r"data\.public\.path must be set"):
        load(tmp_path, bare + "[alignment]\nsteps = 0\n[realignment]\nevery = 2\n")


def test_a_round_cannot_need_more_updates_than_it_has_workers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rounds\.minimum must not exceed"):
        load(tmp_path, SMALLEST + "[rounds]\nworkers = 5\nsample = 2\nminimum = 3\n")
    assert load(tmp_path, SMALLEST + "[rounds]\nworkers = 5\nminimum = 3\n").rounds.minimum == 3


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.toml: no such file; `fedpft init`"):
        load_config(tmp_path / "run.toml")


@pytest.mark.parametrize("content", [b"[model", b"a = ", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml: (not valid TOML|cannot be read)"):
        load_config(tmp_path / "run.toml")


def test_a_folder_is_not_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_paths_are_relative_to_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project" / "model").mkdir(parents=True)
    (tmp_path / "project" / "run.toml").write_text(template(GIVEN | {"run.directory": "out"}))
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("project/run.toml"))
    folder = tmp_path.resolve() / "project"
    assert config.run.directory == folder / "out"
    assert config.model.path == str(folder / "model")
    assert config.data.public is not None and config.data.public.path == folder / "public.csv"
    assert config.data.test is not None and config.data.test.path == folder / "test.csv"


def test_absolute_paths_and_hub_ids_stay_as_they_are(tmp_path: Path) -> None:
    values = {"run.directory": "/elsewhere/run", "model.path": "google-bert/bert-base-uncased"}
    config = load(tmp_path, template(GIVEN | values))
    assert config.run.directory == Path("/elsewhere/run")
    assert config.model.path == "google-bert/bert-base-uncased"


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST)
    with pytest.raises(ValidationError):
        config.adapter.rank = 4
