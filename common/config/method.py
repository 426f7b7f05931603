"""What FedPFT can be set to: sub-FM, alignment, adapter, training, aggregation, rounds."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.config.choices import (
    AggregationRule,
    AlignmentMethod,
    ClassWeights,
    Construction,
    CorrectionTeacher,
    LoraAveraging,
    NeuronChoice,
    Saliency,
    ServerOptimizer,
    UpdateWeights,
)
from common.config.section import Positive, Rate, Section, Sent, Share
from common.quantization import Quantization
from common.records import AdapterTargets, LocalOptimizer


class SubModelSection(Section):
    """How the sub-FM is cut from the FM."""

    path: Path | None = None
    """Folder that `fedpft build` has written; unset cuts and aligns at the start of the run."""
    construction: Construction = Construction.FFN_PRUNING
    """"ffn-pruning" is FedPFT; "layer-drop" is FedOT: as many whole layers as have the same number of
    parameters; "full" sends the whole FM (FedPETuning, the upper reference)."""
    saliency: Saliency = Saliency.L2
    """Which neurons stay: "l2" (the paper), "activation", "integrated-gradients", "attention", "random". For
    causal-lm with public data, where it is not set: "activation"."""
    saliency_batches: Positive = 4
    """Public batches on which a saliency other than "l2" and "random" looks at activations."""
    drop_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Share of FFN neurons cut from every compressed layer."""
    attention_rank: Positive | None = None
    """Rank that is left of query, key, value and output maps in compressed layers, to put what a worker keeps
    behind the FM; unset leaves them as they are. Not for families with several of these in one map, such as
    GPT-2."""
    keep_first: int = Field(default=1, ge=0)
    """This many first layers stay whole."""
    keep_last: int = Field(default=1, ge=0)
    """This many last layers stay whole."""
    quantization: Quantization = Quantization.NONE
    """"int8": what workers download and hold of the sub-FM's frozen weights is a byte each (maps, table of
    tokens, a language model's head), computed with in model.dtype; what is tuned is float32 as ever. Half of
    bfloat16's bytes for a slower step; wants workers of protocol 6. "none": as model.dtype says."""


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
    closed form, then gradient. For causal-lm with public data, where it is not set: "closed-form"."""
    steps: int = Field(default=200, ge=0)
    """Optimiser steps of the gradient; 0 leaves the sub-FM as it was cut. More steps gain a little."""
    ridge: Annotated[float, Field(gt=0)] = 0.1
    """How strongly the closed form holds on to the present weights."""
    closed_form_batches: Positive = 16
    """Public batches that the closed form reads."""
    keep_margin: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the variance of a layer's outputs that alignments do not teach the sub-FM, only their leading
    directions, to put what a worker keeps behind the FM. 0 teaches all. For method = "gradient"."""
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
    """The tuned parameters: LoRA or neurons in full, and the task head."""

    targets: AdapterTargets = AdapterTargets.ATTENTION
    """"attention": LoRA on query, key, value and output of every layer; "attention+ffn": on the FFN's kept
    neurons as well; "attention+neurons": LoRA on attention, and the kept neurons' weights in full, without
    LoRA; "neurons": these alone; "none": the head alone. Neurons in full make adapter and updates as large
    as the sub-FM's FFN, export with --merge only, and want workers of protocol 5."""
    rank: Sent = 8
    """Rank of LoRA."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """LoRA's scale is alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout on LoRA's input."""


class TrainingSection(Section):
    """How workers train in a round."""

    epochs: Sent = 1
    """Passes over the private data."""
    batch_size: Sent = 16
    """Examples per step."""
    optimizer: LocalOptimizer = LocalOptimizer.ADAMW
    """What takes the workers' steps: "adamw"; or "sgd", which wants far larger rates, for the head alone
    some 10, and workers of protocol 5."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Learning rate for LoRA; AdamW's must be < 1."""
    head_learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    """Learning rate for the head; AdamW's must be < 1."""
    neuron_learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Learning rate for neurons tuned in full (adapter.targets); AdamW's must be < 1. They want less than
    LoRA."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of "sgd": share of the last step that is added to the next."""
    weight_decay: Share = 0.01
    """Decoupled weight decay: in a step, weights shrink by this times their learning rate. At SGD's rates
    even 0.01 is much: 0 is usual there."""
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this L2 norm."""
    decay: Literal["linear", "constant"] = "linear"
    """How the learning rates change over the rounds."""
    proximal: Annotated[float, Field(ge=0)] = 0.0
    """FedProx's mu: pulls the worker's adapter towards the round's; 0 is FedAvg."""
    class_weights: ClassWeights = ClassWeights.NONE
    """"balanced": a class counts in the loss the more, the rarer it is among all workers together. For that
    each worker tells how many examples of each class it has, before it joins."""
    tokens_per_step: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """A batch is computed in parts of at most so many tokens, padding and all, whose gradients add up: less
    memory, the same result but for rounding and dropout's draws. 0: all at once. An image counts as 256.
    Also in the coordinator's gradient gap."""
    checkpointing: bool = False
    """Compute activations again for the gradient, instead of keeping them: a third more time, and only the
    inputs of layers are kept. Also in the coordinator's gradient gap and correction."""

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSection":
        if self.optimizer is LocalOptimizer.ADAMW and self.momentum:
            raise ValueError(f'momentum must be 0 for optimizer = "adamw", got {self.momentum:g}')
        for key in ("learning_rate", "head_learning_rate", "neuron_learning_rate"):
            rate = getattr(self, key)
            if self.optimizer is LocalOptimizer.ADAMW and rate >= 1:
                raise ValueError(f'{key} must be < 1 for optimizer = "adamw", got {rate:g}')
            if rate * self.weight_decay >= 1:
                # A step would turn the weights' signs.
                raise ValueError(
                    f"{key} times weight_decay must be < 1, got {rate:g} times {self.weight_decay:g}"
                )
        return self


