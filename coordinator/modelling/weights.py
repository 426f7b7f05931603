"""Which weights a checkpoint brought: a new head is all that may be new, and what is left over is told."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import ModelError
from common.listing import first_few
from common.model.adapter import heads_of, may_lack
from common.model.family import Family
from common.records import TaskKind

# Parameters that none of the tasks reads, and buffers that older versions saved.
_NEVER_READ = re.compile(r"(.*\.)?(mask_token|position_ids|masked_bias|attn\.bias|inv_freq)")
_IN_LAYER = re.compile(r"(?:^|.*\.)(?:layers?|h|blocks?)\.(\d+)\..+")
_SHOWN = 3


@dataclass(frozen=True)
class Brought:
    """How a checkpoint and a model fit: names in the model alone, in the file alone, and in both but of
    two shapes: (the file's, the model's)."""

    missing: frozenset[str]
    unexpected: frozenset[str]
    mismatched: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    @classmethod
    def of(cls, info: Mapping[str, object]) -> "Brought":
        """From transformers' `output_loading_info`."""
        found: dict[str, set[str]] = {key: set(info[key]) for key in ("missing_keys", "unexpected_keys")}  # type: ignore[call-overload]
        shapes: set[tuple[str, tuple[int, ...], tuple[int, ...]]] = set(info["mismatched_keys"])  # type: ignore[call-overload]
        return cls(
            frozenset(found["missing_keys"]),
            frozenset(found["unexpected_keys"]),
            {name: (tuple(file), tuple(model)) for name, file, model in shapes},
        )

    def new(self, module: str) -> list[str]:
        """Names below `module` that were drawn."""
        return sorted(n for n in {*self.missing, *self.mismatched} if n.startswith(f"{module}."))


def new_modules(path: str, brought: Brought, family: Family, kind: TaskKind, layers: int) -> tuple[str, ...]:
    """Modules beside the head that the checkpoint may lack and does: drawn, so they must be tuned.

    Raises ModelError when anything else was not brought, or what was brought has no place in a layer.
    """
    optional = may_lack(family, kind)
    allowed = (*heads_of(family, kind), *optional)
    wanting = {
        name
        for name in {*brought.missing, *brought.mismatched}
        if not name.startswith(tuple(f"{module}." for module in allowed)) and not _NEVER_READ.fullmatch(name)
    }
    if wanting:
        raise ModelError(_wanting(path, wanting, brought, layers))
    # A vision tower's checkpoint may hold another tower, too.
    stack = "" if family.sizes is None else f"{family.encoder}."
    left = sorted(
        n
        for n in brought.unexpected
        if n.startswith(stack) and _IN_LAYER.fullmatch(n) and not _NEVER_READ.fullmatch(n)
    )
    if left:
        raise ModelError(_left_over(path, left, layers))
    new = tuple(module for module in optional if brought.new(module))
    for module in new:
        # Half of a module that is not the head's is no habit of publishing, but a broken file.
        if odd := [name for name in brought.new(module) if name in brought.mismatched]:
            raise ModelError(_wanting(path, {odd[0]}, brought, layers))
    return new


def _wanting(path: str, wanting: set[str], brought: Brought, layers: int) -> str:
    shaped = sorted(name for name in wanting if name in brought.mismatched)
    cause = _wrapped(brought)
    if shaped and not cause:
        file, model = brought.mismatched[shaped[0]]
        return (
            f"model {path}: {first_few(shaped, _SHOWN)}: config.json and weights do not fit: "
            f"{list(file)} in the file, {list(model)} by config.json; take both from the same model"
        )
    lost = sorted({int(m[1]) for m in map(_IN_LAYER.fullmatch, wanting) if m})
    if not cause:
        cause = (
            f"config.json says {layers} layers, weights are missing in layer {', '.join(map(str, lost))}: "
            "the file is another model's, or not complete"
            if lost
            else "the file is another model's than config.json, or not complete"
        )
    names = sorted(wanting, key=lambda name: (_IN_LAYER.fullmatch(name) is None, name))
    return f"model {path}: the weights lack {first_few(names, _SHOWN)}, which would be random; {cause}"


def _left_over(path: str, left: list[str], layers: int) -> str:
    numbers = [int(m[1]) for m in map(_IN_LAYER.fullmatch, left) if m]
    if min(numbers) >= layers:
        cause = (
            f"config.json says {layers} layers, the file has {max(numbers) + 1}; correct num_hidden_layers"
        )
    elif any("lora_" in name for name in left):
        cause = _MERGE
    else:
        cause = "config.json has no place for them; take it and the weights from the same model"
    return f"model {path}: {first_few(left, _SHOWN)} would be left out; {cause}"


_MERGE = (
    "these are the weights of a model that peft has wrapped; merge the adapter first (merge_and_unload), "
    "then save_pretrained"
)


def _wrapped(brought: Brought) -> str:
    """What the names in the file tell of how it was written; "" when nothing."""
    if any(".lora_" in n or ".base_layer." in n or n.startswith("base_model.") for n in brought.unexpected):
        return _MERGE
    begins: Counter[str] = Counter()
    for name in brought.unexpected:
        parts = name.split(".")
        for cut in range(1, len(parts)):
            if ".".join(parts[cut:]) in brought.missing:
                begins[".".join(parts[:cut]) + "."] += 1
    if not begins:
        return ""
    prefix, _ = begins.most_common(1)[0]
    return (
        f'the names in the file begin with "{prefix}", as a wrapper (DataParallel, torch.compile, Lightning) '
        "leaves them; save the model within it, by save_pretrained"
    )


def left_unread(brought: Brought) -> str:
    """What of the file the task has no use for, as part of a line; "" when nothing."""
    names = sorted(name for name in brought.unexpected if not _NEVER_READ.fullmatch(name))
    return first_few(names, _SHOWN) if names else ""
