"""Alternatives that a run's configuration offers, each implemented under the same name."""

from enum import StrEnum

from common.run_offers import Construction as Construction


class ModelDtype(StrEnum):
    """What the models' weights are held in, sent in and computed with."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Saliency(StrEnum):
    """What makes an FFN neuron worth keeping."""

    L2 = "l2"
    ACTIVATION = "activation"
    INTEGRATED_GRADIENTS = "integrated-gradients"
    ATTENTION = "attention"
    RANDOM = "random"

    @property
    def needs_data(self) -> bool:
        """Whether it looks at activations on public data."""
        return self not in (Saliency.L2, Saliency.RANDOM)


class AlignmentMethod(StrEnum):
    """How the sub-FM is brought close to the FM before the rounds."""

    GRADIENT = "gradient"
    CLOSED_FORM = "closed-form"
    BOTH = "both"


class NeuronChoice(StrEnum):
    """Which neurons an alignment during the rounds updates, by their APoZ."""

    HIGHEST = "highest"
    LOWEST = "lowest"
    RANDOM = "random"


class AggregationRule(StrEnum):
    """How a round's changes become one change."""

    MEAN = "mean"
    MEDIAN = "median"
    TRIMMED_MEAN = "trimmed-mean"
    KRUM = "krum"
    MULTI_KRUM = "multi-krum"
    TIES = "ties"


class ClassWeights(StrEnum):
    """How classes count in the workers' loss: alike, or the rarer the more."""

    NONE = "none"
    BALANCED = "balanced"


class UpdateWeights(StrEnum):
    """What the mean weighs a worker's change by; "auto": as it fits the kind of task."""

    AUTO = "auto"
    EXAMPLES = "examples"
    TARGET_TOKENS = "target-tokens"


class SumWeights(StrEnum):
    """How workers weigh in a sum."""

    EXAMPLES = "examples"
    EQUAL = "equal"


class ServerOptimizer(StrEnum):
    """How the one change is applied: as it is, or as FedAvgM, FedAdam, FedYogi do."""

    NONE = "none"
    MOMENTUM = "momentum"
    ADAM = "adam"
    YOGI = "yogi"


class CorrectionTeacher(StrEnum):
    """Whose predictions the correction brings the FM to: of sub-FM and FM, of the sub-FM; or, as a control
    that knows nothing of the sub-FM, of the FM after the last two rounds."""

    MEAN = "mean"
    SUB_FM = "sub-fm"
    ROUNDS = "rounds"


class LoraAveraging(StrEnum):
    """What is averaged of LoRA: A and B; B alone, A being frozen (FFA-LoRA); their product (FedEx-LoRA)."""

    FACTORS = "factors"
    FREEZE_A = "freeze-a"
    EXACT = "exact"


class Tracker(StrEnum):
    """A tracker, under the name that accelerate has for it."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"
