"""A coordinator's run configuration: typed, frozen, valid from birth. `common.config.file` reads it."""

import math
from enum import StrEnum
from typing import Any

from pydantic import ValidationInfo, model_validator

from common.config.choices import (
    AggregationRule,
    AlignmentMethod,
    ClassWeights,
    Construction,
    CorrectionTeacher,
    LoraAveraging,
    Saliency,
    ServerOptimizer,
    UpdateWeights,
)
from common.config.dp import require_private
from common.config.method import (
    AdapterSection,
    AggregationSection,
    AlignmentSection,
    CorrectionSection,
    GradientGapSection,
    RealignmentSection,
    RoundsSection,
    SubModelSection,
    TrainingSection,
    ValidationSection,
)
from common.config.privacy import PrivacySection, require_summable
from common.config.section import Section
from common.config.service import AdmissionSection, ComputeSection, LimitsSection, ServerSection, TlsSection
from common.config.task import DataSection, ModelSection, RunSection, TaskSection
from common.config.tracking import TrackingSection
from common.private_task import DpUnit
from common.quantization import Quantization
from common.records import AdapterTargets, TaskKind
from common.task_forms import BEST_BY, FORMS

# What holds for language models, where the paper's own settings do not: with neurons cut by their norm and
# aligned by 60 steps SmolLM2's perplexity is 929, with these in a tenth of the time 120; the FM's is 40.
OF_LANGUAGE_MODELS: dict[str, dict[str, StrEnum]] = {
    "sub_fm": {"saliency": Saliency.ACTIVATION},
    "alignment": {"method": AlignmentMethod.CLOSED_FORM},
}


# Of a configuration that was checked before it was stored, and that lacks how workers are let in.
_STORED = {"stored": True}


