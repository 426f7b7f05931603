"""The run's configuration: valid from birth, and errors that name key, rule and value."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.config.choices import AlignmentMethod, Construction, LoraAveraging, Saliency, ServerOptimizer
from common.config.file import load_config, parse_config, parse_settings, template
from common.config.run import RunConfig
from common.errors import ConfigError
from common.records import AdapterTargets, TaskKind

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
    for section in set(RunConfig.model_fields) - {"model", "task", "data", "run"}:
        assert getattr(config, section) == getattr(smallest, section), section
    assert config.run.seed == smallest.run.seed


def test_the_template_takes_values_for_any_key(tmp_path: Path) -> None:
    values = {"adapter.targets": AdapterTargets.NONE, "rounds.sample": 2, "server.insecure": True}
    config = load(tmp_path, template(GIVEN | values))
    assert config.adapter.targets is AdapterTargets.NONE
    assert config.rounds.sample == 2
    assert config.server.insecure is True


def test_the_template_explains_every_key() -> None:
    lines = template(GIVEN).splitlines()
    keys = [i for i, line in enumerate(lines) if " =" in line and not line.startswith("# A")]
    assert len(keys) > 70
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
    with pytest.raises(
        ConfigError, match=r"unknown key data\.public\.column \(known there: path, preset, text_col"
    ):
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
        (
            "adapter",
            'targets = "all"',
            "adapter.targets must be 'none', 'attention', 'attention+ffn', 'neurons' or 'attention+neurons', "
            "got 'all'",
        ),
        ("sub_fm", "drop_ratio = 1.0", "sub_fm.drop_ratio must be < 1.0, got 1.0"),
        ("sub_fm", "keep_first = -1", "sub_fm.keep_first must be >= 0, got -1"),
        (
            "sub_fm",
            'construction = "x"',
            "sub_fm.construction must be 'ffn-pruning', 'layer-drop' or 'full', got 'x'",
        ),
        (
            "sub_fm",
            'saliency = "x"',
            "sub_fm.saliency must be 'l2', 'activation', 'integrated-gradients', 'attention' or 'random', "
            "got 'x'",
        ),
        ("sub_fm", "saliency_batches = 0", "sub_fm.saliency_batches must be >= 1, got 0"),
        ("alignment", "ridge = 0", "alignment.ridge must be > 0.0, got 0"),
        ("alignment", "closed_form_batches = 0", "alignment.closed_form_batches must be >= 1, got 0"),
        ("alignment", "checkpoint_every = 0", "alignment.checkpoint_every must be >= 1, got 0"),
        (
            "alignment",
            'method = "x"',
            "alignment.method must be 'gradient', 'closed-form' or 'both', got 'x'",
        ),
        ("realignment", "drift = 0", "realignment.drift must be > 0.0, got 0"),
        ("realignment", "drift = 2.5", "realignment.drift must be <= 2.0, got 2.5"),
        (
            "realignment",
            'choice = "x"',
            "realignment.choice must be 'highest', 'lowest' or 'random', got 'x'",
        ),
        (
            "realignment",
            'zero_rule = "x"',
            "realignment.zero_rule must be 'auto', 'pre-activation' or 'near-zero', got 'x'",
        ),
        ("realignment", "zero_threshold = -0.1", "realignment.zero_threshold must be >= 0.0, got -0.1"),
        ("training", "proximal = -1", "training.proximal must be >= 0.0, got -1"),
        ("aggregation", "trim = 0.5", "aggregation.trim must be < 0.5, got 0.5"),
        ("aggregation", "byzantine = -1", "aggregation.byzantine must be >= 0, got -1"),
        ("aggregation", "learning_rate = 0", "aggregation.learning_rate must be > 0.0, got 0"),
        ("aggregation", "momentum = 1", "aggregation.momentum must be < 1.0, got 1"),
        ("aggregation", "second_momentum = 1", "aggregation.second_momentum must be < 1.0, got 1"),
        ("aggregation", "tau = 0", "aggregation.tau must be > 0.0, got 0"),
        (
            "aggregation",
            'rule = "x"',
            "aggregation.rule must be 'mean', 'median', 'trimmed-mean', 'krum', 'multi-krum' or 'ties', "
            "got 'x'",
        ),
        (
            "aggregation",
            'optimizer = "x"',
            "aggregation.optimizer must be 'none', 'momentum', 'adam' or 'yogi', got 'x'",
        ),
        (
            "aggregation",
            'lora = "x"',
            "aggregation.lora must be 'factors', 'freeze-a' or 'exact', got 'x'",
        ),
        ("gradient_gap", "batches = -1", "gradient_gap.batches must be >= 0, got -1"),
        ("realignment", "proportion = 0", "realignment.proportion must be > 0.0, got 0"),
        ("alignment", "warmup = 1.5", "alignment.warmup must be <= 1.0, got 1.5"),
        (
            "training",
            "learning_rate = 10",
            'training: learning_rate must be < 1 for optimizer = "adamw", got 10',
        ),
        (
            "training",
            "momentum = 0.9",
            'training: momentum must be 0 for optimizer = "adamw", got 0.9',
        ),
        (
            "training",
            'optimizer = "sgd"\nhead_learning_rate = 200',
            "training: head_learning_rate times weight_decay must be < 1, got 200 times 0.01",
        ),
        ("training", 'optimizer = "adam"', "training.optimizer must be 'adamw' or 'sgd', got 'adam'"),
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


BARE = '[model]\npath = "m"\n[task]\nlabels = ["a", "b"]\n'


def test_an_alignment_needs_public_data(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.public\.path \(or preset\) must be set for an alignment"):
        load(tmp_path, BARE)
    assert not load(tmp_path, BARE + "[alignment]\nsteps = 0\n").aligns
    assert not load(tmp_path, BARE + '[sub_fm]\nconstruction = "full"\n').aligns
    assert not load(tmp_path, BARE + '[sub_fm]\nconstruction = "layer-drop"\n').aligns
    assert not load(tmp_path, BARE + '[sub_fm]\npath = "built"\n').aligns
    for section in ("[realignment]\nevery = 2\n", "[realignment]\ndrift = 0.5\n"):
        with pytest.raises(ConfigError, match=r"data\.public\.path \(or preset\) must be set"):
            load(tmp_path, BARE + "[alignment]\nsteps = 0\n" + section)
    with pytest.raises(ConfigError, match=r"data\.public\.path \(or preset\) must be set"):
        load(tmp_path, BARE + '[alignment]\nsteps = 0\nmethod = "closed-form"\n')


# --- rules between keys: what was given beside the smallest file, and what is told ---


def given(**settings: Any) -> RunConfig:
    """A configuration of the smallest settings and these, with "__" for the dot; None takes one away."""
    values: dict[str, Any] = {
        "model.path": "m",
        "task.labels": ["a", "b"],
        "data.public.path": "public.csv",
    }
    values |= {key.replace("__", "."): value for key, value in settings.items()}
    return parse_config({k: v for k, v in values.items() if v is not None}, "here")


CAUSAL = {"task__kind": "causal-lm", "task__labels": None}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"task__labels": ["a", "b", "a"]}, "task: labels must be distinct"),
        ({"task__labels": ["a"]}, "task: labels must name at least 2 classes, got ['a']"),
        ({"task__labels": []}, "task: labels must name at least 2 classes, got []"),
        (
            {"task__labels": None, "task__kind": "image-classification"},
            "task: labels must name at least 2 classes, got []",
        ),
        (
            {"task__kind": "causal-lm"},
            "task: labels must be left out for causal-lm, which has no classes",
        ),
        (
            {"task__kind": "x"},
            "task.kind must be 'text-classification', 'text-multi-label', 'text-regression', "
            "'token-classification', 'image-classification' or 'causal-lm', got 'x'",
        ),
        (
            {"task__kind": "image-classification", "task__pairs": True},
            "task: pairs must be false for image-classification",
        ),
        (CAUSAL | {"task__pairs": True}, "task: pairs must be false for causal-lm"),
        (
            {"data__public__preset": "sst2"},
            "data.public: exactly one of path and preset must be set",
        ),
        (
            {"data__test__label_column": "label"},
            "data.test: exactly one of path and preset must be set",
        ),
        (
            {"data__public__path": None, "alignment__steps": 0, "sub_fm__saliency": "attention"},
            'data.public.path (or preset) must be set for sub_fm.saliency = "attention"',
        ),
        (
            {"sub_fm__path": "built", "sub_fm__construction": "layer-drop"},
            'sub_fm.path must be unset for sub_fm.construction = "layer-drop"',
        ),
        (
            {"aggregation__rule": "multi-krum", "rounds__minimum": 3},
            'rounds.minimum must be >= 5 for aggregation.rule = "multi-krum" with byzantine = 1, got 3',
        ),
        (
            {"aggregation__rule": "trimmed-mean", "rounds__minimum": 2},
            "rounds.minimum must be > 2 for aggregation.trim = 0.2, which cuts 2 of 2 updates",
        ),
        (
            {"realignment__drift": 0.5, "gradient_gap__batches": 0},
            "realignment.drift needs gradient_gap.batches >= 1",
        ),
        (
            CAUSAL | {"adapter__targets": "none"},
            'adapter.targets must not be "none" for causal-lm: there is no head to tune',
        ),
        (
            {"task__pairs": True, "data__test__path": "test.csv"},
            "data.test.pair_column must be set, as task.pairs is true",
        ),
        (
            {"aggregation__lora": "exact", "aggregation__rule": "ties"},
            'aggregation.lora = "exact" needs aggregation.rule = "mean" and optimizer = "none"',
        ),
        (
            {"aggregation__lora": "exact", "aggregation__rule": "median"},
            'aggregation.lora = "exact" needs aggregation.rule = "mean" and optimizer = "none"',
        ),
        (
            {"aggregation__lora": "exact", "aggregation__optimizer": "adam"},
            'aggregation.lora = "exact" needs aggregation.rule = "mean" and optimizer = "none"',
        ),
        (
            {"aggregation__lora": "exact", "adapter__targets": "neurons"},
            'aggregation.lora must be "factors" for adapter.targets = "neurons", got "exact"',
        ),
        (
            {"aggregation__lora": "freeze-a", "adapter__targets": "attention+neurons"},
            'aggregation.lora must be "factors" for adapter.targets = "attention+neurons", got "freeze-a"',
        ),
        (
            {
                "aggregation__lora": "exact",
                "adapter__targets": "attention+ffn",
                "realignment__every": 1,
            },
            'aggregation.lora = "exact" with adapter.targets = "attention+ffn" leaves no room for '
            "realignment; set realignment.every = 0 and leave out realignment.drift",
        ),
    ],
)
def test_a_broken_rule_between_keys_is_told_and_nothing_else(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        given(**settings)
    assert str(caught.value) == f"here: {told}"


@pytest.mark.parametrize(
    "settings",
    [
        CAUSAL,
        CAUSAL | {"adapter__targets": "attention+ffn"},
        CAUSAL | {"adapter__targets": "neurons"},
        {"adapter__targets": "attention+neurons", "realignment__every": 1, "aggregation__rule": "ties"},
        {"task__kind": "image-classification"},
        {"data__public__path": None, "data__public__preset": "sst2"},
        {"data__public__path": None, "alignment__steps": 0, "sub_fm__saliency": "random"},
        {
            "data__public__path": None,
            "sub_fm__construction": "layer-drop",
            "sub_fm__saliency": "attention",
        },
        {"realignment__drift": 2.0, "gradient_gap__batches": 1},
        {"task__pairs": True, "data__test__path": "test.csv", "data__test__pair_column": "other"},
        {"task__pairs": True, "data__test__preset": "qnli"},
        {"aggregation__lora": "exact", "adapter__targets": "attention+ffn"},
        {"aggregation__lora": "exact", "realignment__every": 1},
        {"aggregation__lora": "freeze-a", "aggregation__rule": "median", "aggregation__optimizer": "yogi"},
        {"aggregation__rule": "krum", "rounds__workers": 5, "rounds__minimum": 5},
        {"aggregation__rule": "trimmed-mean", "rounds__minimum": 3},
    ],
)
def test_what_keeps_the_rules_is_valid(settings: dict[str, Any]) -> None:
    kept = given(**settings).model_dump(mode="json")
    for key, value in settings.items():
        found: Any = kept
        for part in key.split("__"):
            found = found and found[part]
        assert found == value or (value is None and not found), key


@pytest.mark.parametrize(
    ("settings", "prunes", "layers", "realigns", "aligns"),
    [
        ({}, True, True, False, True),
        ({"alignment__steps": 0}, True, False, False, False),
        ({"alignment__steps": 0, "alignment__method": "both"}, True, True, False, True),
        ({"alignment__steps": 0, "realignment__every": 3}, True, False, True, True),
        ({"alignment__steps": 0, "realignment__drift": 0.3}, True, False, True, True),
        ({"sub_fm__path": "built"}, True, True, False, False),
        ({"sub_fm__path": "built", "realignment__every": 3}, True, True, True, True),
        ({"sub_fm__construction": "full", "realignment__every": 3}, False, True, False, False),
        ({"sub_fm__construction": "layer-drop", "realignment__drift": 0.3}, False, True, False, False),
    ],
)
def test_what_a_run_aligns_follows_from_its_settings(
    settings: dict[str, Any], prunes: bool, layers: bool, realigns: bool, aligns: bool
) -> None:
    config = given(**settings)
    assert config.prunes is prunes
    assert config.aligns_layers is layers
    assert config.realigns is realigns
    assert config.aligns is aligns


def test_the_papers_choices_are_the_defaults() -> None:
    config = given()
    assert config.task.kind is TaskKind.TEXT_CLASSIFICATION
    assert config.sub_fm.construction is Construction.FFN_PRUNING
    assert config.sub_fm.saliency is Saliency.L2
    assert config.alignment.method is AlignmentMethod.GRADIENT
    assert config.adapter.targets is AdapterTargets.ATTENTION
    assert config.aggregation.lora is LoraAveraging.FACTORS
    assert config.aggregation.optimizer is ServerOptimizer.NONE
    assert config.training.proximal == 0


# --- settings on a command line ---


def test_settings_are_toml_values_or_text() -> None:
    assert parse_settings(["alignment.steps=600", 'a.b = "x=y"', "sub_fm.saliency=random", "a.c=[1, 2]"]) == {
        "alignment.steps": 600,
        "a.b": "x=y",
        "sub_fm.saliency": "random",
        "a.c": [1, 2],
    }


@pytest.mark.parametrize("text", ["steps=3", "alignment.steps", "=3", "a..b=1", "A.b=1", "a.b-c=1"])
def test_a_setting_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"must be SECTION\.KEY=VALUE"):
        parse_settings([text])


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
    given = GIVEN | {"run.directory": "out", "data.root": "sets", "sub_fm.path": "built"}
    (tmp_path / "project" / "run.toml").write_text(template(given))
    monkeypatch.chdir(tmp_path)
    config = load_config(Path("project/run.toml"))
    folder = tmp_path.resolve() / "project"
    assert config.run.directory == folder / "out"
    assert config.model.path == str(folder / "model")
    assert config.data.public is not None and config.data.public.path == folder / "public.csv"
    assert config.data.test is not None and config.data.test.path == folder / "test.csv"
    assert config.data.root == folder / "sets"
    assert config.sub_fm.path == folder / "built"


def test_a_preset_is_not_taken_for_a_path(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST.replace('path = "public.csv"', 'preset = "sst2:validation"'))
    assert config.data.public is not None
    assert (config.data.public.preset, config.data.public.path) == ("sst2:validation", None)
    assert (config.data.root, config.data.test, config.sub_fm.path) == (None, None, None)


def test_absolute_paths_and_hub_ids_stay_as_they_are(tmp_path: Path) -> None:
    values = {"run.directory": "/elsewhere/run", "model.path": "google-bert/bert-base-uncased"}
    config = load(tmp_path, template(GIVEN | values))
    assert config.run.directory == Path("/elsewhere/run")
    assert config.model.path == "google-bert/bert-base-uncased"


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST)
    with pytest.raises(ValidationError):
        config.adapter.rank = 4
