"""A finished run → what plain transformers and peft load."""

import json
from pathlib import Path

from common import seeds
from common.config import RunConfig
from common.errors import StoreError
from common.files import write_atomically
from common.model.adapter import Adapted, lora_config
from common.model.families import family_of
from common.records import AdapterSpec, AdapterTargets, RunStatus
from common.tensors import TensorFile, to_bytes
from coordinator.foundation import load_foundation
from coordinator.status import open_run, stored_status


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
    tensors = TensorFile(store.path(latest[1].sha256)).load()
    a = config.adapter
    spec = AdapterSpec(a.targets, a.rank, a.alpha, a.dropout)
    if not merge and spec.targets is AdapterTargets.NONE:
        raise StoreError("this run tuned the head alone, which is no PEFT adapter; add --merge")
    fm, tokenizer = load_foundation(
        config.model.path, config.task.labels, seeds.derive(config.run.seed, "head")
    )
    out.mkdir(parents=True, exist_ok=True)
    status = stored_status(store, config)
    if merge:
        tuned = Adapted(fm, spec)
        tuned.load(tensors)
        tuned.merged().save_pretrained(out)
    else:
        peft_config = lora_config(spec, family_of(fm.config))
        peft_config.base_model_name_or_path = config.model.path
        peft_config.inference_mode = True
        peft_config.save_pretrained(str(out))
        write_atomically(out / "adapter_model.safetensors", to_bytes(tensors))
    tokenizer.save_pretrained(out)
    write_atomically(out / "README.md", _card(config, status, merge).encode())
    store.close()
    return sorted(out.iterdir())


def _card(config: RunConfig, status: RunStatus, merged: bool) -> str:
    """The model card."""
    labels = list(config.task.labels)
    name = Path(config.model.path).name
    scores = [e for e in status.evaluations if e.model == "fm"]
    before = f"{scores[0].accuracy:.4f}" if scores else "not measured"
    after = f"{scores[-1].accuracy:.4f}" if scores else "not measured"
    load = (
        "model = AutoModelForSequenceClassification.from_pretrained(FOLDER)"
        if merged
        else f"base = AutoModelForSequenceClassification.from_pretrained(FM, num_labels={len(labels)})\n"
        "model = PeftModel.from_pretrained(base, FOLDER)"
    )
    header = {
        "base_model": name,
        "library_name": "transformers" if merged else "peft",
        "pipeline_tag": "text-classification",
        "tags": ["fedpft", "federated-learning", "lora"],
    }
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    return f"""---
{front}
---
# {name}, fine-tuned by Federated Proxy Fine-Tuning

Tuned over {status.round} rounds by {len(status.workers)} workers, none of which saw this model or
another's data (FedPFT, arXiv 2404.11536). Classes, in order: {", ".join(labels)}.

| accuracy on the owner's test data | |
|---|---|
| before | {before} |
| after | {after} |

```python
from transformers import AutoModelForSequenceClassification, AutoTokenizer
{"" if merged else "from peft import PeftModel" + chr(10)}
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
{load}
```
Adapter digest: {status.adapter_sha256}
"""
