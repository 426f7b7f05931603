"""What is said of a model family: where its models keep their parts, and what they are built for."""

from dataclasses import dataclass

from common.records import TaskKind


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture. Paths of a layer's parts are relative to the layer."""

    model_type: str
    tasks: tuple[TaskKind, ...]
    """What its models are built for here."""
    encoder: str
    """The module that turns inputs into hidden states, below the task model."""
    layers: str
    """The list of transformer layers, below the encoder."""
    ffn_in: tuple[str, ...]
    """The maps from hidden size to FFN neurons; of a gated FFN two, the gate first, or a `fused` one."""
    ffn_out: str
    """The map from FFN neurons back to hidden size."""
    ffn_norm: str | None
    """The normalisation next to the FFN: of its sum in post-norm models, of its input in pre-norm ones; None
    where the FFN reads hidden states as they are."""
    attention: tuple[str, ...]
    """Query, key, value and output projections."""
    head: tuple[str, ...]
    """The classifier, below the task model: what is tuned in full. A language model's is not tuned."""
    token_head: tuple[str, ...] = ("classifier",)
    """The same of a model that classifies tokens."""
    fused: bool = False
    """Whether the one map into the neurons is the gate's rows and then those of the other map."""
    positions: str | None = None
    """The table of positions, below the encoder, where they are learned: it ends somewhere."""
    pooler: str | None = None
    """Between encoder and classifier of whole texts, below the task model: checkpoints of masked language
    models lack it."""
    post_norm: bool = False
    """Whether `ffn_norm` normalises the sum of FFN and residual, instead of the FFN's input."""
    pre_norm_key: str | None = None
    """The configuration's key that says it is the input after all, where that is a choice."""
    ffn_post_norm: str | None = None
    """A normalisation of the FFN's output alone, before it is added, where there is one."""
    ffn_scale: str | None = None
    """A factor of the FFN's output, where the layer has one: learned [d], or a number."""
    activation: str = "hidden_act"
    """The configuration's key for the FFN's activation function."""
    sizes: str | None = None
    """The configuration's key for the one of the encoder, where it has one of its own: vision towers."""
    half: bool = True
    """Whether its models compute in bfloat16 as well."""
    undeclared: tuple[str, ...] = ()
    """Keys of the configuration that its class does not declare, and that its modules read all the same."""

    @property
    def rows(self) -> int:
        """How many rows a neuron has in each of the maps into it."""
        return 2 if self.fused else 1
