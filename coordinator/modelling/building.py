"""The sub-FM before the rounds: planned, cut from the FM, aligned to it. Blocking."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from common.config.choices import AlignmentMethod, Construction
from common.config.method import AlignmentSection, Distillation, SubModelSection
from common.config.run import RunConfig
from common.data.batches import Batch, Dataset
from common.errors import ConfigError, ModelError, StoreError
from common.model.held import device_of
from common.model.layers import layer_prefix
from common.model.submodel import SubModelPlan, build, own_weights
from common.records import TaskKind
from common.runtime import seeds
from common.storage.files import write_atomically
from common.storage.tensors import TensorFile, to_bytes, write_tensors
from coordinator.algorithms import (
    attention_rank,
    compression,
    distillation,
    reconstruction,
    saliency,
    sharded_distillation,
)
from coordinator.algorithms.sharding import Ranks, whole

# Steps done, steps in all; may raise to stop the computation.
OnProgress = Callable[[int, int], None]

# The hidden-state error is reported on this much of the public corpus.
_ERROR_BATCHES, _ERROR_BATCH_SIZE = 4, 16

PLAN_FILE, LAYERS_FILE, ABOUT_FILE = "plan.safetensors", "layers.safetensors", "build.json"
CHECKPOINT_FILE = "alignment-checkpoint.safetensors"
ORIGIN = "origin"


@dataclass(frozen=True)
class Recipe:
    """What a sub-FM is made by, beside the FM and the public data."""

    sub_fm: SubModelSection
    alignment: AlignmentSection
    seed: int

    @classmethod
    def of(cls, config: RunConfig) -> "Recipe":
        """A run's."""
        return cls(config.sub_fm, config.alignment, config.run.seed)


