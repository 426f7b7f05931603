"""The coordinator's two models and what is computed on them. Blocking: runs in the compute thread."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.config.choices import Construction, CorrectionTeacher
from common.config.run import RunConfig
from common.config.task import DataSource
from common.data.batches import Dataset
from common.data.encoding import encode
from common.data.examples import Examples
from common.data.processors import processor_files
from common.model.adapter import Adapted
from common.model.checkpointing import checkpointing
from common.model.ffn import ffns_of, is_smooth
from common.model.passes import logits
from common.model.submodel import Held, SubModelPlan, apply_patch, build, in_full
from common.quantization import Quantization
from common.records import ArtifactKind, ArtifactRef, SubModelRef, TaskKind, ZeroRule
from common.run_status import Evaluation, GradientGap, ModelFacts
from common.runtime import seeds
from common.storage.tensors import TensorFile
from coordinator.algorithms import alignment, compression, distillation, gradient_gap
from coordinator.algorithms.plugging import plug
from coordinator.context import adapter_spec
from coordinator.modelling import round_files
from coordinator.modelling.building import (
    CHECKPOINT_FILE,
    OnProgress,
    Recipe,
    SubModelBuilder,
    distillation_settings,
)
from coordinator.modelling.checks import check_run, check_sub_model
from coordinator.modelling.correcting import CORRECTION_FILE, Corrected, Corrector
from coordinator.modelling.data import read_source
from coordinator.modelling.evaluation import perplexity, score
from coordinator.modelling.foundation import foundation_of, wire_config
from coordinator.modelling.publishing import facts_of, write_weights
from coordinator.modelling.spreading import brought, settle
from coordinator.storage.alignments import StoredPatch
from coordinator.storage.store import Store, StoredUpdate


class Models:
    """FM and sub-FM with the present adapter in both.

    Construction loads the FM and the owner's data; raises ModelError and DataError.
    """

    def __init__(self, config: RunConfig, store: Store) -> None:
        self._config, self._store = config, store
        self._seed, self._kind = config.run.seed, config.task.kind
        self._device = torch.device(config.compute.device)
        self._spec = adapter_spec(config)
        loaded = foundation_of(config)
        self._processor, self._new = loaded.processor, loaded.new_modules
        self._fm = loaded.model
        self._public: Dataset | None = None
        if config.data.public is not None and (not self._whole or self._controlled):
            self._public = self._read(config.data.public, None)
        self._test: Dataset | None = None
        if config.data.test is not None:
            self._test = self._read(config.data.test, config.task.labels)
        check = partial(check_run, loaded, config, (self._test, self._public))
        self._tried = brought(self._fm, config.compute, check)
        self._builder = SubModelBuilder(self._fm, self._kind, self._public, Recipe.of(config))
        self._plan: SubModelPlan
        self._tuned_fm: Adapted
        self._tuned_sub_fm: Adapted
        self._fresh: dict[str, Tensor]
        self._fm_widths: tuple[int, ...]
        self._adapter: ArtifactRef | None = None
        self._plugged: ArtifactRef | None = None

    def _read(self, source: DataSource, labels: tuple[str, ...] | None) -> Dataset:
        task = self._config.task
        read = read_source(source, self._config)
        return encode(self._processor, read, task.kind, task.max_length, labels)

    def encoded(self, examples: Examples) -> Dataset:
        """Labelled examples as the models read them: what a worker does with its own."""
        task, apart = self._config.task, self._config.private_examples
        return encode(self._processor, examples, task.kind, task.max_length, task.labels, apart=apart)

    @property
    def tuned_sub_fm(self) -> Adapted:
        """The sub-FM with the present adapter, as workers have it."""
        self._plug()
        return self._tuned_sub_fm

    @property
    def _whole(self) -> bool:
        """Whether the sub-FM is the FM, value by value."""
        whole = self._config.sub_fm.construction is Construction.FULL
        return whole and self._config.sub_fm.quantization is Quantization.NONE

    @property
    def _controlled(self) -> bool:
        """Whether the correction needs no sub-FM: the control."""
        c = self._config.correction
        return c.steps > 0 and c.teacher is CorrectionTeacher.ROUNDS

    @property
    def scored(self) -> bool:
        """Whether there is test data."""
        return self._test is not None

    @property
    def gap_measurable(self) -> bool:
        """Whether there is a gap between the models, and data to measure it on."""
        return self._public is not None and not self._whole

    @property
    def counted_layers(self) -> dict[int, int]:
        """Layers to count for APoZ, with their FFN widths in the sub-FM."""
        ffns = ffns_of(self._tuned_sub_fm.base)
        return {layer: ffns[layer].width for layer in self._plan.compressed}

    @property
    def zero_rule(self) -> ZeroRule:
        """What APoZ counts, for this FM's activation function."""
        rule = self._config.realignment.zero_rule
        if rule == "auto":
            return ZeroRule.PRE_ACTIVATION if is_smooth(self._fm.config) else ZeroRule.NEAR_ZERO
        return ZeroRule(rule)

    # --- before the first round ---

    def cut(self, on_progress: OnProgress) -> tuple[SubModelPlan, PreTrainedModel]:
        """Plan the sub-FM and cut it from the FM (FedPFT, section 3.2), or take one built before."""
        path = self._config.sub_fm.path
        plan, module = self._builder.load(path) if path is not None else self._builder.cut(on_progress)
        # Workers may wait for the alignment that follows.
        check_sub_model(module, self._config, self._tried)
        return plan, module

    def align_layers(
        self, plan: SubModelPlan, sub_fm: PreTrainedModel, on_progress: OnProgress
    ) -> tuple[float, float]:
        """Layer-level alignment; returns the hidden-state error before and after."""
        return self._builder.align(plan, sub_fm, on_progress, self._store.directory / CHECKPOINT_FILE)

    def publish(
        self, plan: SubModelPlan, sub_fm: PreTrainedModel
    ) -> tuple[SubModelRef, ArtifactRef, ModelFacts]:
        """Write the sub-FM's artifacts. Raises ModelError for one that an alignment has spoilt."""
        check_sub_model(sub_fm, self._config, self._tried)
        held = Held(self._config.sub_fm.quantization, self._new)
        base = write_weights(self._store, sub_fm, self._kind, held)
        files = processor_files(self._processor, self._kind)
        reference = SubModelRef(
            wire_config(sub_fm.config),
            compression.ffn_widths(self._fm, plan),
            base,
            (),
            tuple(self._store.artifacts.add(kind, content) for kind, content in files.items()),
            self._new,
        )
        module = self._module(reference, plan, self.tensors(base))
        probe = Adapted(module, self._kind, self._spec, new=self._new).tensors()
        facts = facts_of(self._fm, sub_fm, sum(t.numel() for t in probe.values()))
        plan_file = self._store.artifacts.add_tensors(ArtifactKind.PLAN, plan.to_tensors())
        return reference, plan_file, facts

    def _module(
        self, reference: SubModelRef, plan: SubModelPlan, weights: Mapping[str, Tensor]
    ) -> PreTrainedModel:
        """The sub-FM as workers make it."""
        config = compression.config_of(self._fm, plan)
        held = Held(self._config.sub_fm.quantization, reference.new_modules)
        module = build(config, self._kind, reference.ffn_widths, weights, self._device, held)
        for patch in reference.patches:
            apply_patch(ffns_of(module), TensorFile(self._store.artifacts.path(patch.sha256)))
        return module

    def equip(self, reference: SubModelRef, plan: ArtifactRef) -> dict[str, Tensor]:
        """Take the published sub-FM, as workers do, and put adapters into both models.

        Returns the first adapter.
        """
        self._plan = SubModelPlan.from_tensors(TensorFile(self._store.artifacts.path(plan.sha256)))
        weights = TensorFile(self._store.artifacts.path(reference.base.sha256)).load()
        module = self._module(reference, self._plan, weights)
        self._fm_widths = tuple(ffn.width for ffn in ffns_of(self._fm))
        seed = seeds.derive(self._seed, "adapter")
        # What is new as published: a run that an earlier version began goes on as it was.
        self._tuned_fm = Adapted(self._fm, self._kind, self._spec, seed, reference.new_modules)
        self._tuned_sub_fm = Adapted(module, self._kind, self._spec, seed, reference.new_modules)
        settle(self._fm, self._config.compute)
        self._fresh = self._tuned_fm.tensors()
        return self._tuned_sub_fm.tensors()

    def go_back(self, reference: SubModelRef) -> None:
        """Take the sub-FM as it was at an earlier round; its adapter is to be plugged in then."""
        weights = self.tensors(reference.base)
        module = self._module(reference, self._plan, weights)
        seed = seeds.derive(self._seed, "adapter")
        self._tuned_sub_fm = Adapted(module, self._kind, self._spec, seed, reference.new_modules)
        self._plugged = None

    # --- in the rounds ---

    def aggregate(
        self, adapter: ArtifactRef, updates: Sequence[StoredUpdate], state: ArtifactRef | None
    ) -> tuple[ArtifactRef, ArtifactRef | None]:
        """The next adapter and the server optimiser's next state."""
        return round_files.aggregate(self._store, self._config, adapter, updates, state)

    def inspect(self, adapter: ArtifactRef) -> str | None:
        """What would be wrong with this adapter, or None: its values, the FM's answers to a batch of data."""
        file = self._file(adapter)
        if odd := next((name for name in file if not bool(file[name].isfinite().all())), None):
            return f"the adapter's tensor {odd} is not finite"
        if self._tried is None:
            return None
        present, self._adapter = self._adapter, adapter
        self._plug()
        self._adapter = present
        with torch.inference_mode():
            answers = logits(self._tuned_fm.model, self._tried.to(self._device).inputs)
        return None if bool(answers.isfinite().all()) else "the FM's answers are not finite"

    def plug_in(self, adapter: ArtifactRef) -> None:
        """From now on both models are those with this adapter."""
        self._adapter = adapter

    def _plug(self) -> None:
        """Put the present adapter into both models, when that is not done: not every round looks at them."""
        if self._adapter == self._plugged:
            return
        assert self._adapter is not None
        tensors = self._file(self._adapter)
        self._tuned_fm.load(self._in_fm(tensors))
        self._tuned_sub_fm.load(tensors)
        self._plugged = self._adapter

    def measure_gap(self, round_number: int) -> GradientGap:
        """The gradient gap on public data (FedPFT, theorems 1 and 2)."""
        self._plug()
        settings = self._config.gradient_gap
        batches = self._builder.batches(settings.batch_size, "gradient-gap")
        some = [next(batches) for _ in range(settings.batches)]
        seed = seeds.derive(self._seed, "gradient-gap")
        with self._checkpointing():
            both = self._tuned_fm, self._tuned_sub_fm
            tokens = self._config.training.tokens_per_step
            return gradient_gap.measure(*both, self._plan, some, round_number, seed, tokens)

    def perplexities(self) -> tuple[float, float] | None:
        """The FM's and the sub-FM's on public data; None where they are no language models."""
        if self._kind is not TaskKind.CAUSAL_LM:
            return None
        self._plug()
        some = self._builder.some_public()
        return perplexity(self._tuned_fm.model, some), perplexity(self._tuned_sub_fm.model, some)

    def align_neurons(
        self, updates: Sequence[StoredUpdate], round_number: int, on_progress: OnProgress
    ) -> tuple[StoredPatch, float, float]:
        """Neuron-level alignment by the workers' APoZ; returns patch, error before and after."""
        settings = self._config.realignment
        neurons = alignment.chosen_neurons(
            round_files.zero_counts(self._config, self._store, updates, self.counted_layers),
            settings.proportion,
            settings.choice,
            seeds.derive(self._seed, "choice", round_number),
        )
        self._plug()
        student = self._tuned_sub_fm.base
        before = self._builder.hidden_error(self._plan, student)
        with in_full(ffns_of(student), neurons):
            distillation.distil(
                self._fm,
                student,
                self._plan.compressed,
                self._builder.batches(settings.batch_size, "realignment", round_number),
                distillation_settings(settings, settings.steps, self._config.alignment.keep_margin),
                neurons=neurons,
                on_step=lambda step, steps, loss: on_progress(step, steps),
            )
        after = self._builder.hidden_error(self._plan, student)
        return round_files.write_patch(self._store, ffns_of(student), neurons), before, after

    def evaluate(self, round_number: int, fm_only: bool, on_progress: OnProgress) -> list[Evaluation]:
        """Score the FM with the adapter plugged in, and, unless `fm_only`, the sub-FM."""
        self._plug()
        fm = self._score("fm", self._tuned_fm, round_number, on_progress)
        if fm_only:
            return [fm]
        if self._whole:
            return [fm, replace(fm, model="sub_fm")]
        return [fm, self._score("sub_fm", self._tuned_sub_fm, round_number, on_progress)]

    # --- after the last round ---

    @property
    def correctable(self) -> bool:
        """Whether there is a sub-FM to learn from, or a control that needs none, and data to do it on."""
        return self._public is not None and (not self._whole or self._controlled)

    def correct(self, adapter: ArtifactRef, before: ArtifactRef | None, on_progress: OnProgress) -> Corrected:
        """The FM's corrected adapter, if that helped; `before` is the adapter of the round before."""
        assert self._public is not None
        self._plug()
        self._plugged = None
        section = self._config.correction
        corrector = Corrector(self._tuned_fm, self._tuned_sub_fm, self._public, section, self._seed)
        previous = None if before is None else self._in_fm(self._file(before))
        with self._checkpointing():
            return corrector.correct(adapter, previous, self._store.directory / CORRECTION_FILE, on_progress)

    def evaluate_corrected(
        self, adapter: ArtifactRef, round_number: int, on_progress: OnProgress
    ) -> list[Evaluation]:
        """Score the FM with its corrected adapter."""
        self._plugged = None
        self._tuned_fm.load(self.tensors(adapter))
        return [self._score("corrected", self._tuned_fm, round_number, on_progress)]

    # --- parts ---

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        wanted = self._config.training.checkpointing
        with checkpointing(self._fm, wanted), checkpointing(self._tuned_sub_fm.base, wanted):
            yield

    def _score(self, name: str, tuned: Adapted, round_number: int, on_progress: OnProgress) -> Evaluation:
        assert self._test is not None
        labels = self._config.task.labels
        figures = score(tuned.model, self._test, self._kind, labels, on_progress)
        return Evaluation(round_number, name, *figures)

    def _in_fm(self, adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return plug(adapter, self._plan, self._fm.config, self._fresh, self._fm_widths)

    def tensors(self, artifact: ArtifactRef) -> dict[str, Tensor]:
        """What an artifact holds."""
        return self._file(artifact).load()

    def _file(self, artifact: ArtifactRef) -> TensorFile:
        return round_files.opened(self._store, artifact)
