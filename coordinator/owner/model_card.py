"""The card of an exported model: what it is, what it scored, and the lines that load it."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.run import RunConfig
from common.config.task import TaskSection
from common.model.tasks import auto_class
from common.records import TaskKind
from common.run_status import AT_WORKERS, RunStatus, reported, told_metrics
from common.task_forms import FORMS, Answer, Input
from coordinator.campaign.status import reading
from coordinator.modelling.checkpoint import own_file

# What prepares inputs.
_PROCESSORS = {
    Input.TEXTS: "AutoTokenizer",
    Input.WORDS: "AutoTokenizer",
    Input.IMAGES: "AutoImageProcessor",
}
# What comes of the scores, in a line of Python.
_ANSWERS = {
    Answer.CLASS: ["answers = [model.config.id2label[int(i)] for i in logits.argmax(-1)]"],
    Answer.CLASSES: [
        "names = model.config.id2label",
        "answers = [[names[int(i)] for i in row.nonzero()] for row in logits > 0]",
    ],
    Answer.NUMBER: ["answers = logits[:, 0].tolist()"],
    Answer.TAGS: [
        "# A tag for every token; that of a word is its first token's.",
        'there = inputs["attention_mask"].bool()',
        "found = [row[mask] for row, mask in zip(logits.argmax(-1), there)]",
        "answers = [[model.config.id2label[int(i)] for i in row] for row in found]",
    ],
    Answer.NEXT_TOKEN: [],
}

# Folders are called so whatever is in them.
_NO_NAME = re.compile(
    r"(fm|hf|pt|out|outputs?|base|main|final|best|data|export(ed)?|merged|saved?|weights|pretrained|pytorch"
    r"|(\w*[-_])?model|models|snapshots?|checkpoints?([-_]\d+)?|[0-9a-f]{40})?",
    re.IGNORECASE,
)
_HEADING_PREFIX = re.compile(r"(model card (for|of)|model:?)\s+", re.IGNORECASE)


_VERSION = (
    'assert int(version.split(".")[0]) >= 5, "transformers 4 cannot find its modules: export with --merge"'
)


@dataclass(frozen=True)
class Loading:
    """What an export's loading lines must say besides the usual."""

    merged: bool
    other_head: bool
    """The FM came with a head for another number of classes."""
    dtype: str | None
    """What the FM was tuned and scored in, such as "torch.bfloat16"; None for float32 kept as float32."""
    left_padded: bool
    """The FM's tokenizer pads in front, where a classifier of absolute positions would count from."""


def model_name(path: str, model_type: str) -> str:
    """What people call this model: its id on the hub, its folder's name, its card's heading."""
    folder = Path(path)
    for part in folder.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    if not folder.is_dir():
        return path
    if not _NO_NAME.fullmatch(folder.name):
        return folder.name
    if heading := _heading(own_file(path, "README.md")):
        return heading
    if not _NO_NAME.fullmatch(folder.parent.name):
        return folder.parent.name
    return f"a {model_type} model"


def _heading(card: Path | None) -> str:
    """The first heading of a model card, past its front matter."""
    if card is None:
        return ""
    text = card.read_text(encoding="utf-8", errors="replace").removeprefix("\ufeff")
    body = re.sub(r"\A---\n.*?\n---\n", "", text, count=1, flags=re.DOTALL)
    found = re.search(r"^# +(.+?)\s*#*$", body, re.MULTILINE)
    if found is None:
        return ""
    plain = re.sub(r"[*_`]{2,}|`|<[^>]+>|!?\[([^\]]*)\]\([^)]*\)", r"\1", found[1]).strip()
    plain = _HEADING_PREFIX.sub("", plain)
    return plain if len(plain) <= 80 and not _NO_NAME.fullmatch(plain) else ""


def loading_lines(task: TaskSection, how: Loading) -> str:
    """Python that loads the export in FOLDER, onto the FM in FM, and answers two examples."""
    form = FORMS[task.kind]
    model_class, processor_class = auto_class(task.kind).__name__, _PROCESSORS[form.input]
    adapter = not how.merged
    names = sorted(name for name in (model_class, processor_class, "AutoConfig" if adapter else "") if name)
    lines = ["import torch"] if adapter and how.dtype else []
    lines += ["from peft import PeftModel"] if adapter else []
    lines += ["from PIL import Image"] if task.kind is TaskKind.IMAGE_CLASSIFICATION else []
    lines += [f"from transformers import {', '.join(names)}"]
    if adapter and task.kind is TaskKind.IMAGE_CLASSIFICATION:
        # It called the modules of vision transformers otherwise, and peft leaves out what it does not find.
        lines += ["from transformers import __version__ as version", "", _VERSION]
    lines.append("")
    side = ', padding_side="right"' if how.left_padded and form.answer is not Answer.NEXT_TOKEN else ""
    lines.append(f"processor = {processor_class}.from_pretrained(FOLDER{side})")
    if adapter:
        options = ["FM", "config=AutoConfig.from_pretrained(FOLDER)"]
        options += [f"dtype={how.dtype}"] if how.dtype else []
        options += ["ignore_mismatched_sizes=True"] if how.other_head else []
        lines.append(f"base = {model_class}.from_pretrained({', '.join(options)})")
        lines.append("model = PeftModel.from_pretrained(base, FOLDER).eval()")
    else:
        lines.append(f"model = {model_class}.from_pretrained(FOLDER).eval()")
    return "\n".join([*lines, "", *_use(task)])