@dataclass(frozen=True)
class SubModelBuilder:
    """Cuts and aligns sub-FMs of one FM; the same recipe gives the same bits."""

    fm: PreTrainedModel
    kind: TaskKind
    public: Dataset | None
    recipe: Recipe
    accelerator: Accelerator | None = None
    ranks: Ranks | None = None
    """The processes that hold both models together when they are aligned; each of these calls all methods."""

    def cut(self, on_progress: OnProgress) -> tuple[SubModelPlan, PreTrainedModel]:
        """Plan the sub-FM and cut it from the FM (FedPFT, section 3.2).

        Raises ConfigError when the settings leave nothing to cut.
        """
        s = self.recipe.sub_fm
        match s.construction:
            case Construction.FULL:
                plan = compression.plan_full(self.fm)
            case Construction.LAYER_DROP:
                plan = compression.plan_layer_drop(self.fm, s.drop_ratio, s.keep_first, s.keep_last)
            case Construction.FFN_PRUNING:
                batches = self._some(s.saliency_batches, "saliency") if s.saliency.needs_data else []
                seed = seeds.derive(self.recipe.seed, "saliency")
                scores = saliency.score_layers(self.fm, s.saliency, batches, seed, on_progress)
                plan = compression.plan_ffn_pruning(scores, s.drop_ratio, s.keep_first, s.keep_last)
                if not plan.compressed:
                    raise ConfigError(
                        f"sub_fm.keep_first = {s.keep_first} and sub_fm.keep_last = {s.keep_last} keep all "
                        f'{len(plan.layers)} layers whole; keep fewer, or set sub_fm.construction = "full"'
                    )
        sub_fm = self._built(plan, compression.cut(self.fm, plan))
        if s.attention_rank is not None:
            attention_rank.cut_rank(sub_fm, plan.compressed, s.attention_rank)
        return plan, sub_fm

    def align(
        self,
        plan: SubModelPlan,
        sub_fm: PreTrainedModel,
        on_progress: OnProgress,
        checkpoint: Path | None = None,
    ) -> tuple[float, float]:
        """Layer-level alignment, in place (FedPFT, section 3.3); returns the hidden-state error before
        and after. What breaks off goes on from the file `checkpoint`."""
        a = self.recipe.alignment
        before = self.hidden_error(plan, sub_fm)
        # A closed form has none of its own.
        left = checkpoint if a.method is not AlignmentMethod.CLOSED_FORM else None
        # All of the FM is read for it.
        origin = self._origin(plan) if left else torch.empty(0)
        resume = _left_at(left, origin) if left and left.exists() else None
        if a.method is not AlignmentMethod.GRADIENT and resume is None:
            batches = self._some(a.closed_form_batches, "closed-form")
            reconstruction.reconstruct(
                self.fm, sub_fm, plan.compressed, batches, a.ridge, on_layer=on_progress
            )
        if a.method is not AlignmentMethod.CLOSED_FORM and a.steps:
            keep = None if checkpoint is None else partial(keep_checkpoint, checkpoint, origin)
            settings = distillation_settings(a, a.steps, a.keep_margin)
            if self.ranks is not None:
                sharded_distillation.distil_sharded(
                    self.fm,
                    sub_fm,
                    plan.compressed,
                    self.batches(a.batch_size, "alignment"),
                    settings,
                    self.ranks,
                    on_step=lambda step, steps, loss: on_progress(step, steps),
                    on_checkpoint=keep,
                    checkpoint_every=a.checkpoint_every,
                    resume=resume,
                )
                return before, self.hidden_error(plan, sub_fm)
            distillation.distil(
                self.fm,
                sub_fm,
                plan.compressed,
                self.batches(a.batch_size, "alignment", *self._share()),
                settings,
                on_step=lambda step, steps, loss: on_progress(step, steps),
                accelerator=self.accelerator,
                on_checkpoint=keep,
                checkpoint_every=a.checkpoint_every,
                resume=resume,
            )
        return before, self.hidden_error(plan, sub_fm)

    def _origin(self, plan: SubModelPlan) -> Tensor:
        """Tells this build from others, uint8 [32]: a checkpoint serves the one that it is of."""
        told = {
            "fm": fingerprint(self.fm),
            "plan": hashlib.sha256(to_bytes(plan.to_tensors())).hexdigest(),
            "alignment": self.recipe.alignment.model_dump(mode="json", exclude={"checkpoint_every"}),
            "seed": self.recipe.seed,
        }
        return torch.tensor(list(hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()))

    def _share(self) -> tuple[int, ...]:
        """Which of several processes this is, so that each reads batches of its own; () when alone."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return ()
        return (self.accelerator.process_index,)

    def hidden_error(self, plan: SubModelPlan, sub_fm: PreTrainedModel) -> float:
        """Relative squared error of the compressed layers' outputs on public data."""
        return distillation.hidden_error(self.fm, sub_fm, plan.compressed, iter(self.some_public()))

    def some_public(self) -> list[Batch]:
        """The public data on which models are compared."""
        return self._some(_ERROR_BATCHES, "hidden-error", _ERROR_BATCH_SIZE)

    def batches(self, batch_size: int, *purpose: str | int) -> Iterator[Batch]:
        """Public data without end, in an order of its own for every purpose."""
        assert self.public is not None
        batches = self.public.endless(batch_size, seeds.derive(self.recipe.seed, *purpose) % 2**62)
        device = device_of(self.fm)
        return (batch.to(device) for batch in batches)

    def _some(self, count: int, purpose: str, batch_size: int = 16) -> list[Batch]:
        batches = self.batches(batch_size, purpose)
        return [next(batches) for _ in range(count)]

    def _built(self, plan: SubModelPlan, weights: dict[str, Tensor]) -> PreTrainedModel:
        config, widths = compression.config_of(self.fm, plan), compression.ffn_widths(self.fm, plan)
        return build(config, self.kind, widths, weights, device_of(self.fm))

    # --- ahead of a run ---

    def load(self, folder: Path) -> tuple[SubModelPlan, PreTrainedModel]:
        """What `save` wrote. Raises ModelError when it is not there, or of another FM."""
        try:
            fm_sha256 = json.loads((folder / ABOUT_FILE).read_text())["fm_sha256"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{folder} holds no built sub-FM: {error}; `fedpft build` makes one") from None
        if fm_sha256 != fingerprint(self.fm):
            raise ModelError(
                f"{folder} holds the sub-FM of another foundation model, or of one held in another "
                "model.dtype; build it anew"
            )
        plan = SubModelPlan.from_tensors(TensorFile(folder / PLAN_FILE))
        weights = compression.cut(self.fm, plan) | TensorFile(folder / LAYERS_FILE).load()
        return plan, self._built(plan, weights)

    def save(
        self, folder: Path, plan: SubModelPlan, sub_fm: PreTrainedModel, error: tuple[float, float]
    ) -> None:
        """Write plan and layers: a secret of the FM's owner, as the plan tells which neurons were cut."""
        stack = layer_prefix(self.fm.config, 0).removesuffix("0.")
        writes = self.ranks is None or self.ranks.is_main
        layers = {}
        for name, tensor in own_weights(sub_fm).items():
            if name.startswith(stack):
                # Of several processes each holds a part, and one gets to hold all.
                value = whole(tensor)
                if writes:
                    layers[name] = value if self.ranks is None else value.to("cpu", self.fm.dtype)
        fm_sha256 = fingerprint(self.fm)
        if not writes:
            return
        write_tensors(folder / PLAN_FILE, plan.to_tensors())
        write_tensors(folder / LAYERS_FILE, layers)
        about = {
            "fm_sha256": fm_sha256,
            "ffn_widths": compression.ffn_widths(self.fm, plan),
            "settings": self.recipe.sub_fm.model_dump(mode="json"),
            "alignment": self.recipe.alignment.model_dump(mode="json"),
            "seed": self.recipe.seed,
            "hidden_error_before": error[0],
            "hidden_error_after": error[1],
        }
        # Last: without it the folder counts as empty.
        write_atomically(folder / ABOUT_FILE, json.dumps(about, indent=2).encode())


def keep_checkpoint(checkpoint: Path, origin: Tensor, state: Mapping[str, Tensor]) -> None:
    """Write how far a distillation has come; `origin`, uint8 [32], tells it from others."""
    write_tensors(checkpoint, {**state, ORIGIN: origin})


def _left_at(checkpoint: Path, origin: Tensor) -> dict[str, Tensor]:
    """Where a distillation broke off. Raises StoreError when that was another one."""
    state = TensorFile(checkpoint).load()
    found = state.pop(ORIGIN, None)
    if found is None or not torch.equal(found, origin):
        raise StoreError(
            f"{checkpoint} is of an alignment with other settings or another model; "
            "restore them, or remove the file"
        )
    return state


def distillation_settings(section: Distillation, steps: int, margin: float) -> distillation.Settings:
    """As the algorithm wants them."""
    return distillation.Settings(
        steps,
        section.learning_rate,
        section.warmup,
        section.weight_term,
        section.attention_term,
        section.logit_term,
        margin,
    )


def fingerprint(fm: PreTrainedModel) -> str:
    """SHA-256 over the names and values of the FM's layers, whatever its head."""
    stack = layer_prefix(fm.config, 0).removesuffix("0.")
    digest = hashlib.sha256()
    for name, tensor in sorted(own_weights(fm).items()):
        if name.startswith(stack):
            digest.update(name.encode())
            # As bytes: numpy knows no bfloat16.
            digest.update(whole(tensor).detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