class RunConfig(Section):
    """The whole file."""

    run: RunSection = RunSection()
    """The run as a whole."""
    model: ModelSection
    """The foundation model (FM). It never leaves the coordinator."""
    task: TaskSection
    """What the model learns."""
    data: DataSection = DataSection()
    """The owner's own data."""
    sub_fm: SubModelSection = SubModelSection()
    """How the sub-FM is cut from the FM."""
    alignment: AlignmentSection = AlignmentSection()
    """Layer-level alignment, before the first round."""
    realignment: RealignmentSection = RealignmentSection()
    """Neuron-level alignment during the rounds, guided by the workers' APoZ counts."""
    adapter: AdapterSection = AdapterSection()
    """The tuned parameters: LoRA and the task head."""
    training: TrainingSection = TrainingSection()
    """How workers train in a round."""
    aggregation: AggregationSection = AggregationSection()
    """How updates become the next adapter."""
    correction: CorrectionSection = CorrectionSection()
    """After the last round, what the sub-FM has learnt is distilled into the FM's adapter, on public data."""
    gradient_gap: GradientGapSection = GradientGapSection()
    """How far apart the FM's and the sub-FM's gradients are, after each round, on public data."""
    rounds: RoundsSection = RoundsSection()
    """The federated rounds."""
    validation: ValidationSection = ValidationSection()
    """Scores at the workers: of the sub-FM, on examples that they keep aside. Only sums are shown."""
    privacy: PrivacySection = PrivacySection()
    """What the coordinator sees of a worker's update: all of it, or, by secure aggregation, sums alone."""
    server: ServerSection = ServerSection()
    """Where the coordinator listens."""
    tls: TlsSection = TlsSection()
    """Mutual TLS, with the files that `fedpft certs issue` writes; files that change are read anew."""
    admission: AdmissionSection = AdmissionSection()
    """Who may take part in the run."""
    limits: LimitsSection = LimitsSection()
    """What workers may ask for. Who goes beyond is refused and told why; the run goes on."""
    compute: ComputeSection = ComputeSection()
    """Where the coordinator computes."""
    tracking: TrackingSection = TrackingSection()
    """Experiment trackers that the run's figures are told to, never those of a single worker."""

    @model_validator(mode="before")
    @classmethod
    def _of_its_task(cls, given: Any) -> Any:
        """What is not said is as it fits the kind of task; for language models that takes public data."""
        if not isinstance(given, dict) or _of(given.get("task"), "kind") != TaskKind.CAUSAL_LM:
            return given
        if _of(given.get("data"), "public") is None:
            return given
        filled = dict(given)
        for section, values in OF_LANGUAGE_MODELS.items():
            if isinstance(there := filled.get(section, {}), dict):
                filled[section] = values | there
        return filled

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> "RunConfig":
        if self.aligns and self.data.public is None:
            raise ValueError(
                "data.public.path (or preset) must be set for an alignment; or do without: "
                'alignment.steps = 0 with method = "gradient", realignment.every = 0 and no drift'
            )
        if self.prunes and self.data.public is None and self.sub_fm.saliency.needs_data:
            raise ValueError(
                f'data.public.path (or preset) must be set for sub_fm.saliency = "{self.sub_fm.saliency}"'
            )
        if self.correction.steps and self.data.public is None:
            raise ValueError("data.public.path (or preset) must be set for correction.steps > 0")
        exact = self.aggregation.lora is LoraAveraging.EXACT
        if exact and self.correction.steps and self.correction.teacher is CorrectionTeacher.ROUNDS:
            raise ValueError('correction.teacher must not be "rounds" for aggregation.lora = "exact"')
        if self.realignment.drift is not None and self.gradient_gap.batches == 0:
            raise ValueError("realignment.drift needs gradient_gap.batches >= 1")
        if self.rounds.minimum > (self.rounds.sample or self.rounds.workers):
            raise ValueError("rounds.minimum must not exceed the workers of a round")
        admitted = self.admission.workers
        if admitted is not None and len(set(admitted)) < self.rounds.workers:
            raise ValueError("rounds.workers must not exceed the workers that admission.workers names")
        if self.rounds.over_select and self.rounds.sample is None:
            raise ValueError("rounds.over_select needs rounds.sample: without it all workers are asked")
        if self.task.kind is TaskKind.CAUSAL_LM and self.adapter.targets is AdapterTargets.NONE:
            raise ValueError('adapter.targets must not be "none" for causal-lm: there is no head to tune')
        if self.adapter.targets.neurons and self.aggregation.lora is not LoraAveraging.FACTORS:
            raise ValueError(
                f'aggregation.lora must be "factors" for adapter.targets = "{self.adapter.targets}", '
                f'got "{self.aggregation.lora}"'
            )
        if self.task.pairs and self.data.test and self.data.test.path and not self.data.test.pair_column:
            raise ValueError("data.test.pair_column must be set, as task.pairs is true")
        if self.sub_fm.path is not None and not self.prunes:
            raise ValueError(
                f'sub_fm.path must be unset for sub_fm.construction = "{self.sub_fm.construction}"'
            )
        if self.training.class_weights is not ClassWeights.NONE and not FORMS[self.task.kind].named:
            raise ValueError(
                f'training.class_weights must be "none" for {self.task.kind}, which has no classes'
            )
        if self.sub_fm.attention_rank is not None and not self.prunes:
            raise ValueError(
                f'sub_fm.attention_rank must be unset for sub_fm.construction = "{self.sub_fm.construction}"'
            )
        gradient = self.prunes and self.alignment.method is AlignmentMethod.GRADIENT
        if self.alignment.keep_margin and not gradient:
            raise ValueError(
                'alignment.keep_margin > 0 needs sub_fm.construction = "ffn-pruning" and alignment.method = '
                f'"gradient", got "{self.sub_fm.construction}" and "{self.alignment.method}"'
            )
        exact_or_full = exact or self.adapter.targets.neurons
        if self.sub_fm.quantization is not Quantization.NONE and exact_or_full:
            raise ValueError(
                'sub_fm.quantization must be "none" for aggregation.lora = "exact" and where adapter.targets '
                f'names neurons: both change the sub-FM\'s weights; got "{self.sub_fm.quantization}"'
            )
        of_tokens = self.aggregation.weights is UpdateWeights.TARGET_TOKENS
        if of_tokens and self.task.kind is not TaskKind.CAUSAL_LM:
            raise ValueError(
                f'aggregation.weights must be "examples" or "auto" for {self.task.kind}, which has no target '
                f'tokens, got "{self.aggregation.weights}"'
            )
        if self.compute.device_map is not None and exact_or_full:
            raise ValueError(
                'compute.device_map must be unset for aggregation.lora = "exact" and where adapter.targets '
                "names neurons: both change the FM's weights, which are only read where they are spread"
            )
        self._check_exact_averaging()
        self._check_robust_rule()
        self._check_best()
        require_summable(self, stored=info.context is _STORED)
        require_private(self)
        return self

    def _check_best(self) -> None:
        v, rounds, answer = self.validation, self.rounds, FORMS[self.task.kind].answer
        if rounds.patience is not None and not v.every and self.data.test is None:
            raise ValueError("rounds.patience needs scores: set validation.every, or data.test.path")
        if rounds.best_by not in BEST_BY[answer]:
            known = ", ".join(f'"{name}"' for name in BEST_BY[answer])
            raise ValueError(
                f'rounds.best_by must be one of {known} for {self.task.kind}, got "{rounds.best_by}"'
            )
        if v.every and v.minimum > (v.workers or rounds.workers):
            raise ValueError(
                f"validation.minimum must not exceed the workers that are asked, got {v.minimum} of "
                f"{v.workers or rounds.workers}"
            )

    def _check_robust_rule(self) -> None:
        a, least = self.aggregation, self.rounds.minimum
        if a.rule in (AggregationRule.KRUM, AggregationRule.MULTI_KRUM) and least < 2 * a.byzantine + 3:
            raise ValueError(
                f'rounds.minimum must be >= {2 * a.byzantine + 3} for aggregation.rule = "{a.rule}" with '
                f"byzantine = {a.byzantine}, got {least}"
            )
        cut = 2 * math.ceil(a.trim * least)
        if a.rule is AggregationRule.TRIMMED_MEAN and least <= cut:
            raise ValueError(
                f"rounds.minimum must be > {cut} for aggregation.trim = {a.trim}, "
                f"which cuts {cut} of {least} updates"
            )

    def _check_exact_averaging(self) -> None:
        a = self.aggregation
        if a.lora is not LoraAveraging.EXACT:
            return
        if a.rule is not AggregationRule.MEAN or a.optimizer is not ServerOptimizer.NONE:
            raise ValueError(
                'aggregation.lora = "exact" needs aggregation.rule = "mean" and optimizer = "none"'
            )
        if self.adapter.targets is AdapterTargets.ATTENTION_FFN and self.realigns:
            # Both would write to the FFN's weights.
            raise ValueError(
                'aggregation.lora = "exact" with adapter.targets = "attention+ffn" '
                "leaves no room for realignment; set realignment.every = 0 and leave out realignment.drift"
            )

    @classmethod
    def of_stored(cls, text: str) -> "RunConfig":
        """A run's own configuration, as its directory holds it: without the service around it.

        Raises ValidationError.
        """
        return cls.model_validate_json(text, context=_STORED)

    @property
    def weighs_tokens(self) -> bool:
        """Whether updates are weighed by their target tokens, not by examples."""
        by = self.aggregation.weights
        # Sums, in secret or with noise, have weights of their own.
        seen = not self.sums_only
        return seen and by is not UpdateWeights.EXAMPLES and self.task.kind is TaskKind.CAUSAL_LM

    @property
    def asks_classes(self) -> bool:
        """Whether workers are to tell their classes before they join."""
        return self.task.asks or self.training.class_weights is not ClassWeights.NONE

    @property
    def private(self) -> bool:
        """Whether examples, or workers, are promised differential privacy."""
        return self.privacy.dp.unit is not DpUnit.NONE

    @property
    def private_examples(self) -> bool:
        """Whether workers train by each example's gradient, with noise."""
        return self.privacy.dp.unit is DpUnit.EXAMPLE

    @property
    def sums_only(self) -> bool:
        """Whether what a round's adapter is made of is one sum, not the updates."""
        return self.privacy.secure or self.privacy.dp.unit is DpUnit.WORKER

    def with_labels(self, labels: tuple[str, ...]) -> "RunConfig":
        """The same run with the labels that there are. Raises ValidationError."""
        return RunConfig.model_validate(
            self.model_dump() | {"task": self.task.model_dump() | {"labels": labels}}
        )

    @property
    def only_merges(self) -> bool:
        """Whether its result is no PEFT adapter, and can be exported merged into the FM only."""
        return not self.adapter.targets.lora or (
            self.adapter.targets.neurons or self.aggregation.lora is LoraAveraging.EXACT
        )

    @property
    def prunes(self) -> bool:
        """Whether the sub-FM has fewer FFN neurons than the FM: only then there is something to align."""
        return self.sub_fm.construction is Construction.FFN_PRUNING

    @property
    def realigns(self) -> bool:
        """Whether the sub-FM may be aligned during the rounds."""
        return self.prunes and (self.realignment.every > 0 or self.realignment.drift is not None)

    @property
    def aligns(self) -> bool:
        """Whether any alignment will run."""
        return self.realigns or (self.prunes and self.sub_fm.path is None and self.aligns_layers)

    @property
    def aligns_layers(self) -> bool:
        """Whether the layer-level alignment would do anything."""
        return self.alignment.steps > 0 or self.alignment.method is not AlignmentMethod.GRADIENT


def _of(section: object, name: str) -> object:
    return section.get(name) if isinstance(section, dict) else getattr(section, name, None)
