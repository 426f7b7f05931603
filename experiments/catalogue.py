"""The experiments: which variants of the method each compares, and how large a run of it is."""

from dataclasses import replace
from types import MappingProxyType
from typing import Any

from experiments.form import Experiment as Experiment
from experiments.form import Scale as Scale
from experiments.form import Variant as Variant
from experiments.paper import BEFORE, DURING, FEDOT, FEDPETUNING, FEDPFT, NONE
from experiments.tuned import HEAD_ONLY as HEAD_ONLY

CORRECTED = "corrected"
# Compares no variants: experiments/attacks.
ATTACKS = "attacks"


_UNALIGNED = {"alignment.steps": 0}
_FULL = {"sub_fm.construction": "full"}
_EVERY = "realignment.every"
_PETUNING = Variant(FEDPETUNING, "FedPETuning: the whole FM at the clients", _FULL)
_OFFSITE = Variant(FEDOT, "FedOT: fewer whole layers", {"sub_fm.construction": "layer-drop", _EVERY: 0})
_HEAD = Variant(HEAD_ONLY, "head only: no adapter", _FULL | {"adapter.targets": "none"})
# As in the paper: 100 clients, a tenth of them in every round.
_PAPERS = Scale(
    splits=("iid", "dirichlet-1", "dirichlet-5", "dirichlet-10"),
    seeds=3,
    clients=100,
    sample=10,
    rounds=40,
    train=2000,
    test=4000,
    score_every=10,
)
_SMALL = Scale(
    splits=("dirichlet-1",), seeds=1, clients=10, sample=5, rounds=5, train=1000, test=2000, score_every=5
)


COMPARE = Experiment(
    "compare",
    "How close does FedPFT come to tuning the whole FM at the clients, is it better than FedOT, and what "
    "is each alignment worth? (The paper's tables 1 to 3.)",
    (
        _PETUNING,
        _OFFSITE,
        Variant(FEDPFT, "FedPFT: aligned before and during"),
        Variant(NONE, "FedPFT-N: not aligned", _UNALIGNED | {_EVERY: 0}),
        Variant(BEFORE, "FedPFT-B: aligned before only", {_EVERY: 0}),
        Variant(DURING, "FedPFT-D: aligned during only", _UNALIGNED),
        Variant(CORRECTED, "FedPFT corrected: 200 steps after the last round", {"correction.steps": 200}),
        _HEAD,
    ),
    FEDPETUNING,
    full=replace(_PAPERS, settings={_EVERY: 10}),
    quick=replace(_SMALL, seeds=3, sample=4, train=2000, test=1500, settings={_EVERY: 2}),
)

RATIOS = (0.5, 0.6, 0.75, 0.9, 0.95)
RATIO = Experiment(
    "ratio",
    "How many FFN neurons can be cut before accuracy begins to fall, and what does each share save?",
    (
        Variant("ratio-0", "nothing cut: the whole FM (FedPETuning)", _FULL),
        *(Variant(f"ratio-{r:g}", f"{r:.0%} of the neurons cut", {"sub_fm.drop_ratio": r}) for r in RATIOS),
        _HEAD,
    ),
    "ratio-0",
    full=replace(_PAPERS, splits=("iid",)),
    quick=replace(_SMALL, settings={"alignment.steps": 50}),
    measures_steps=True,
)

_T10 = {_EVERY: 10}
ALIGNMENT = Experiment(
    "alignment",
    "When does re-aligning the sub-FM between rounds pay: how often, how many neurons, and which?",
    (
        Variant("off", "never re-aligned"),
        Variant("every-5", "every 5 rounds", {_EVERY: 5}),
        Variant("every-10", "every 10 rounds (the paper)", _T10),
        Variant("every-20", "every 20 rounds", {_EVERY: 20}),
        Variant("drift", "when the gradients drift above 0.2", {"realignment.drift": 0.2}),
        Variant("share-0.3", "every 10, 30 % of the neurons", _T10 | {"realignment.proportion": 0.3}),
        Variant("share-0.8", "every 10, 80 % of the neurons", _T10 | {"realignment.proportion": 0.8}),
        Variant("lowest", "every 10, lowest APoZ", _T10 | {"realignment.choice": "lowest"}),
        Variant("random", "every 10, neurons at random", _T10 | {"realignment.choice": "random"}),
        Variant("whole", "the whole FM (FedPETuning)", _FULL),
        _HEAD,
    ),
    "off",
    full=replace(_PAPERS, splits=("dirichlet-1",), score_every=5),
    quick=replace(
        _SMALL,
        clients=100,
        sample=5,
        rounds=22,
        train=1000,
        test=1000,
        score_every=22,
        settings={"alignment.steps": 50, "realignment.steps": 10, "gradient_gap.batch_size": 8},
    ),
    settings={"gradient_gap.batches": 1},
)

