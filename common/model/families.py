"""The only place that knows where a model family keeps its layers, FFN, attention and head.

To add a family, add an entry to FAMILIES and its small configuration to tests/families.py.
"""

from dataclasses import replace

from transformers import PretrainedConfig

from common.errors import UnsupportedFamily
from common.model.family import Family
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
_CLIP = replace(
    _VIT,
    model_type="clip",
    encoder="vision_model",
    layers="encoder.layers",
    ffn_norm="layer_norm2",
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"),
    sizes="vision_config",
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
        _CLIP,
        replace(_CLIP, model_type="siglip"),
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

_EXPERTS = "its FFNs are mixtures of experts, whose neurons cannot be cut yet"
# Asked for, and not for want of an entry.
_WHY_NOT = {
    "albert": "all its layers share one set of weights, so what is cut from one is cut from all",
    **dict.fromkeys(
        ("deepseek_v3", "gpt_oss", "granitemoe", "llama4_text", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"),
        _EXPERTS,
    ),
}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model with this configuration. Raises UnsupportedFamily."""
    return family_named(config.model_type)


def family_named(model_type: str) -> Family:
    """Raises UnsupportedFamily naming the supported ones."""
    if model_type not in FAMILIES:
        why = f": {_WHY_NOT[model_type]}" if model_type in _WHY_NOT else ""
        raise UnsupportedFamily(
            f"model family {model_type!r} is not supported{why}; supported are: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def sizes_of(config: PretrainedConfig) -> PretrainedConfig:
    """Where a model's configuration says how many layers there are, how wide, and what activates them."""
    key = family_of(config).sizes
    found: PretrainedConfig = config if key is None else getattr(config, key)
    return found


def without_cache(config: PretrainedConfig) -> dict[str, bool]:
    """The argument by which a decoder keeps no keys and values for a next token that does not come; none for
    a family that is not known, which whoever loads it has to tell."""
    family = FAMILIES.get(config.model_type)
    return {"use_cache": False} if family is not None and TaskKind.CAUSAL_LM in family.tasks else {}