class AggregationSection(Section):
    """How updates become the next adapter."""

    rule: AggregationRule = AggregationRule.MEAN
    """"mean" (FedAvg); "ties", where workers pull in opposite directions (TIES-merging: trim, elect a sign,
    average those that agree); against bad workers "median", "trimmed-mean", "krum", "multi-krum"."""
    weights: UpdateWeights = UpdateWeights.AUTO
    """What "mean" and "ties" weigh a worker by: its number of "examples"; of a language model its
    "target-tokens", those that a pass over its data learns, which wants workers of protocol 6. "auto": tokens
    for causal-lm, examples for all else."""
    density: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of every tensor of a worker's change that "ties" keeps: its largest entries."""
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """Share that "trimmed-mean" cuts off at either end."""
    byzantine: int = Field(default=1, ge=0)
    """How many bad workers "krum" and "multi-krum" reckon with; they need 2 * this + 3 updates."""
    norm_limit: Annotated[float, Field(gt=1)] | None = None
    """Set updates aside whose L2 norm is more than so many times the round's median, as long as
    rounds.minimum stay; unset takes them all. Honest workers reach 10 times with very uneven data."""
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


class CorrectionSection(Section):
    """After the last round, what the sub-FM has learnt is distilled into the FM's adapter, on public data.
    Workers have no part in it."""

    steps: int = Field(default=0, ge=0)
    """Optimiser steps; 0 leaves the FM as it is with the last adapter plugged in."""
    teacher: CorrectionTeacher = CorrectionTeacher.MEAN
    """Whose predictions the FM learns: the "mean" of tuned sub-FM and tuned FM, the "sub-fm" alone, or, as a
    control, the mean of the FM after the last two "rounds"."""
    batch_size: Positive = 16
    """Texts or images per step."""
    learning_rate: Rate = 1e-3
    """AdamW's peak learning rate for LoRA; cosine decay after warm-up."""
    head_learning_rate: Rate = 2e-3
    """AdamW's peak learning rate for the head."""
    neuron_learning_rate: Rate = 1e-4
    """AdamW's peak learning rate for neurons tuned in full (adapter.targets)."""
    warmup: Share = 0.06
    """Share of the steps in which the learning rates rise."""
    held_out: Positive = 256
    """Public texts or images kept aside, a tenth of them at most: on these the distance (KL divergence, nats)
    of the FM's predictions to the teacher's is measured."""
    least_gain: Share = 0.1
    """That distance must fall by this share. Otherwise the correction is left out: the public data say
    nothing of the task."""
    checkpoint_every: Positive = 50
    """A broken-off correction goes on from the last multiple of so many steps."""


class GradientGapSection(Section):
    """How far apart the FM's and the sub-FM's gradients are, after each round, on public data."""

    batches: int = Field(default=2, ge=0)
    """Batches to measure on; 0 measures nothing."""
    batch_size: Positive = 16
    """Texts or images per batch."""


BestBy = Literal["loss", "accuracy", "macro_f1", "matthews", "auc", "pearson", "entity_f1"]


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
    """A round waits for a worker that is lost this long before it goes on without, with its minimum. All its
    absences count together, until it comes further than before."""
    stall_seconds: Annotated[float, Field(gt=0)] = 1800.0
    """A worker that is heard, but has done no step and moved no byte for so long, is not waited for."""
    deaths: Positive = 3
    """A worker whose process has ended so often in a round, each time without coming further than before, is
    not waited for; in the rounds after, until an update of it comes, once more is enough."""
    kept: int = Field(default=10, ge=2)
    """Adapters of so many last rounds stay on disk, for `fedpft rewind`."""
    tries: Positive = 3
    """A round that misses its minimum is repeated this often before the run fails."""
    patience: Positive | None = None
    """The run ends early once so many scores on end are not better than the best one, and its result is the
    best round's adapter, not the last's. Scores are those at the workers; where there are none, the FM's on
    the owner's test data. Those before the first round do not count. Unset: all rounds, the last one's."""
    best_by: BestBy = "loss"
    """By which score a round is the best: "loss" (smallest; it moves when accuracy stands still), or largest
    "accuracy", "macro_f1", "matthews", "auc", "pearson" or "entity_f1", whichever the task has."""


class ValidationSection(Section):
    """Scores at the workers: of the sub-FM, on examples that they keep aside. Only sums are shown."""

    every: int = Field(default=0, ge=0)
    """Score before the first round, after every so many, and after the last; 0 never. Workers are asked that
    were started with --validation or --validation-share."""
    workers: Positive | None = None
    """Workers drawn for each; unset asks all that are there."""
    minimum: Positive = 2
    """With fewer answers there is no score: a sum of one worker alone would be that worker's."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 600.0
    """The run goes on with what has come after this time at the latest."""
    per_worker: bool = False
    """Keep and show each worker's own score as well."""
