"""The only place that knows where a model family keeps its layers, FFN, attention and head.

To add a family, add an entry to FAMILIES and its small configuration to tests/families.py.
"""

from dataclasses import dataclass, replace

from transformers import PretrainedConfig

from common.errors import UnsupportedFamily
from common.records import TaskKind

_TEXT = (
    TaskKind.TEXT_CLASSIFICATION,
    TaskKind.TEXT_MULTI_LABEL,
    TaskKind.TEXT_REGRESSION,
    TaskKind.TOKEN_CLASSIFICATION,
)
_IMAGES = (TaskKind.IMAGE_CLASSIFICATION,)
_DECODER = (*_TEXT, TaskKind.CAUSAL_LM)
# transformers has no class of these that tells of every token.
_NO_TAGS = tuple(kind for kind in _DECODER if kind is not TaskKind.TOKEN_CLASSIFICATION)


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
    half: bool = True
    """Whether its models compute in bfloat16 as well."""
    undeclared: tuple[str, ...] = ()
    """Keys of the configuration that its class does not declare, and that its modules read all the same."""

    @property
    def rows(self) -> int:
        """How many rows a neuron has in each of the maps into it."""
        return 2 if self.fused else 1


_BERT = Family(
    model_type="bert",
    tasks=_TEXT,
    encoder="bert",
    layers="encoder.layer",
    ffn_in=("intermediate.dense",),
    ffn_out="output.dense",
    ffn_norm="output.LayerNorm",
    post_norm=True,
    attention=(
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ),
    head=("classifier",),
    positions="embeddings.position_embeddings",
    pooler="bert.pooler",
)
_ROBERTA = replace(_BERT, model_type="roberta", encoder="roberta", pooler=None)
_VIT = Family(
    model_type="vit",
    tasks=_IMAGES,
    encoder="vit",
    layers="layers",
    ffn_in=("mlp.fc1",),
    ffn_out="mlp.fc2",
    ffn_norm="layernorm_after",
    attention=("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
    head=("classifier",),
)
_DINOV2 = replace(
    _VIT,
    model_type="dinov2",
    encoder="dinov2",
    layers="encoder.layer",
    ffn_norm="norm2",
    ffn_scale="layer_scale2.lambda1",
)
_LLAMA = Family(
    model_type="llama",
    tasks=_DECODER,
    encoder="model",
    layers="layers",
    ffn_in=("mlp.gate_proj", "mlp.up_proj"),
    ffn_out="mlp.down_proj",
    ffn_norm="post_attention_layernorm",
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    head=("score",),
    token_head=("score",),
)
# The FFN's output is normalised, and its input not.
_OLMO2 = replace(
    _LLAMA,
    model_type="olmo2",
    tasks=_NO_TAGS,
    ffn_norm=None,
    ffn_post_norm="post_feedforward_layernorm",
)
# Both are.
_GEMMA2 = replace(
    _LLAMA,
    model_type="gemma2",
    ffn_norm="pre_feedforward_layernorm",
    ffn_post_norm="post_feedforward_layernorm",
    activation="hidden_activation",
)
_GLM4 = replace(
    _LLAMA,
    model_type="glm4",
    ffn_in=("mlp.gate_up_proj",),
    fused=True,
    ffn_post_norm="post_mlp_layernorm",
)

FAMILIES = {
    family.model_type: family
    for family in (
        _BERT,
        _ROBERTA,
        Family(
            model_type="distilbert",
            tasks=_TEXT,
            encoder="distilbert",
            layers="transformer.layer",
            ffn_in=("ffn.lin1",),
            ffn_out="ffn.lin2",
            ffn_norm="output_layer_norm",
            post_norm=True,
            attention=("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
            head=("pre_classifier", "classifier"),
            positions="embeddings.position_embeddings",
            activation="activation",
        ),
        _VIT,
        replace(_VIT, model_type="deit", encoder="deit"),
        replace(
            _VIT, model_type="beit", encoder="beit", ffn_scale="lambda_2", pooler="beit.pooler", half=False
        ),
        _DINOV2,
        Family(
            model_type="gpt2",
            tasks=_DECODER,
            encoder="transformer",
            layers="h",
            ffn_in=("mlp.c_fc",),
            ffn_out="mlp.c_proj",
            ffn_norm="ln_2",
            # Query, key and value are one map here.
            attention=("attn.c_attn", "attn.c_proj"),
            head=("score",),
            positions="wpe",
            activation="activation_function",
        ),
        _LLAMA,
        replace(_LLAMA, model_type="mistral"),
        replace(_LLAMA, model_type="qwen2"),
        replace(_ROBERTA, model_type="xlm-roberta"),
        replace(_ROBERTA, model_type="camembert"),
        replace(
            _LLAMA,
            model_type="modernbert",
            tasks=_TEXT,
            ffn_in=("mlp.Wi",),
            fused=True,
            ffn_out="mlp.Wo",
            ffn_norm="mlp_norm",
            # Query, key and value are one map here.
            attention=("attn.Wqkv", "attn.Wo"),
            head=("head", "classifier"),
            token_head=("head", "classifier"),
            activation="hidden_activation",
        ),
        replace(
            _ROBERTA,
            model_type="mpnet",
            encoder="mpnet",
            attention=("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
        ),
        replace(_BERT, model_type="ernie", encoder="ernie", pooler="ernie.pooler"),
        replace(_BERT, model_type="electra", encoder="electra", pooler=None),
        replace(
            _BERT,
            model_type="deberta-v2",
            encoder="deberta",
            attention=(
                "attention.self.query_proj",
                "attention.self.key_proj",
                "attention.self.value_proj",
                "attention.output.dense",
            ),
            pooler="pooler",
            undeclared=(
                "attention_head_size",
                "cls_dropout",
                "conv_act",
                "conv_groups",
                "conv_kernel_size",
                "embedding_size",
                "norm_rel_ebd",
                "pooler_hidden_size",
                "position_buckets",
                "share_att_key",
            ),
        ),
        replace(
            _LLAMA,
            model_type="eurobert",
            tasks=_TEXT,
            head=("dense", "classifier"),
            token_head=("classifier",),
        ),
        replace(_DINOV2, model_type="dinov2_with_registers", encoder="dinov2_with_registers"),
        replace(_LLAMA, model_type="qwen3"),
        replace(_LLAMA, model_type="smollm3"),
        replace(_LLAMA, model_type="ministral"),
        replace(_LLAMA, model_type="gemma"),
        replace(_LLAMA, model_type="helium"),
        replace(_LLAMA, model_type="stablelm"),
        replace(_LLAMA, model_type="starcoder2", ffn_in=("mlp.c_fc",), ffn_out="mlp.c_proj"),
        replace(
            _LLAMA,
            model_type="phi3",
            ffn_in=("mlp.gate_up_proj",),
            fused=True,
            attention=("self_attn.qkv_proj", "self_attn.o_proj"),
        ),
        replace(_GLM4, model_type="glm", ffn_post_norm=None),
        _GLM4,
        replace(_LLAMA, model_type="nemotron", ffn_in=("mlp.up_proj",)),
        Family(
            model_type="opt",
            tasks=_NO_TAGS,
            encoder="model.decoder",
            layers="layers",
            ffn_in=("fc1",),
            ffn_out="fc2",
            ffn_norm="final_layer_norm",
            post_norm=True,
            # All but OPT-350M's.
            pre_norm_key="do_layer_norm_before",
            attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
            head=("score",),
            positions="embed_positions",
            activation="activation_function",
            undeclared=("_remove_final_layer_norm",),
        ),
        # Attention and FFN read one normalised input, side by side, in these two.
        replace(
            _LLAMA,
            model_type="phi",
            ffn_in=("mlp.fc1",),
            ffn_out="mlp.fc2",
            ffn_norm="input_layernorm",
            attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"),
        ),
        # transformers has no classifier for these two.
        replace(
            _LLAMA, model_type="cohere2", tasks=(TaskKind.CAUSAL_LM,), ffn_norm="input_layernorm", head=()
        ),
        replace(
            _LLAMA,
            model_type="granite",
            tasks=(TaskKind.CAUSAL_LM,),
            ffn_scale="residual_multiplier",
            head=(),
        ),
        _GEMMA2,
        replace(_GEMMA2, model_type="gemma3_text", tasks=_NO_TAGS),
        _OLMO2,
        replace(_OLMO2, model_type="olmo3"),
        replace(_OLMO2, model_type="exaone4", tasks=_DECODER),
        Family(
            model_type="gpt_neox",
            tasks=_DECODER,
            encoder="gpt_neox",
            layers="layers",
            ffn_in=("mlp.dense_h_to_4h",),
            ffn_out="mlp.dense_4h_to_h",
            ffn_norm="post_attention_layernorm",
            # Query, key and value are one map here, too.
            attention=("attention.query_key_value", "attention.dense"),
            head=("score",),
        ),
    )
}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model with this configuration. Raises UnsupportedFamily."""
    return family_named(config.model_type)


def family_named(model_type: str) -> Family:
    """Raises UnsupportedFamily naming the supported ones."""
    if model_type not in FAMILIES:
        raise UnsupportedFamily(
            f"model family {model_type!r} is not supported; supported are: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def without_cache(config: PretrainedConfig) -> dict[str, bool]:
    """The argument by which a decoder keeps no keys and values for a next token that does not come; none for
    a family that is not known, which whoever loads it has to tell."""
    family = FAMILIES.get(config.model_type)
    return {"use_cache": False} if family is not None and TaskKind.CAUSAL_LM in family.tasks else {}