_METRICS = {
    "l2": "L2 norm (the paper)",
    "activation": "activation-aware",
    "integrated-gradients": "Integrated Gradients",
    "attention": "attention-based",
    "random": "at random (control)",
}
_ALIGNED: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("not aligned", _UNALIGNED),
    "+closed": ("closed form", {"alignment.method": "closed-form"}),
    "+gradient": ("by gradient", {}),
    "+both": ("both", {"alignment.method": "both"}),
}
SALIENCY = Experiment(
    "saliency",
    "Which measure of a neuron's worth keeps the best sub-FM, with and without alignment?",
    (
        *(
            Variant(f"{metric}{ending}", f"{title}, {how}", {"sub_fm.saliency": metric} | settings)
            for ending, (how, settings) in _ALIGNED.items()
            for metric, title in _METRICS.items()
        ),
        Variant("whole", "the whole FM (FedPETuning)", _FULL),
        _HEAD,
    ),
    "l2",
    full=replace(_PAPERS, splits=("iid",)),
    quick=replace(_SMALL, test=1000, settings={"sub_fm.saliency_batches": 2}),
    only_quick=(*(m + ending for ending in ("", "+closed") for m in _METRICS), "whole", HEAD_ONLY),
)

THEORY = Experiment(
    "theory",
    "Do the sub-FM's gradients keep as close to the FM's as the paper's theorems say?",
    (
        Variant("fedpft-n", "FedPFT-N: not aligned", _UNALIGNED | {_EVERY: 0}),
        Variant("fedpft-b", "FedPFT-B: aligned before only", {_EVERY: 0}),
        Variant("fedpft", "FedPFT: aligned before and during"),
        Variant("half", "half of the neurons cut, aligned before and during", {"sub_fm.drop_ratio": 0.5}),
        _OFFSITE,
        Variant("whole", "the whole FM (FedPETuning)", _FULL),
        _HEAD,
    ),
    "fedpft",
    full=replace(_PAPERS, splits=("iid", "dirichlet-1"), settings={_EVERY: 10}),
    quick=replace(_SMALL, settings={"alignment.steps": 100, _EVERY: 2}),
    settings={"gradient_gap.batches": 4},
)

COST = Experiment(
    "cost",
    "What does a round cost a worker, in bytes and computation? (The paper claims about half.)",
    (
        _PETUNING,
        _OFFSITE,
        Variant(FEDPFT, "FedPFT, 75 % of the neurons cut", {_EVERY: 0}),
        _HEAD,
    ),
    FEDPETUNING,
    full=replace(_PAPERS, splits=("iid",), seeds=1),
    quick=_SMALL,
    measures_steps=True,
)

_STEPS = "correction.steps"
_CORRECTED = {_STEPS: 200, _EVERY: 0}
CORRECTION = Experiment(
    "correction",
    "What does the FM gain from what the sub-FM has learnt, and is it that which helps?",
    (
        _PETUNING,
        Variant(CORRECTED, "FedPFT-B, corrected: 200 steps", _CORRECTED),
        Variant("100-steps", "100 steps", _CORRECTED | {_STEPS: 100}),
        Variant("400-steps", "400 steps", _CORRECTED | {_STEPS: 400}),
        Variant("slower", "a third of the rates", _CORRECTED | {"correction.learning_rate": 3e-4}),
        Variant("sub-fm", "the sub-FM alone as teacher", _CORRECTED | {"correction.teacher": "sub-fm"}),
        Variant(
            "rounds",
            "control: the FMs of the last two rounds as teachers",
            _CORRECTED | {"correction.teacher": "rounds"},
        ),
        Variant(
            "full+rounds",
            "the control for FedPETuning",
            _FULL | _CORRECTED | {"correction.teacher": "rounds"},
        ),
        Variant("ffn", "adapters on the FFN too", _CORRECTED | {"adapter.targets": "attention+ffn"}),
        Variant("fedot", "FedOT, corrected", _CORRECTED | {"sub_fm.construction": "layer-drop"}),
        _HEAD,
    ),
    FEDPETUNING,
    full=replace(_SMALL, splits=("iid", "dirichlet-1"), seeds=5, sample=10, rounds=8, train=2000, test=5000),
    quick=replace(_SMALL, sample=4, rounds=4),
    # Whatever it does is to be seen, also where a run would leave it out.
    settings={"correction.least_gain": 0.0},
    only_quick=(FEDPETUNING, CORRECTED, "rounds", "fedot", HEAD_ONLY),
)

