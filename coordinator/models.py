"""The coordinator's two models and what is computed on them. Blocking: runs in the compute thread."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common import seeds
from common.batches import Batch, Dataset, encode
from common.config import Distillation, RunConfig
from common.errors import ConfigError, StoreError
from common.model.adapter import Adapted
from common.model.apoz import ZeroCounts, from_tensors, merge
from common.model.families import ffns_of, layers_of
from common.model.submodel import SubModelPlan, apply_patch, build, make_patch
from common.records import (
    AdapterSpec,
    ArtifactKind,
    ArtifactRef,
    Evaluation,
    ModelFacts,
    SubModelRef,
)
from common.tables import class_indices, read_columns
from common.tensors import Prefixed, TensorFile
from coordinator.algorithms import alignment, compression, distillation
from coordinator.algorithms.aggregation import Update, fedavg
from coordinator.evaluation import score
from coordinator.foundation import TOKENIZER_FILES, load_foundation, wire_config
from coordinator.inbox import APOZ, DELTA
from coordinator.store import Store, StoredUpdate

# Steps done, steps in all; may raise to stop the computation.
OnProgress = Callable[[int, int], None]

# The hidden-state error is reported on this much of the public corpus.
_ERROR_BATCHES = 4


class Models:
    """FM and sub-FM with the present adapter in both.

    Construction loads the FM and the owner's data; raises ModelError and DataError.
    """

    def __init__(self, config: RunConfig, store: Store) -> None:
        self._config, self._store = config, store
        self._seed = config.run.seed
        self._device = torch.device(config.compute.device)
        fm, self._tokenizer = load_foundation(
            config.model.path, config.task.labels, seeds.derive(self._seed, "head")
        )
        self._fm = fm.to(self._device)  # type: ignore[arg-type]  # mistyped in transformers 5
        data, length = config.data, config.task.max_length
        self._public: Dataset | None = None
        if data.public is not None and config.aligns:
            (texts,) = read_columns(data.public.path, data.public.text_column)
            self._public = encode(self._tokenizer, texts, length)
        self._test: Dataset | None = None
        if data.test is not None:
            texts, names = read_columns(data.test.path, data.test.text_column, data.test.label_column)
            labels = class_indices(data.test.path, names, config.task.labels)
            self._test = encode(self._tokenizer, texts, length, labels)
        self._plan: SubModelPlan
        self._tuned_fm: Adapted
        self._tuned_sub_fm: Adapted

    @property
    def scored(self) -> bool:
        """Whether there is test data."""
        return self._test is not None

    @property
    def counted_layers(self) -> dict[int, int]:
        """Layers to count for APoZ, with their FFN widths in the sub-FM."""
        ffns = ffns_of(self._tuned_sub_fm.base)
        return {layer: ffns[layer].width for layer in self._plan.compressed}

    # --- before the first round ---

    def cut(self) -> tuple[SubModelPlan, PreTrainedModel]:
        """Plan the sub-FM and cut it from the FM (FedPFT, section 3.2)."""
        c = self._config.sub_fm
        if self._config.compresses:
            plan = compression.plan_ffn_pruning(self._fm, c.drop_ratio, c.keep_first, c.keep_last)
        else:
            plan = compression.plan_full(self._fm)
        if self._config.compresses and not plan.compressed:
            raise ConfigError(
                f"sub_fm.keep_first = {c.keep_first} and sub_fm.keep_last = {c.keep_last} keep all "
                f'{len(plan.layers)} layers whole; keep fewer, or set sub_fm.construction = "full"'
            )
        weights = compression.cut(self._fm, plan)
        return plan, build(self._fm.config, compression.ffn_widths(self._fm, plan), weights)

    def align_layers(
        self, plan: SubModelPlan, sub_fm: PreTrainedModel, on_progress: OnProgress
    ) -> tuple[float, float]:
        """Layer-level alignment; returns the hidden-state error before and after."""
        assert self._public is not None
        settings = self._config.alignment
        before = self._hidden_error(sub_fm, plan.compressed)
        distillation.distil(
            self._fm,
            sub_fm,
            plan.compressed,
            self._batches(settings.batch_size, "alignment"),
            _settings(settings, settings.steps),
            on_step=lambda step, steps, loss: on_progress(step, steps),
        )
        return before, self._hidden_error(sub_fm, plan.compressed)

    def publish(
        self, plan: SubModelPlan, sub_fm: PreTrainedModel
    ) -> tuple[SubModelRef, ArtifactRef, ModelFacts]:
        """Write the sub-FM's artifacts."""
        weights = sub_fm.state_dict()
        base = self._store.add_tensors(ArtifactKind.SUB_MODEL, weights)
        reference = SubModelRef(
            wire_config(self._fm.config),
            compression.ffn_widths(self._fm, plan),
            base,
            (),
            tuple(
                self._store.add(kind, content) for kind, content in _tokenizer_files(self._tokenizer).items()
            ),
        )
        probe = Adapted(build(self._fm.config, reference.ffn_widths, weights), self.adapter_spec)
        facts = ModelFacts(
            fm_parameters=_parameters([self._fm]),
            sub_fm_parameters=sum(w.numel() for w in weights.values()),
            fm_layer_parameters=_parameters(layers_of(self._fm)),
            sub_fm_layer_parameters=_parameters(layers_of(sub_fm)),
            adapter_parameters=sum(t.numel() for t in probe.tensors().values()),
            fm_bytes=sum(p.numel() * p.element_size() for p in self._fm.parameters()),
        )
        plan_file = self._store.add_tensors(ArtifactKind.PLAN, plan.to_tensors())
        return reference, plan_file, facts

    @property
    def adapter_spec(self) -> AdapterSpec:
        """The tuned parameters."""
        a = self._config.adapter
        return AdapterSpec(a.targets, a.rank, a.alpha, a.dropout)

    def equip(self, reference: SubModelRef, plan: ArtifactRef) -> dict[str, Tensor]:
        """Take the published sub-FM, as workers do, and put adapters into both models.

        Returns the first adapter.
        """
        self._plan = SubModelPlan.from_tensors(TensorFile(self._store.path(plan.sha256)))
        weights = TensorFile(self._store.path(reference.base.sha256)).load()
        sub_fm = build(self._fm.config, reference.ffn_widths, weights, self._device)
        for patch in reference.patches:
            apply_patch(ffns_of(sub_fm), TensorFile(self._store.path(patch.sha256)))
        seed = seeds.derive(self._seed, "adapter")
        self._tuned_fm = Adapted(self._fm, self.adapter_spec, seed)
        self._tuned_sub_fm = Adapted(sub_fm, self.adapter_spec, seed)
        return self._tuned_fm.tensors()

    # --- in the rounds ---

    def aggregate(self, adapter: ArtifactRef, updates: Sequence[StoredUpdate]) -> dict[str, Tensor]:
        """The next adapter (FedPFT, Algorithm 1, server update)."""
        return fedavg(
            self._tensors(adapter),
            [Update(u.worker, u.examples, Prefixed(self._update_file(u), DELTA)) for u in updates],
        )

    def plug_in(self, adapter: ArtifactRef) -> None:
        """Put an adapter into both models."""
        tensors = self._tensors(adapter)
        self._tuned_fm.load(tensors)
        self._tuned_sub_fm.load(tensors)

    def align_neurons(
        self, updates: Sequence[StoredUpdate], round_number: int, on_progress: OnProgress
    ) -> tuple[ArtifactRef, float, float]:
        """Neuron-level alignment by the workers' APoZ; returns patch, error before and after."""
        assert self._public is not None
        settings = self._config.realignment
        counts = self._merged_counts(updates)
        neurons = alignment.drifted_neurons(counts, settings.proportion)
        student = self._tuned_sub_fm.base
        before = self._hidden_error(student, self._plan.compressed)
        distillation.distil(
            self._fm,
            student,
            self._plan.compressed,
            self._batches(settings.batch_size, "realignment", round_number),
            _settings(settings, settings.steps),
            neurons=neurons,
            on_step=lambda step, steps, loss: on_progress(step, steps),
        )
        after = self._hidden_error(student, self._plan.compressed)
        patch = make_patch(ffns_of(student), neurons)
        return self._store.add_tensors(ArtifactKind.NEURON_PATCH, patch), before, after

    def evaluate(self, round_number: int, on_progress: OnProgress) -> list[Evaluation]:
        """Score the FM with the adapter plugged in, and the sub-FM."""
        assert self._test is not None
        fm = Evaluation(round_number, "fm", *score(self._tuned_fm.model, self._test, on_progress))
        if not self._plan.compressed:
            # The sub-FM is the FM.
            return [fm, replace(fm, model="sub_fm")]
        sub_fm = score(self._tuned_sub_fm.model, self._test, on_progress)
        return [fm, Evaluation(round_number, "sub_fm", *sub_fm)]

    # --- parts ---

    def _tensors(self, artifact: ArtifactRef) -> dict[str, Tensor]:
        return TensorFile(self._store.path(artifact.sha256)).load()

    def _update_file(self, update: StoredUpdate) -> TensorFile:
        return TensorFile(self._store.path(update.sha256))

    def _merged_counts(self, updates: Sequence[StoredUpdate]) -> Mapping[int, ZeroCounts]:
        counts = [from_tensors(Prefixed(self._update_file(u), APOZ)) for u in updates]
        counted = [c for c in counts if c]
        if not counted:
            raise StoreError("no update of this round carries APoZ counts")
        return {layer: merge([c[layer] for c in counted]) for layer in counted[0]}

    def _batches(self, batch_size: int, *purpose: str | int) -> Iterator[Batch]:
        assert self._public is not None
        batches = self._public.endless(batch_size, seeds.derive(self._seed, *purpose) % 2**62)
        return (batch.to(self._device) for batch in batches)

    def _hidden_error(self, student: PreTrainedModel, layers: Sequence[int]) -> float:
        batches = self._batches(16, "hidden-error")
        some = (next(batches) for _ in range(_ERROR_BATCHES))
        return distillation.hidden_error(self._fm, student, layers, some)


def _settings(section: Distillation, steps: int) -> distillation.Settings:
    return distillation.Settings(steps, section.learning_rate, section.warmup, section.weight_term)


def _parameters(modules: Sequence[torch.nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase) -> dict[ArtifactKind, bytes]:
    """The files that a worker needs, by kind, whatever form the model's own directory has."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {kind: (Path(folder) / name).read_bytes() for kind, name in TOKENIZER_FILES.items()}