def _use(task: TaskSection) -> list[str]:
    if task.kind is TaskKind.IMAGE_CLASSIFICATION:
        return [
            'images = [Image.open(path).convert("RGB") for path in PATHS]',
            'inputs = processor(images, return_tensors="pt")',
            "logits = model(**inputs).logits",
            *_ANSWERS[Answer.CLASS],
        ]
    texts = 'texts = ["a text", "another text, which is longer"]'
    second = ', ["what goes with the first", "and with the second"]' if task.pairs else ""
    options = f'padding=True, truncation=True, max_length={task.max_length}, return_tensors="pt"'
    lines = [texts, f"inputs = processor(texts{second}, {options})", "logits = model(**inputs).logits"]
    return [*lines, *_ANSWERS[FORMS[task.kind].answer]]


def _scores(status: RunStatus) -> tuple[str, str, str]:
    """What was measured, before the first round and of the model that is exported."""
    first = next((e for e in status.evaluations if e.model == "fm"), None)
    last = reported(status.evaluations, status.result or None)
    if first is None or last is None:
        return "score", "not measured", "not measured"
    measure, values = reading([first], status.task)
    return measure, values["fm"], reading([last], status.task)[1][last.model]


def _further(status: RunStatus) -> list[tuple[str, float]]:
    """Further metrics of the model that is exported, with their titles; classes one by one last."""
    last = reported(status.evaluations, status.result or None)
    if last is None:
        return []
    titles = told_metrics([last])
    found = [(title, last.metrics[name]) for name, title in titles.items()]
    return found + [(f"F1 of {n.partition(':')[2]}", v) for n, v in last.metrics.items() if ":" in n]


def _at_workers(status: RunStatus) -> str:
    """A row on the score at the workers after the exported round, where there is one."""
    score = next((v for v in status.at_workers if v.round == (status.result or status.round)), None)
    if score is None:
        return ""
    measure, values = reading([score.as_evaluation], status.task)
    whose = f"at {score.workers} workers, on {score.examples:,} examples that they did not train on"
    return f"| {measure} of the sub-FM {whose} | {values[AT_WORKERS]} |\n"


def _privacy(status: RunStatus) -> str:
    """What the coordinator did not see while it was tuned."""
    if not status.privacy:
        return ""
    told = "\n".join(f"- {line}" for line in status.privacy)
    return f"\nPrivacy of the workers' data while it was tuned:\n\n{told}\n"


def model_card(config: RunConfig, status: RunStatus, fields: Mapping[str, Any], how: Loading) -> str:
    """The export's README.md; `fields` are those of its config.json."""
    task, labels = config.task, list(config.task.labels)
    name = model_name(config.model.path, str(fields.get("model_type", "")))
    measure, before, after = _scores(status)
    number = status.result or status.round
    which = f" This is the adapter after round {number} of {status.round}." if number < status.round else ""
    if which and number == status.best:
        which = f"{which[:-1]}, the best one by {config.rounds.best_by.replace('_', ' ')}."
    further = "".join(
        f"| {title} after | {'undefined' if math.isnan(v) else f'{v:.4f}'} |\n"
        for title, v in _further(status)
    )
    header = {
        "base_model": name,
        "library_name": "transformers" if how.merged else "peft",
        "pipeline_tag": FORMS[task.kind].pipeline,
        "tags": ["fedpft", "federated-learning", *(["lora"] if config.adapter.targets.lora else [])],
    }
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in header.items())
    told = f" Classes, in order: {', '.join(labels)}." if labels else ""
    where = (
        "FOLDER is this one" if how.merged else f"FOLDER is this one, FM that of {name}, or its id on the hub"
    )
    return f"""---
{front}
---
# {name}, fine-tuned by Federated Proxy Fine-Tuning

Tuned over {status.round} rounds by {len(status.workers)} workers, none of which saw another's data
(FedPFT, arXiv 2404.11536).{which}{told}

| {measure} on the owner's test data | |
|---|---|
| before | {before} |
| after | {after} |
{further}{_at_workers(status)}{_privacy(status)}
{where}:

```python
{loading_lines(task, how)}
```
Adapter digest: {status.adapter_sha256}
"""