_NEURONS = {"adapter.targets": "attention+neurons"}
VARIANTS = Experiment(
    "variants",
    "What closes the gap between FedPFT and tuning the whole FM?",
    (
        _PETUNING,
        Variant("fedpft-b", "FedPFT-B: default settings"),
        Variant("ffn", "adapters on the FFN too", {"adapter.targets": "attention+ffn"}),
        Variant(
            "full+ffn", "FedPETuning, adapters on the FFN too", _FULL | {"adapter.targets": "attention+ffn"}
        ),
        Variant("neurons", "kept neurons in full, and adapters on attention", _NEURONS),
        Variant("neurons-only", "kept neurons in full alone", {"adapter.targets": "neurons"}),
        Variant("full+neurons", "FedPETuning, all neurons in full", _FULL | _NEURONS),
        Variant("600-steps", "600 steps of alignment", {"alignment.steps": 600}),
        Variant("logit-term", "matching the last layer's output", {"alignment.logit_term": 1.0}),
        Variant("attention-term", "matching attention outputs", {"alignment.attention_term": 1.0}),
        Variant("two-epochs", "two epochs a round", {"training.epochs": 2}),
        Variant("full+two-epochs", "FedPETuning, two epochs", _FULL | {"training.epochs": 2}),
        Variant("ffa-lora", "FFA-LoRA: A frozen", {"aggregation.lora": "freeze-a"}),
        Variant("fedex-lora", "FedEx-LoRA: exact averaging", {"aggregation.lora": "exact"}),
        _HEAD,
    ),
    FEDPETUNING,
    full=replace(_SMALL, splits=("iid",), seeds=3, sample=10, train=2000, test=5000),
    quick=_SMALL,
    only_quick=(FEDPETUNING, "fedpft-b", "ffn", "full+ffn", "ffa-lora", "fedex-lora", HEAD_ONLY),
)

_RANK, _MARGIN = {"sub_fm.attention_rank": 4}, {"alignment.keep_margin": 0.5}
_WHOLE_LAYERS = {"sub_fm.keep_first": 0, "sub_fm.keep_last": 0}
_LEVERS = {"sub_fm.drop_ratio": 0.95} | _WHOLE_LAYERS | _RANK | _MARGIN
MARGIN = Experiment(
    "margin",
    "What does a worker keep, and which lever restores the owner's margin at what price? (Offsite-tuning's "
    "criterion.)",
    (
        Variant("fedpft-b", "no lever: 75 % of the neurons cut"),
        Variant("ratio-0.95", "95 % of the neurons cut", {"sub_fm.drop_ratio": 0.95}),
        Variant("all-layers", "95 % cut, no layer whole", {"sub_fm.drop_ratio": 0.95} | _WHOLE_LAYERS),
        Variant("rank-16", "attention of rank 16", {"sub_fm.attention_rank": 16}),
        Variant("rank-4", "attention of rank 4", _RANK),
        Variant("keep-0.5", "half of the outputs' variance not taught", _MARGIN),
        Variant("levers", "all of these, no layer whole", _LEVERS),
        Variant("corrected", "no lever, corrected", _CORRECTED),
        Variant("levers-corrected", "all of these, no layer whole, corrected", _LEVERS | _CORRECTED),
        Variant("whole", "the whole FM (FedPETuning)", _FULL),
        _HEAD,
    ),
    "fedpft-b",
    full=replace(_SMALL, splits=("iid",), seeds=3, sample=10, rounds=8, train=2000, test=5000),
    quick=Scale(
        splits=("iid",),
        seeds=1,
        clients=4,
        sample=4,
        rounds=4,
        train=800,
        test=1500,
        public=1500,
        score_every=4,
        settings={"task.max_length": 32, "alignment.steps": 60},
    ),
    settings={"correction.least_gain": 0.0},
    only_quick=("fedpft-b", "ratio-0.95", "rank-4", "keep-0.5", "levers", "levers-corrected", HEAD_ONLY),
    scores_before=True,
)

# The test data are drawn first and never looked at: as many as any other experiment takes, so that no text
# that is chosen by is in the test data of a run with the same seed.
_ASIDE = 5000
TUNE = Experiment(
    "tune",
    "Which optimiser, learning rates, epochs and batch size does each method want, so that each can be "
    "compared at its own best?",
    (
        _PETUNING,
        _OFFSITE,
        Variant(FEDPFT, "FedPFT, aligned before the rounds", {_EVERY: 0}),
        _HEAD,
    ),
    FEDPETUNING,
    full=replace(
        _PAPERS,
        splits=("iid", "dirichlet-1"),
        seeds=1,
        rounds=20,
        train=3000,
        test=_ASIDE,
        validation=1 / 3,
        trials=24,
        score_every=20,
    ),
    quick=replace(_SMALL, rounds=4, train=1600, test=_ASIDE, validation=0.5, trials=13, score_every=4),
    is_search=True,
)

EXPERIMENTS = MappingProxyType(
    {
        e.name: e
        for e in (COMPARE, TUNE, RATIO, ALIGNMENT, SALIENCY, THEORY, COST, CORRECTION, VARIANTS, MARGIN)
    }
)
