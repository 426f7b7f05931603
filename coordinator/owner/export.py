"""A finished run → what plain transformers and peft load."""

import json
from pathlib import Path

from common.config.run import RunConfig
from common.data.processors import save_processor
from common.errors import StoreError
from common.model.adapter import RESIDUAL, Adapted, is_transposed, lora_config
from common.model.families import family_of
from common.model.ffn import ffns_of
from common.model.submodel import SubModelPlan
from common.records import AdapterTargets, RunStatus, TaskKind
from common.runtime import seeds
from common.storage.files import write_atomically
from common.storage.tensors import TensorFile, to_bytes
from coordinator.algorithms.plugging import plug
from coordinator.campaign.status import open_run, reading, stored_status
from coordinator.context import adapter_spec
from coordinator.modelling.foundation import load_foundation


def export(directory: Path, out: Path, merge: bool) -> list[Path]:
    """Write the newest adapter of the run in `directory` to the folder `out`; returns the files.

    Without `merge` a PEFT adapter: adapter_config.json, adapter_model.safetensors, tokenizer and
    model card. With it a plain transformers model. Raises StoreError when there is nothing to
    export, or no adapter because the head alone was tuned; ModelError when the FM is gone.
    """
    store, config = open_run(directory)
    latest = store.latest_adapter()
    if latest is None or latest[0] == 0:
        raise StoreError(f"{directory}: no round is done yet, there is nothing to export")
    tensors = TensorFile(store.artifacts.path(latest[1].sha256)).load()
    spec, kind = adapter_spec(config), config.task.kind
    if not merge and spec.targets is AdapterTargets.NONE:
        raise StoreError("this run tuned the head alone, which is no PEFT adapter; add --merge")
    if not merge and any(name.endswith(RESIDUAL) for name in tensors):
        raise StoreError("exact averaging changed base weights too, which no PEFT adapter holds; add --merge")
    loaded = load_foundation(
        config.model.path, kind, config.task.labels, seeds.derive(config.run.seed, "head")
    )
    fm, processor = loaded.model, loaded.processor
    widths = tuple(ffn.width for ffn in ffns_of(fm))
    transposed = is_transposed(fm)
    stored = store.sub_model()
    assert stored is not None
    plan = SubModelPlan.from_tensors(TensorFile(store.artifacts.path(stored[1].sha256)))
    # The FM's own untrained adapter is the same as in the run: it is drawn from the seed.
    tuned = Adapted(fm, kind, spec, seeds.derive(config.run.seed, "adapter"))
    tensors = plug(tensors, plan, fm.config, tuned.tensors(), widths)
    out.mkdir(parents=True, exist_ok=True)
    status = stored_status(store, config)
    if merge:
        tuned.load(tensors)
        tuned.merged().save_pretrained(out)
    else:
        peft_config = lora_config(spec, family_of(fm.config), kind, transposed)
        peft_config.base_model_name_or_path = config.model.path
        peft_config.inference_mode = True
        peft_config.save_pretrained(str(out))
        write_atomically(out / "adapter_model.safetensors", to_bytes(tensors))
    save_processor(processor, out)
    write_atomically(out / "README.md", _card(config, status, merge).encode())
    store.close()
    return sorted(out.iterdir())


# By task: transformers' class, what prepares inputs, the hub's name for it.
_CARDS = {
    TaskKind.TEXT_CLASSIFICATION: (
        "AutoModelForSequenceClassification",
        "AutoTokenizer",
        "text-classification",
    ),
    TaskKind.IMAGE_CLASSIFICATION: (
        "AutoModelForImageClassification",
        "AutoImageProcessor",
        "image-classification",
    ),
    TaskKind.CAUSAL_LM: ("AutoModelForCausalLM", "AutoTokenizer", "text-generation"),
}


def _card(config: RunConfig, status: RunStatus, merged: bool) -> str:
    """The model card."""
    labels = list(config.task.labels)
    name = Path(config.model.path).name
    model_class, processor_class, pipeline = _CARDS[config.task.kind]
    scores = [reading([e], config.task.kind) for e in status.evaluations if e.model == "fm"]
    measure = scores[0][0] if scores else "score"
    before, after = (scores[i][1]["fm"] if scores else "not measured" for i in (0, -1))
    classes = f", num_labels={len(labels)}" if labels else ""
    load = (
        f"model = {model_class}.from_pretrained(FOLDER)"
        if merged
        else f"base = {model_class}.from_pretrained(FM{classes})\n"
        "model = PeftModel.from_pretrained(base, FOLDER)"
    )
    header = {
        "base_model": name,
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": pipeline,
        "tags": ["fedpft", "federated-learning", "lora"],
    }
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    told = f" Classes, in order: {', '.join(labels)}." if labels else ""
    return f"""---
{front}
---
# {name}, fine-tuned by Federated Proxy Fine-Tuning

Tuned over {status.round} rounds by {len(status.workers)} workers, none of which saw another's data
(FedPFT, arXiv 2404.11536).{told}

| {measure} on the owner's test data | |
|---|---|
| before | {before} |
| after | {after} |

```python
from transformers import {model_class}, {processor_class}
{"" if merged else "from peft import PeftModel" + chr(10)}
processor = {processor_class}.from_pretrained(FOLDER)
{load}
```
Adapter digest: {status.adapter_sha256}
"""
