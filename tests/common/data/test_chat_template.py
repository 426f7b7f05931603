"""A chat template reaches workers as a text within bounds."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from common.data.encoding import encode
from common.data.examples import Columns, read_examples
from common.data.processors import (
    FILES,
    MOST_TEMPLATE_BYTES,
    load_processor,
    processor_files,
    write_processor,
)
from common.errors import ModelError
from common.records import ArtifactKind, TaskKind
from tests.chats import CHATML, write_chat_tokenizer, write_chats

CAUSAL, TEXT = TaskKind.CAUSAL_LM, TaskKind.TEXT_CLASSIFICATION


def tokenizer_at(folder: Path, template: Any = CHATML) -> PreTrainedTokenizerBase:
    loaded = load_processor(write_chat_tokenizer(folder, template), CAUSAL)
    assert isinstance(loaded, PreTrainedTokenizerBase)
    return loaded


def test_the_template_reaches_a_worker_among_the_tokenizers_settings(tmp_path: Path) -> None:
    here = tokenizer_at(tmp_path / "here")
    files = processor_files(here, CAUSAL)
    there = write_processor(tmp_path / "there", files, CAUSAL)
    assert isinstance(there, PreTrainedTokenizerBase) and there.chat_template == CHATML
    assert {path.name for path in (tmp_path / "there").iterdir()} == {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    examples = read_examples(write_chats(tmp_path / "c.jsonl", 4), Columns())
    data = [encode(one, examples, CAUSAL, 64, None).batch(range(4)) for one in (here, there)]
    assert data[0].labels is not None and data[1].labels is not None
    assert torch.equal(data[0].inputs["input_ids"], data[1].inputs["input_ids"])
    assert torch.equal(data[0].labels, data[1].labels)
    # Classifiers have no use for it.
    assert processor_files(here, TEXT) == processor_files(here)
    assert "chat_template" not in json.loads(processor_files(here)[ArtifactKind.TOKENIZER_CONFIG])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (["x"], "the chat template is no text but list"),
        ({"default": "x"}, "the chat template is no text but dict"),
        ("ä" * (MOST_TEMPLATE_BYTES // 2 + 1), "the chat template has 65,538 bytes, allowed are 65,536"),
    ],
)
def test_a_template_from_the_other_side_is_a_text_within_bounds(
    template: Any, reason: str, tmp_path: Path
) -> None:
    files = processor_files(tokenizer_at(tmp_path / "here"), CAUSAL)
    fields = json.loads(files[ArtifactKind.TOKENIZER_CONFIG]) | {"chat_template": template}
    files[ArtifactKind.TOKENIZER_CONFIG] = json.dumps(fields).encode()
    with pytest.raises(ModelError, match=reason):
        write_processor(tmp_path / "there", files, CAUSAL)
    assert not (tmp_path / "there" / FILES[ArtifactKind.TOKENIZER_CONFIG]).exists()
