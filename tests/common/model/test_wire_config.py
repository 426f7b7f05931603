"""A model's configuration from the other side keeps what its family knows, within bounds, no more."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import FedPftError, ModelError, UnsupportedFamily
from common.model.families import FAMILIES
from common.model.tasks import from_config
from common.model.wire_config import known_keys, read_config
from common.records import TaskKind, TaskSpec
from coordinator.modelling.foundation import wire_config
from tests.conftest import LABELS
from tests.families import small_config

# Families whose configurations are not flat, or say more than their class declares.
NESTED = ("gemma3_text", "deberta-v2", "clip")
TASK = TaskSpec(TaskKind.TEXT_CLASSIFICATION, LABELS, 32, False)


def told(model_type: str = "bert", **changes: Any) -> str:
    """What a coordinator sends of a small model, with changes."""
    return json.dumps(json.loads(wire_config(small_config(model_type))) | changes)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_honest_configuration_comes_through_unchanged(model_type: str) -> None:
    kind = FAMILIES[model_type].tasks[0]
    sent = small_config(model_type)
    got = read_config(wire_config(sent), TaskSpec(kind, LABELS, 32, False))
    # These are left to transformers' own choice, or say how the model was made.
    free = {"architectures", "transformers_version", "dtype", "_name_or_path"}
    for key, value in sent.to_dict().items():
        assert key in free or got.to_dict()[key] == value, key
    assert str(from_config(got, kind)) == str(from_config(sent, kind))


@pytest.mark.parametrize("model_type", NESTED)
def test_tables_by_kind_of_layer_and_undeclared_keys_come_through(model_type: str) -> None:
    test_an_honest_configuration_comes_through_unchanged(model_type)
    assert all(key in known_keys(model_type) for key in FAMILIES[model_type].undeclared)


@pytest.mark.parametrize(
    "key",
    [
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "quantization_config",
        "auto_map",
        "custom_pipelines",
        "_name_or_path",
        "torch_dtype",
        "num_labels",
        "pruned_heads",
        "base_model_tp_plan",
        "sinusoidal_pos_embds",
    ],
)
def test_what_could_name_code_or_files_is_not_looked_at(key: str) -> None:
    config = read_config(told("bert", **{key: "elsewhere/kernels"}), TASK)
    assert "elsewhere" not in json.dumps(config.to_dict(), default=str)
    assert config._attn_implementation != "elsewhere/kernels"
    assert not any(key in known_keys(model_type) for model_type in FAMILIES)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not readable"),
        (told("clip", vision_config=None), "has no vision_config"),
        (told("clip", vision_config={"num_hidden_layers": 1025}), "out of bounds"),
        (told("clip", vision_config={"hidden_size": 2**18}), "out of bounds"),
        (told("clip", vision_config={"hidden_act": {"a": {}}}), "out of bounds"),
        (told("clip", vision_config={"hidden_size": "32"}), "cannot be used"),
        ("[]", "not readable"),
        ("{}", "not readable"),
        ('{"model_type": "bert", "hidden_size": NaN}', "no number"),
        ('{"model_type": "bert", "hidden_size": ' + "9" * 5000 + "}", "digits"),
        ("[" * 100_000, "not readable"),
        (told(num_hidden_layers=10**9), "out of bounds"),
        (told("qwen2", num_hidden_layers=1025), "out of bounds"),
        (told(hidden_size=2**18), "out of bounds"),
        (told(hidden_size=-2), "out of bounds"),
        (told(max_position_embeddings=2**40), "out of bounds"),
        (told(vocab_size=2**60), "out of bounds"),
        (told(hidden_act="x" * 2000), "out of bounds"),
        (told(eos_token_id=[0] * 5000), "out of bounds"),
        (told(eos_token_id=[[[0]]]), "out of bounds"),
        (told(layer_norm_eps={"a": {"b": 1}}), "out of bounds"),
        (told("olmo3", rope_parameters={"full_attention": {"rope_theta": {"a": 1}}}), "out of bounds"),
        (told("olmo3", rope_parameters={"full_attention": {"factor": 2**60}}), "out of bounds"),
        (told("olmo3", rope_parameters={"full_attention": {"x" * 2000: 1}}), "out of bounds"),
        (told("olmo3", rope_parameters={str(i): {"factor": 1} for i in range(17)}), "out of bounds"),
        (told("olmo3", rope_parameters={"a": {str(i): 1 for i in range(3000)}}), "out of bounds"),
        (told("olmo3", layer_types={"a": {"b": 1}}), "out of bounds"),
        (told("deberta-v2", position_buckets=2**18), "out of bounds"),
        (told("deberta-v2", norm_rel_ebd={"a": {"b": 1}}), "out of bounds"),
        (told("deberta-v2", conv_kernel_size=[[3]]), "out of bounds"),
        (told(dtype="float64"), "must be float32 or bfloat16"),
        (told(dtype=["bfloat16"]), "must be float32 or bfloat16"),
        (told(hidden_size="32"), "cannot be used"),
        (told(hidden_size=None), "cannot be used"),
        (told(id2label={"0": "one"}), "1 classes, the task 2"),
        (told(id2label={str(i): "" for i in range(2**16 + 1)}), "out of bounds"),
    ],
)
def test_what_is_unreadable_or_out_of_bounds_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        read_config(text, TASK)


def test_of_a_part_of_a_configuration_only_what_its_class_declares_is_looked_at() -> None:
    inner = {"hidden_size": 8, "num_attention_heads": 2, "_attn_implementation": "elsewhere/kernels"}
    text = told("clip", vision_config=inner, text_config={"hidden_size": 2**40})
    config = read_config(text, TaskSpec(TaskKind.IMAGE_CLASSIFICATION, LABELS, 32, False))
    assert config.vision_config.hidden_size == 8
    assert config.text_config.hidden_size != 2**40
    assert "elsewhere" not in json.dumps(config.to_dict(), default=str)
    assert config.vision_config._attn_implementation != "elsewhere/kernels"


def test_a_family_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedFamily, match="evil"):
        read_config(told().replace('"bert"', '"evil"'), TASK)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_whatever_stands_in_it_the_answer_is_a_configuration_or_a_clear_error(
    model_type: str, data: st.DataObject
) -> None:
    key = data.draw(st.sampled_from(sorted(known_keys(model_type))))
    text = told(model_type, **{key: data.draw(JSON)})
    kind = FAMILIES[model_type].tasks[0]
    try:
        read_config(text, TaskSpec(kind, LABELS, 32, False))
    except FedPftError as error:
        assert "\n" not in str(error)
