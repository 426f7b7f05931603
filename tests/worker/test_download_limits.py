"""What a run announces is judged before it is fetched: by what the model's shapes imply, and a limit."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from common.data.processors import MOST_BYTES
from common.errors import BadMessage, FedPftError, ModelError
from common.model.adapter import PEFT_PREFIX, RESIDUAL, Adapted
from common.model.families import FAMILIES
from common.model.ffn import ffns_of
from common.model.int8 import channels_of, each_as_int8, schema_as_int8
from common.model.submodel import Held, build, make_patch, own_weights
from common.quantization import Quantization
from common.records import (
    AdapterSpec,
    AdapterTargets,
    ArtifactKind,
    ArtifactRef,
    RunSpec,
    SubModelRef,
    TaskKind,
    TaskSpec,
    TrainingSpec,
    TrainTask,
)
from common.storage.schema import schema_of
from common.storage.tensor_header import MAX_HEADER_BYTES
from common.storage.tensors import to_bytes
from coordinator.modelling.foundation import wire_config
from tests.conftest import FFN, LABELS, LAYERS
from tests.families import HIDDEN, small_config, small_model
from worker.download_limits import Limits, judge, limits_of

LORA = AdapterSpec(AdapterTargets.ATTENTION, 4, 8.0, 0.1)
DIGEST = "ab" * 32


def run_of(kind: TaskKind, adapter: AdapterSpec = LORA) -> RunSpec:
    labels = () if kind is TaskKind.CAUSAL_LM else LABELS
    return RunSpec(
        "run", TaskSpec(kind, labels, 32, False), adapter, TrainingSpec(1, 16, 1e-3, 1e-3, 0, 1.0), 7
    )


def ref(kind: ArtifactKind, size: int) -> ArtifactRef:
    return ArtifactRef(kind, DIGEST, size)


def wanted(
    model_type: str = "bert", widths: tuple[int, ...] = (FFN,) * LAYERS, **changes: Any
) -> SubModelRef:
    config = json.loads(wire_config(small_config(model_type))) | changes
    return SubModelRef(json.dumps(config), widths, ref(ArtifactKind.SUB_MODEL, 1000), (), ())


def test_a_module_that_the_checkpoint_lacked_makes_room_in_the_adapter() -> None:
    plain = limits_of(run_of(TaskKind.TEXT_CLASSIFICATION), wanted())
    new = limits_of(run_of(TaskKind.TEXT_CLASSIFICATION), replace(wanted(), new_modules=("bert.pooler",)))
    assert new.adapter - plain.adapter == 4 * (HIDDEN * HIDDEN + HIDDEN)


@pytest.mark.parametrize(
    "module", ["bert", "bert.encoder.layer.0", "bert.embeddings", "lm_head", "nothing", ""]
)
def test_a_worker_tunes_no_module_that_a_checkpoint_brings(module: str) -> None:
    """Whole layers would carry far more of its data than what it has agreed to."""
    with pytest.raises(ModelError, match="cannot have a new"):
        limits_of(run_of(TaskKind.TEXT_CLASSIFICATION), replace(wanted(), new_modules=(module,)))


def task(**changes: Any) -> TrainTask:
    base = TrainTask(1, wanted(), ref(ArtifactKind.ADAPTER, 1000), 1.0, (), 60.0, 1)
    return replace(base, sub_model=replace(base.sub_model, **changes)) if changes else base


@pytest.mark.parametrize("targets", list(AdapterTargets))
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_limits_are_what_a_real_model_has_and_a_header(model_type: str, targets: AdapterTargets) -> None:
    kind = FAMILIES[model_type].tasks[-1]
    if kind is TaskKind.CAUSAL_LM and targets is AdapterTargets.NONE:
        pytest.skip("there is no head to tune")
    spec = replace(LORA, targets=targets)
    limits = limits_of(run_of(kind, spec), wanted(model_type))
    model = small_model(model_type, kind)
    assert limits.weights == schema_of(own_weights(model))
    room = MAX_HEADER_BYTES
    assert limits.base - room <= len(to_bytes(own_weights(model))) + 2 * FFN * 64 <= limits.base
    patch = to_bytes(make_patch(ffns_of(model), {i: torch.arange(FFN) for i in range(LAYERS)}))
    assert limits.patch - room <= len(patch) <= limits.patch
    adapted = Adapted(model, kind, spec)
    adapter = adapted.tensors()
    # What exact averaging adds, which does not go with neurons that are tuned in full.
    for name in [n for n in adapter if n.endswith(".lora_A.weight") and not targets.neurons]:
        stem = name.removesuffix(".lora_A.weight")
        path = stem.removeprefix(PEFT_PREFIX)
        inner = adapted.base.get_submodule(path)
        adapter[stem + RESIDUAL] = inner.base_layer.weight.detach().clone()  # type: ignore[union-attr]
    assert limits.adapter - room <= len(to_bytes(adapter)) <= limits.adapter


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "vit"])
def test_the_limits_of_int8_are_what_is_published_so(model_type: str) -> None:
    kind = FAMILIES[model_type].tasks[-1]
    model = small_model(model_type, kind)
    held, weights = channels_of(model, kind), own_weights(model)
    run = replace(run_of(kind), quantization=Quantization.INT8)
    limits = limits_of(run, wanted(model_type))
    assert limits.weights == schema_as_int8(weights, held)
    base = dict(each_as_int8(weights, held, limits.weights))
    assert limits.base - MAX_HEADER_BYTES <= len(to_bytes(base)) <= limits.base
    built = build(model.config, kind, (FFN,) * LAYERS, base, held=Held(Quantization.INT8))
    patch = to_bytes(make_patch(ffns_of(built), {i: torch.arange(FFN) for i in range(LAYERS)}))
    assert limits.patch - MAX_HEADER_BYTES <= len(patch) <= limits.patch
    assert limits.adapter == limits_of(run_of(kind), wanted(model_type)).adapter


def judged(named: TrainTask, most: int = 10**9) -> None:
    judge(named, LIMITS, most)


LIMITS = Limits(base=2000, patch=500, adapter=1500, weights={}, tied=frozenset())


def test_an_honest_task_passes() -> None:
    judged(task(patches=(ref(ArtifactKind.NEURON_PATCH, 500),), processor=(ref(ArtifactKind.TOKENIZER, 9),)))


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        (task(base=ref(ArtifactKind.SUB_MODEL, 2001)), "2001 bytes; this model's has at most 2000"),
        (task(base=ref(ArtifactKind.SUB_MODEL, 0)), "0 bytes"),
        (task(base=ref(ArtifactKind.ADAPTER, 100)), "where a sub_model belongs"),
        (task(patches=(ref(ArtifactKind.NEURON_PATCH, 501),)), "at most 500"),
        (task(patches=(ref(ArtifactKind.SUB_MODEL, 5),)), "where a neuron_patch belongs"),
        (replace(task(), adapter=ref(ArtifactKind.ADAPTER, 2**62)), "at most 1500"),
        (replace(task(), adapter=ref(ArtifactKind.TOKENIZER, 5)), "where a adapter belongs"),
        (task(processor=(ref(ArtifactKind.TOKENIZER, 5),) * 2), "2 files of kind tokenizer"),
        (task(processor=(ref(ArtifactKind.ADAPTER, 5),)), "1 files of kind adapter"),
        (
            task(processor=(ref(ArtifactKind.TOKENIZER, MOST_BYTES[ArtifactKind.TOKENIZER] + 1),)),
            "at most",
        ),
    ],
)
def test_a_file_that_cannot_be_so_large_or_of_that_kind_is_not_fetched(named: TrainTask, reason: str) -> None:
    with pytest.raises(BadMessage, match=reason):
        judged(named)


def test_all_files_together_keep_to_the_workers_own_limit() -> None:
    many = task(patches=(ref(ArtifactKind.NEURON_PATCH, 500),) * 4)
    judged(many, 4000)
    with pytest.raises(BadMessage, match="--max-download"):
        judged(many, 3999)


@pytest.mark.parametrize(
    ("model_type", "changes", "widths"),
    [
        ("bert", {"num_hidden_layers": 5}, (FFN,) * LAYERS),
        ("bert", {}, (FFN,) * (LAYERS + 1)),
        ("bert", {}, (FFN, FFN, FFN, 2**32 - 1)),
        ("bert", {}, (FFN, FFN, FFN, 0)),
        ("bert", {"hidden_size": 33}, (FFN,) * LAYERS),
        ("bert", {"hidden_size": 0}, (FFN,) * LAYERS),
        ("bert", {"hidden_act": "no-such-function"}, (FFN,) * LAYERS),
        ("bert", {"max_position_embeddings": 2**24, "vocab_size": -1}, (FFN,) * LAYERS),
        ("llama", {"rope_parameters": {"rope_type": "no-such-type"}}, (FFN,) * LAYERS),
        ("vit", {"patch_size": 0}, (FFN,) * LAYERS),
        ("dinov2", {"image_size": "wide"}, (FFN,) * LAYERS),
    ],
)
def test_sizes_that_make_no_model_or_a_monster_are_refused_without_reserving_memory(
    model_type: str, changes: dict[str, Any], widths: tuple[int, ...]
) -> None:
    kind = FAMILIES[model_type].tasks[0]
    with pytest.raises(FedPftError) as caught:
        limits_of(run_of(kind), wanted(model_type, widths, **changes))
    assert "\n" not in str(caught.value)


def test_a_huge_rank_is_refused() -> None:
    spec = replace(LORA, rank=2**31)
    with pytest.raises(ModelError, match="rank"):
        limits_of(run_of(TaskKind.TEXT_CLASSIFICATION, spec), wanted())


def test_names_that_are_not_the_models_do_not_matter_to_the_limits() -> None:
    """An unknown key changes nothing: the limits come from known shapes alone."""
    plain = limits_of(run_of(TaskKind.TEXT_CLASSIFICATION), wanted())
    assert limits_of(run_of(TaskKind.TEXT_CLASSIFICATION), wanted(num_labels=10**9)) == plain
