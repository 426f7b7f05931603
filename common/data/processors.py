"""What turns an example into a model's inputs: a tokenizer or an image processor, and its files."""

import json
import re
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.data.chat_template import MOST_TEMPLATE_BYTES, template_of
from common.data.images import ImageProcessor
from common.errors import ModelError
from common.records import ArtifactKind, TaskKind
from common.storage.files import write_atomically

Processor = PreTrainedTokenizerBase | ImageProcessor

# The only names under which something from the wire is written: chosen here, not there.
FILES = {
    ArtifactKind.TOKENIZER: "tokenizer.json",
    ArtifactKind.TOKENIZER_CONFIG: "tokenizer_config.json",
    ArtifactKind.IMAGE_PROCESSOR: "preprocessor_config.json",
}

# Of files from the other side. The largest vocabularies take about 35 MB.
MOST_BYTES = {
    ArtifactKind.TOKENIZER: 128 * 2**20,
    ArtifactKind.TOKENIZER_CONFIG: 4 * 2**20,
    ArtifactKind.IMAGE_PROCESSOR: 64 * 2**10,
}
MOST_PIXELS = 4096
# Under this name the settings hold the chat template, for transformers too.
TEMPLATE_KEY = "chat_template"
_TOKENIZER_KEYS = re.compile(
    "tokenizer_class|backend|model_max_length|model_input_names|(padding|truncation)_side"
    "|clean_up_tokenization_spaces|add_prefix_space|trim_offsets|errors|do_lower_case|strip_accents"
    "|tokenize_chinese_chars|legacy|split_special_tokens|add_(bos|eos)_token|added_tokens_decoder"
    "|(extra|additional)_special_tokens|(bos|eos|unk|sep|pad|cls|mask)_token"
)


def load_processor(path: str | Path, kind: TaskKind) -> Processor:
    """From a directory or the hub. Raises ModelError."""
    if kind is TaskKind.IMAGE_CLASSIFICATION:
        return ImageProcessor.load(str(path))
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:
        # Of no narrower class: what the tokenizers library raises for a broken file is Exception itself.
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"model {path}: its tokenizer cannot be loaded: {reason}") from error
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        # transformers makes one out of nothing, to which every word is unknown.
        raise ModelError(
            f"model {path}: its tokenizer has no words: tokenizer.json (or vocab.txt) is missing"
        )
    if tokenizer.pad_token is None:
        # Decoders are often published without one; what is padded is masked.
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"model {path}: its tokenizer has no token to pad with: name a pad_token in tokenizer_config.json"
        )
    tokenizer.padding_side = "right"
    return tokenizer


def save_processor(processor: Processor, folder: Path) -> None:
    """Into a folder, as transformers loads it."""
    if isinstance(processor, ImageProcessor):
        write_atomically(folder / FILES[ArtifactKind.IMAGE_PROCESSOR], processor.save())
    else:
        processor.save_pretrained(folder)


def processor_files(processor: Processor, kind: TaskKind | None = None) -> dict[ArtifactKind, bytes]:
    """The files that a worker needs, by kind, whatever form the model's own directory has.

    For CAUSAL_LM the tokenizer's settings hold its chat template, where it has one that may be sent.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_processor(processor, Path(folder))
        found = {kind: Path(folder) / name for kind, name in FILES.items()}
        files = {kind: path.read_bytes() for kind, path in found.items() if path.exists()}
    if kind is TaskKind.CAUSAL_LM and isinstance(processor, PreTrainedTokenizerBase):
        with suppress(ModelError):
            if (template := template_of(processor)) is not None:
                # Workers from before leave out such a setting; a file of another kind they would refuse.
                fields = json.loads(files[ArtifactKind.TOKENIZER_CONFIG])
                fields |= {TEMPLATE_KEY: template}
                files[ArtifactKind.TOKENIZER_CONFIG] = json.dumps(fields, sort_keys=True).encode()
    return files


def write_processor(folder: Path, files: Mapping[ArtifactKind, bytes], kind: TaskKind) -> Processor:
    """The inverse, on a worker: of these files only what is known and bounded. Raises ModelError."""
    for artifact, content in files.items():
        if artifact not in FILES:
            raise ModelError(f"a file of kind {artifact} belongs to no tokenizer or image processor")
        if len(content) > MOST_BYTES[artifact]:
            raise ModelError(
                f"{FILES[artifact]} has {len(content)} bytes, allowed are {MOST_BYTES[artifact]}"
            )
        write_atomically(folder / FILES[artifact], _known(artifact, content, kind))
    return load_processor(folder, kind)


def _known(artifact: ArtifactKind, content: bytes, task: TaskKind) -> bytes:
    """A file from the other side without what could name files or code, or ask for endless memory."""
    if artifact is ArtifactKind.TOKENIZER:
        return content
    try:
        fields = json.loads(content)
        if not isinstance(fields, dict):
            raise ValueError("no table")
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{FILES[artifact]} cannot be read: {str(error)[:100]}") from None
    if artifact is ArtifactKind.TOKENIZER_CONFIG:
        template = fields.get(TEMPLATE_KEY) if task is TaskKind.CAUSAL_LM else None
        fields = {key: value for key, value in fields.items() if _TOKENIZER_KEYS.fullmatch(key)}
        if template is not None:
            fields[TEMPLATE_KEY] = _judged(template)
    else:
        fields.pop("auto_map", None)
        if _largest(fields) > MOST_PIXELS:
            raise ModelError(f"{FILES[artifact]} makes images of more than {MOST_PIXELS} pixels a side")
    return json.dumps(fields).encode()


def _judged(template: object) -> str:
    """A chat template from the other side, by its form and size; what it does is seen when it renders."""
    if not isinstance(template, str):
        raise ModelError(f"the chat template is no text but {type(template).__name__}")
    if (size := len(template.encode(errors="replace"))) > MOST_TEMPLATE_BYTES:
        raise ModelError(f"the chat template has {size:,} bytes, allowed are {MOST_TEMPLATE_BYTES:,}")
    return template


def _largest(value: object) -> float:
    """The largest number anywhere in what JSON has told."""
    match value:
        case dict():
            return max(map(_largest, value.values()), default=0)
        case list():
            return max(map(_largest, value), default=0)
        case int() | float():
            return value
    return 0
