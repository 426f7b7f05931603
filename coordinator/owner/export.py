"""A finished run → what plain transformers and peft load."""

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer, PretrainedConfig

from common.config.run import RunConfig
from common.data.images import ImageProcessor
from common.data.processors import Processor, save_processor
from common.errors import StoreError
from common.model.adapter import RESIDUAL, Adapted, is_transposed, lora_config
from common.model.families import family_of
from common.model.ffn import ffns_of
from common.model.submodel import SubModelPlan
from common.model.tasks import problem_type
from common.records import AdapterTargets, ArtifactRef, TaskKind
from common.runtime import seeds
from common.storage.files import write_atomically
from common.storage.tensors import TensorFile, to_bytes
from common.task_forms import FORMS
from coordinator.algorithms.plugging import plug
from coordinator.campaign.best import best_round, result_round
from coordinator.campaign.status import open_run, stored_status
from coordinator.context import adapter_spec
from coordinator.modelling.checkpoint import own_file, read_json
from coordinator.modelling.content import MODEL, require_same
from coordinator.modelling.foundation import foundation_of
from coordinator.owner.model_card import Loading, model_card
from coordinator.owner.privacy_facts import PRIVACY_FILE, privacy_facts
from coordinator.storage.store import Store


class ExportDtype(StrEnum):
    """What an export's weights are kept in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


# What of a model's folder prepares its inputs; whichever are there go along as they are.
_PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "processor_config.json",
)
# How its texts are drawn: beside the weights, or vLLM and transformers would draw them otherwise.
_GENERATION_FILE = "generation_config.json"
# Of a configuration: this machine's paths, code, and what belonged to the published head or its use.
_NOT_KEPT = (
    "_name_or_path",
    "auto_map",
    "custom_pipelines",
    "problem_type",
    "num_labels",
    "return_dict",
    "use_return_dict",
    "torchscript",
    "output_hidden_states",
    "output_attentions",
)


def export(
    directory: Path,
    out: Path,
    merge: bool,
    dtype: ExportDtype = ExportDtype.AUTO,
    model: str | None = None,
    corrected: bool = True,
    which: int | Literal["best"] | None = None,
) -> list[Path]:
    """Write the result of the run in `directory` to the folder `out`; returns the files.

    It is the best round's adapter under rounds.patience, else the newest; or the one after the round `which`.
    Of that it is the corrected one, where there is one, unless `corrected` is false.

    Without `merge` a PEFT adapter: adapter_config.json, adapter_model.safetensors, and the configuration
    of the model that it belongs into. With it a plain transformers model. Beside either the FM's own
    tokenizer or image processor, and a model card. Weights are float32 in an adapter and as the FM's in
    a model, unless `dtype` says otherwise. `model` says where the FM is now, if not where the run left it.

    Raises StoreError when there is nothing to export, or what was tuned is no PEFT adapter: the head alone,
    FFN neurons in full, or the other form lies in the folder; ModelError when the FM is gone.
    """
    store, config = open_run(directory, model)
    number, adapter = _chosen(store, config, which)
    correction = store.corrections.of(number) if corrected else None
    own = None if correction is None else correction.adapter
    tensors = TensorFile(store.artifacts.path((own or adapter).sha256)).load()
    if odd := next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None):
        raise StoreError(
            f"{directory}: tensor {odd} of the adapter after round {number} is not finite; "
            f"`fedpft rewind {directory} --round N` goes back to a round before"
        )
    spec, kind, path = adapter_spec(config), config.task.kind, config.model.path
    if not merge and spec.targets is AdapterTargets.NONE:
        raise StoreError("this run tuned the head alone, which is no PEFT adapter; add --merge")
    if not merge and spec.targets.neurons:
        raise StoreError("this run tuned FFN neurons in full, which no PEFT adapter holds; add --merge")
    if not merge and any(name.endswith(RESIDUAL) for name in tensors):
        raise StoreError("exact averaging changed base weights too, which no PEFT adapter holds; add --merge")
    _require_room(out, merge)
    require_same(store, config, [MODEL])
    loaded = foundation_of(config)
    fm = loaded.model
    transposed, model_class = is_transposed(fm), type(fm).__name__
    held = fm.dtype
    stored = store.sub_model()
    assert stored is not None
    reference, plan_ref, _ = stored
    plan = SubModelPlan.from_tensors(TensorFile(store.artifacts.path(plan_ref.sha256)))
    # The FM's own untrained adapter is the same as in the run: it is drawn from the seed.
    tuned = Adapted(fm, kind, spec, seeds.derive(config.run.seed, "adapter"), reference.new_modules)
    widths = tuple(ffn.width for ffn in ffns_of(fm))
    if own is None:
        tensors = plug(tensors, plan, fm.config, tuned.tensors(), widths)
    out.mkdir(parents=True, exist_ok=True)
    kept = torch.float32 if dtype is ExportDtype.AUTO else getattr(torch, dtype)
    if merge:
        kept = loaded.dtype if dtype is ExportDtype.AUTO else kept
        tuned.load(tensors)
        # Sums rounded once.
        tuned.base.float()
        tuned.merged().to(kept).save_pretrained(out)  # type: ignore[arg-type]  # mistyped in transformers 5
    else:
        peft_config = lora_config(spec, family_of(fm.config), kind, transposed, reference.new_modules)
        peft_config.base_model_name_or_path = path
        peft_config.inference_mode = True
        peft_config.save_pretrained(str(out))
        content = to_bytes({name: tensor.to(kept) for name, tensor in tensors.items()})
        write_atomically(out / "adapter_model.safetensors", content)
    published = own_fields(path)
    fields = config_fields(published, fm.config, config, model_class)
    if merge:
        name = "dtype" if "dtype" in published else "torch_dtype"
        fields |= {name: str(kept).removeprefix("torch.")}
    write_atomically(out / "config.json", (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode())
    if (file := own_file(path, _GENERATION_FILE)) is not None and kind is TaskKind.CAUSAL_LM:
        write_atomically(out / _GENERATION_FILE, file.read_bytes())
    left_padded = _write_processor(path, loaded.processor, out)
    classes = len(published.get("id2label") or (0, 1))
    outputs = FORMS[kind].outputs(config.task.labels)
    how = Loading(
        merged=merge,
        other_head=kind is not TaskKind.CAUSAL_LM and classes != len(outputs),
        dtype=None if loaded.dtype is held is torch.float32 else str(held),
        left_padded=left_padded,
    )
    status = replace(stored_status(store, config), result=number, adapter_sha256=adapter.sha256)
    if not corrected:
        evaluations = tuple(e for e in status.evaluations if e.model != "corrected")
        status = replace(status, evaluations=evaluations)
    card = model_card(config, status, fields, how)
    write_atomically(out / "README.md", card.encode())
    if (facts := privacy_facts(config, number, store.secure.releases.all())) is not None:
        write_atomically(out / PRIVACY_FILE, (json.dumps(facts, indent=2) + "\n").encode())
    store.close()
    return sorted(out.iterdir())


def _require_room(out: Path, merge: bool) -> None:
    """Raise StoreError where the other form lies: of both in one folder, transformers takes the adapter."""
    other = ["adapter_config.json"] if merge else ["model.safetensors", "model.safetensors.index.json"]
    if found := next((name for name in other if (out / name).exists()), None):
        there, here = ("an adapter", "a merged model") if merge else ("a merged model", "an adapter")
        raise StoreError(f"{out} holds {there} already ({found}); choose another folder for {here}")


def _chosen(store: Store, config: RunConfig, which: int | Literal["best"] | None) -> tuple[int, ArtifactRef]:
    """The round to export and its adapter. Raises StoreError."""
    directory, newest = store.directory, max(store.adapters(), default=0)
    if newest == 0:
        raise StoreError(f"{directory}: no round is done yet, there is nothing to export")
    number = result_round(store, config) if which is None else which
    if number == "best":
        if (best := best_round(store, config)) is None:
            raise StoreError(
                f"{directory}: no round has a score by which one is the best; set validation.every or "
                "data.test.path in another run, or export --round N"
            )
        number = best
    adapter = store.adapter_after(number) if number else None
    if adapter is None:
        held = {artifact.sha256 for artifact in store.artifacts.held()}
        kept = ", ".join(str(n) for n, sha256 in store.adapters().items() if n and sha256 in held)
        raise StoreError(
            f"{directory}: there is no adapter after round {number}; rounds that have one: {kept}"
        )
    return number, adapter


def own_fields(path: str) -> dict[str, Any]:
    """The FM's configuration as it was published: as readable for versions of transformers as it was."""
    file = own_file(path, "config.json")
    assert file is not None
    return read_json(file)


