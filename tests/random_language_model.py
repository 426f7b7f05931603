"""Small language models with random weights and a tokenizer trained on real text: none comes as a package."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast
from transformers.utils import logging

VOCABULARY = 2000
_END = "<|endoftext|>"
_SIZES: dict[str, Any] = {
    "gpt2": {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 128},
    "llama": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 384,
        "max_position_embeddings": 128,
        # Small models do not spare the room for a second table of tokens.
        "tie_word_embeddings": True,
    },
}


def random_language_model(model_type: str, texts: Sequence[str], out: Path, seed: int) -> None:
    """Write a "gpt2" or "llama" of 4 layers (hidden 128) and a byte-level BPE tokenizer to `out`.

    The same texts and seed give the same files.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=_END, eos_token=_END)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    classes = {"gpt2": GPT2Config, "llama": LlamaConfig}
    # Larger than the usual 0.02, with which such a small model's scores are all but equal.
    sizes = _SIZES[model_type] | {"initializer_range": 0.1}
    config = classes[model_type](vocab_size=backend.get_vocab_size(), **ends, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    logging.disable_progress_bar()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
