"""A coordinator's run configuration: typed, frozen, valid from birth. `common.config_file` reads it.

The descriptions below are the only place where a key is explained: `fedpft init` and
docs/configuration.md are made from them.
"""

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.choices import (
    AggregationRule,
    AlignmentMethod,
    Construction,
    LoraAveraging,
    NeuronChoice,
    Saliency,
    ServerOptimizer,
)
from common.identity import NAME
from common.records import AdapterTargets, TaskKind

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
WorkerName = Annotated[str, Field(pattern=NAME)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class RunSection(Section):
    """The run as a whole."""

    directory: Path = Path("runs/run")
    """Folder that holds everything of the run; the same folder continues the same run."""
    seed: int = Field(default=7, ge=0, lt=2**32)
    """Fixes every random choice."""


class ModelSection(Section):
    """The foundation model (FM). It never leaves the coordinator."""

    path: str
    """Local directory in the Hugging Face layout, or a hub id."""


class TaskSection(Section):
    """What the model learns."""

    kind: TaskKind = TaskKind.TEXT_CLASSIFICATION
    """"text-classification", "image-classification" or "causal-lm" (the next token of texts)."""
    labels: tuple[str, ...] = ()
    """Names of the classes, as they stand in the label column; order is class index. None for causal-lm."""
    pairs: bool = False
    """Whether every example is a pair of texts."""
    max_length: int = Field(default=128, ge=8)
    """Longer texts are cut to this many tokens; for causal-lm texts are joined and cut into such pieces."""

    @model_validator(mode="after")
    def _consistent(self) -> "TaskSection":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels must be distinct")
        if self.kind is TaskKind.CAUSAL_LM and self.labels:
            raise ValueError("labels must be left out for causal-lm, which has no classes")
        if self.kind is not TaskKind.CAUSAL_LM and len(self.labels) < 2:
            raise ValueError(f"labels must name at least 2 classes, got {list(self.labels)}")
        if self.pairs and self.kind is not TaskKind.TEXT_CLASSIFICATION:
            raise ValueError(f"pairs must be false for {self.kind}")
        return self


class DataSource(Section):
    """A file, an image folder, or a named data set."""

    path: Path | None = None
    """CSV, TSV, JSONL or Parquet file, or a folder of images."""
    preset: str | None = None
    """Instead of a path, a data set by name, such as "sst2:validation"; `fedpft datasets` lists them."""
    text_column: str = "text"
    """Column that holds the text."""
    image_column: str = "image"
    """Column that holds the image."""

    @model_validator(mode="after")
    def _one_source(self) -> "DataSource":
        if (self.path is None) == (self.preset is None):
            raise ValueError("exactly one of path and preset must be set")
        return self


class PublicData(DataSource):
    """Public, unlabelled texts or images on which the sub-FM is aligned to the FM."""


class TestData(DataSource):
    """The owner's labelled test data; without it nothing is scored."""

    pair_column: str | None = None
    """Column that holds the second text of pairs."""
    label_column: str = "label"
    """Column that holds the label's name; not read for causal-lm, nor of image folders."""


class DataSection(Section):
    """The owner's own data. Workers' data never appears here."""

    root: Path | None = None
    """Folder with local copies of presets, laid out as on the hub; unset asks the hub."""
    public: PublicData | None = None
    """Public, unlabelled texts or images on which the sub-FM is aligned to the FM."""
    test: TestData | None = None
    """The owner's labelled test data; without it nothing is scored."""


class SubModelSection(Section):
    """How the sub-FM is cut from the FM."""

    path: Path | None = None
    """Folder that `fedpft build` has written; unset cuts and aligns at the start of the run."""
    construction: Construction = Construction.FFN_PRUNING
    """"ffn-pruning" is FedPFT; "layer-drop" is FedOT: as many whole layers as have the same number of
    parameters; "full" sends the whole FM (FedPETuning, the upper reference)."""
    saliency: Saliency = Saliency.L2
    """Which neurons stay: "l2" (the paper), "activation", "integrated-gradients", "attention", "random"."""
    saliency_batches: Positive = 4
    """Public batches on which a saliency other than "l2" and "random" looks at activations."""
    drop_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Share of FFN neurons cut from every compressed layer."""
    keep_first: int = Field(default=1, ge=0)
    """This many first layers stay whole."""
    keep_last: int = Field(default=1, ge=0)
    """This many last layers stay whole."""


class Distillation(Section):
    """Settings of a distillation of the FM into the sub-FM."""

    batch_size: Positive = 16
    """Texts per step."""
    learning_rate: Rate = 1e-3
    """AdamW's peak learning rate; cosine decay after warm-up."""
    warmup: Share = 0.06
    """Share of the steps in which the learning rate rises."""
    weight_term: Annotated[float, Field(ge=0)] = 0.01
    """Factor of the loss term on the FFN's linearised map (alpha in the paper)."""
    attention_term: Annotated[float, Field(ge=0)] = 0.0
    """Factor of a further term: the attention output of the layer behind each compressed one."""
    logit_term: Annotated[float, Field(ge=0)] = 0.0
    """Factor of a further term: the last layer's output, which the head reads."""


class AlignmentSection(Distillation):
    """Layer-level alignment, before the first round."""

    method: AlignmentMethod = AlignmentMethod.GRADIENT
    """"gradient" (the paper), "closed-form" (ridge reconstruction, no steps), or "both" in this order:
    closed form, then gradient."""
    steps: int = Field(default=200, ge=0)
    """Optimiser steps of the gradient; 0 leaves the sub-FM as it was cut. More steps gain a little."""
    ridge: Annotated[float, Field(gt=0)] = 0.1
    """How strongly the closed form holds on to the present weights."""
    closed_form_batches: Positive = 16
    """Public batches that the closed form reads."""
    checkpoint_every: Positive = 50
    """A broken-off alignment goes on from the last multiple of so many steps."""


class RealignmentSection(Distillation):
    """Neuron-level alignment during the rounds, guided by the workers' APoZ counts."""

    every: int = Field(default=0, ge=0)
    """Align after every so many rounds (t in the paper, 10 there); 0 never."""
    drift: Annotated[float, Field(gt=0, le=2)] | None = None
    """Align also after any round whose gradient gap shows a drift above this (0: equal gradients,
    1: no relation); unset never."""
    steps: Positive = 20
    """Optimiser steps of each alignment."""
    proportion: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of each compressed layer's neurons that are updated (p in the paper)."""
    choice: NeuronChoice = NeuronChoice.HIGHEST
    """Which these are: those of "highest" APoZ (the paper), of "lowest", or "random" ones."""
    zero_rule: Literal["auto", "pre-activation", "near-zero"] = "auto"
    """What APoZ counts: arguments of the activation function <= 0, or activations near zero. "auto" takes
    the first for smooth functions (GELU, SiLU), which have next to no zeros, the second for ReLU."""
    zero_threshold: Annotated[float, Field(ge=0)] = 0.0
    """Largest absolute activation that counts as zero under "near-zero"."""


class AdapterSection(Section):
    """The tuned parameters: LoRA and the task head."""

    targets: AdapterTargets = AdapterTargets.ATTENTION
    """"attention": LoRA on query, key, value and output of every layer; "attention+ffn": on the FFN's kept
    neurons as well; "none": the head alone."""
    rank: Positive = 8
    """Rank of LoRA."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """LoRA's scale is alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout on LoRA's input."""


class TrainingSection(Section):
    """How workers train in a round."""

    epochs: Positive = 1
    """Passes over the private data."""
    batch_size: Positive = 16
    """Examples per step."""
    learning_rate: Rate = 2e-3
    """AdamW's learning rate for LoRA."""
    head_learning_rate: Rate = 5e-3
    """AdamW's learning rate for the head."""
    weight_decay: Share = 0.01
    """AdamW's decoupled weight decay."""
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this L2 norm."""
    decay: Literal["linear", "constant"] = "linear"
    """How the learning rates change over the rounds."""
    proximal: Annotated[float, Field(ge=0)] = 0.0
    """FedProx's mu: pulls the worker's adapter towards the round's; 0 is FedAvg."""


class AggregationSection(Section):
    """How updates become the next adapter."""

    rule: AggregationRule = AggregationRule.MEAN
    """"mean" (FedAvg); against bad workers "median", "trimmed-mean", "krum", "multi-krum"."""
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """Share that "trimmed-mean" cuts off at either end."""
    byzantine: int = Field(default=1, ge=0)
    """How many bad workers "krum" and "multi-krum" reckon with; they need 2 * this + 3 updates."""
    norm_limit: Annotated[float, Field(gt=1)] | None = None
    """Set updates aside whose L2 norm is more than so many times the round's median, as long as
    rounds.minimum stay; unset takes them all."""
    optimizer: ServerOptimizer = ServerOptimizer.NONE
    """How the change is applied: "none", "momentum" (FedAvgM), "adam" (FedAdam), "yogi" (FedYogi)."""
    learning_rate: Annotated[float, Field(gt=0)] = 1.0
    """Factor of the change; "adam" and "yogi" want less, such as 0.01."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of "momentum", "adam" and "yogi"."""
    second_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Of the squares, in "adam" and "yogi"."""
    tau: Annotated[float, Field(gt=0)] = 1e-3
    """Adaptivity of "adam" and "yogi": smaller adapts more."""
    lora: LoraAveraging = LoraAveraging.FACTORS
    """What is averaged of LoRA: its "factors" A and B (the paper); B alone, "freeze-a" (FFA-LoRA, half
    the upload); or the product, "exact" (FedEx-LoRA, with larger downloads)."""


class GradientGapSection(Section):
    """How far apart the FM's and the sub-FM's gradients are, after each round, on public data."""

    batches: int = Field(default=2, ge=0)
    """Batches to measure on; 0 measures nothing."""
    batch_size: Positive = 16
    """Texts or images per batch."""


class RoundsSection(Section):
    """The federated rounds."""

    count: Positive = 5
    """Rounds in all."""
    workers: Positive = 3
    """The first round starts when this many workers are there, later ones when they are back or missed for
    longer than grace_seconds."""
    sample: Positive | None = None
    """Workers drawn for each round; unset draws all that are there."""
    over_select: int = Field(default=0, ge=0)
    """This many further workers are drawn beside the sample; the round closes with as many updates as the
    sample has workers, and the last ones are refused. Which came first is no matter of the seed."""
    minimum: Positive = 1
    """A round whose deadline has passed counts with at least this many updates."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """A round closes after this time at the latest."""
    grace_seconds: Annotated[float, Field(ge=0)] = 60.0
    """A round waits for a worker that is lost this long before it goes on without, with its minimum."""
    tries: Positive = 3
    """A round that misses its minimum is repeated this often before the run fails."""


class ServerSection(Section):
    """Where the coordinator listens."""

    listen: str = "127.0.0.1:7070"
    """HOST:PORT for workers and `fedpft status`; port 0 takes a free one."""
    metrics: str | None = "127.0.0.1:7071"
    """HOST:PORT of the Prometheus metrics; port 0 takes a free one, unset serves none."""
    insecure: bool = False
    """Allow plain text on addresses other machines can reach, of the metrics also beside [tls]."""
    page: str | None = None
    """HOST:PORT of a read-only web page that shows the run; plain text, so that addresses that other machines
    can reach need insecure."""
    health: str | None = None
    """HOST:PORT of gRPC's health service alone, in plain text also beside [tls], for probes of containers."""
    linger_seconds: Annotated[float, Field(ge=0)] = 0.0
    """After the run's end go on serving its status and metrics this long, for what scrapes and watches."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Workers report this often; one silent for three intervals counts as lost."""
    keepalive_seconds: Annotated[float, Field(ge=1)] = 20.0
    """A connection silent for so long is probed; without an answer for as long again it counts as dead."""
    max_transfers: Positive = 8
    """Artifact downloads served at the same time; more wait their turn."""


class TlsSection(Section):
    """Mutual TLS, with the files that `fedpft certs issue` writes; files that change are read anew."""

    certificate: Path | None = None
    """The coordinator's certificate, tls.crt; unset speaks plain text."""
    key: Path | None = None
    """Its key, tls.key."""
    ca: Path | None = None
    """Certificate of the authority whose workers and admins are let in, ca.crt."""
    revoked: Path | None = None
    """The authority's list of revoked certificates, revoked.pem; unset knows of none."""

    @model_validator(mode="after")
    def _complete(self) -> "TlsSection":
        given = [path is not None for path in (self.certificate, self.key, self.ca)]
        if any(given) and not all(given):
            raise ValueError("certificate, key and ca must be set together")
        if self.revoked is not None and not all(given):
            raise ValueError("revoked needs certificate, key and ca")
        return self


class AdmissionSection(Section):
    """Who may take part in the run."""

    workers: tuple[WorkerName, ...] | None = None
    """Names of the workers that may join; unset admits any, under TLS any that has a worker's certificate."""


class LimitsSection(Section):
    """What workers may ask for. Who goes beyond is refused and told why; the run goes on."""

    examples: Positive = 10_000_000
    """Most examples that a worker may name: with the mean, its weight."""
    workers: Positive = 10_000
    """Most names under which workers may join."""
    updates_per_round: Positive = 3
    """Different updates of one worker that a round takes; each stays on disk until the round is over."""
    calls_per_second: Annotated[float, Field(gt=0)] = 50.0
    """Calls that a worker may make in the long run; those of ten seconds at once."""
    streams: Positive = 64
    """Streams that a worker may have open at the same time: tasks, downloads, uploads; those of connections
    that died unnoticed count until they are noticed."""
    calls: Positive = 30_000
    """Calls and streams of all workers at the same time; more are turned away."""
    upload_bytes_per_second: Annotated[float, Field(gt=0)] = 1024.0
    """An upload slower than this on average, after a minute, is broken off; it may go on where it was."""
    disk_gigabytes: Annotated[float, Field(gt=0)] | None = None
    """While artifacts and uploads take more than this, no update is taken; workers try again. Unset: any."""


class ComputeSection(Section):
    """Where the coordinator computes."""

    device: str = "cpu"
    """A torch device, such as "cpu" or "cuda:0"."""
    threads: Positive | None = None
    """CPU threads of torch; unset takes all cores. Part of what makes a result repeat."""


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
    gradient_gap: GradientGapSection = GradientGapSection()
    """How far apart the FM's and the sub-FM's gradients are, after each round, on public data."""
    rounds: RoundsSection = RoundsSection()
    """The federated rounds."""
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

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if self.aligns and self.data.public is None:
            raise ValueError(
                "data.public.path (or preset) must be set for an alignment; or do without: "
                'alignment.steps = 0 with method = "gradient", realignment.every = 0 and no drift'
            )
        if self.prunes and self.data.public is None and self.sub_fm.saliency.needs_data:
            raise ValueError(
                f'data.public.path (or preset) must be set for sub_fm.saliency = "{self.sub_fm.saliency}"'
            )
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
        if self.task.pairs and self.data.test and self.data.test.path and not self.data.test.pair_column:
            raise ValueError("data.test.pair_column must be set, as task.pairs is true")
        if self.sub_fm.path is not None and not self.prunes:
            raise ValueError(
                f'sub_fm.path must be unset for sub_fm.construction = "{self.sub_fm.construction}"'
            )
        self._check_exact_averaging()
        self._check_robust_rule()
        return self

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
