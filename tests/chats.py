"""Conversations for tests: a small tokenizer with ChatML's template, models and files to go with it."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.conftest import FILLERS, WORDS, sentences

START, END, EOS = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTIONS = {"animals": "Which animals are meant?", "weather": "How is the weather?"}


def write_chat_tokenizer(folder: Path, template: Any = CHATML, **settings: Any) -> Path:
    """A byte-level BPE with a few merges: everything can be written in it, words are few tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[EOS, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*sentences(200, seed=3)[0], "user\nassistant\nsystem\n"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        pad_token=EOS,
        model_input_names=["input_ids", "attention_mask"],
        **settings,
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def write_chat_model(folder: Path, template: Any = CHATML, seed: int = 0, hidden: int = 32) -> Path:
    """A random llama of 4 layers that goes with the tokenizer."""
    write_chat_tokenizer(folder, template)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversations(count: int, seed: int = 0) -> list[list[dict[str, str]]]:
    """One to three questions each with its answer, some behind a system's message; words of `sentences`."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        messages = [message("system", "be small and old")] if draw.random() < 0.3 else []
        for _ in range(draw.randint(1, 3)):
            topic = draw.choice(list(QUESTIONS))
            said = " ".join(draw.sample(FILLERS, draw.randint(2, 5)))
            messages += [message("user", said), message("assistant", " ".join(draw.sample(WORDS[topic], 2)))]
        found.append(messages)
    return found


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """A JSON object on each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_chats(path: Path, count: int, seed: int = 0) -> Path:
    """A file of `conversations`."""
    return write_jsonl(path, [{"messages": messages} for messages in conversations(count, seed)])