def config_fields(
    published: dict[str, Any], tuned: PretrainedConfig, config: RunConfig, model_class: str
) -> dict[str, Any]:
    """The published configuration with what the task has changed of it."""
    fields = {key: value for key, value in published.items() if key not in _NOT_KEPT}
    fields["architectures"] = [model_class]
    if TaskKind.CAUSAL_LM in family_of(tuned).tasks:
        # Of decoders: by it their classifiers find the last token.
        fields["pad_token_id"] = tuned.pad_token_id
    if not getattr(tuned, "tie_word_embeddings", True) and "tie_word_embeddings" in fields:
        fields["tie_word_embeddings"] = False
    for key in ("id2label", "label2id"):
        fields.pop(key, None)
    if outputs := FORMS[config.task.kind].outputs(config.task.labels):
        fields["id2label"] = {str(i): name for i, name in enumerate(outputs)}
        fields["label2id"] = {name: i for i, name in enumerate(outputs)}
    if (problem := problem_type(config.task.kind)) is not None:
        fields["problem_type"] = problem
    return fields


def _write_processor(path: str, processor: Processor, out: Path) -> bool:
    """The FM's own files, so that they load wherever they did; returns whether they pad in front.

    A tokenizer that cannot pad gets the token that this run has padded with.
    """
    for name in _PROCESSOR_FILES:
        if (file := own_file(path, name)) is not None:
            write_atomically(out / name, file.read_bytes())
    if isinstance(processor, ImageProcessor):
        return False
    own = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    if own.pad_token is None:
        file = out / "tokenizer_config.json"
        if not file.exists():
            save_processor(processor, out)
        else:
            write_atomically(
                file, json.dumps(read_json(file) | {"pad_token": processor.pad_token}, indent=2).encode()
            )
    return bool(own.padding_side == "left")
