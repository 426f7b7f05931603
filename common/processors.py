"""What turns an example into a model's inputs: a tokenizer or an image processor, and its files."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from common.errors import ModelError
from common.files import write_atomically
from common.images import ImageProcessor
from common.records import ArtifactKind, TaskKind

Processor = PreTrainedTokenizerBase | ImageProcessor

# The only names under which something from the wire is written: chosen here, not there.
FILES = {
    ArtifactKind.TOKENIZER: "tokenizer.json",
    ArtifactKind.TOKENIZER_CONFIG: "tokenizer_config.json",
    ArtifactKind.IMAGE_PROCESSOR: "preprocessor_config.json",
}


def load_processor(path: str | Path, kind: TaskKind) -> Processor:
    """From a directory or the hub. Raises ModelError."""
    if kind is TaskKind.IMAGE_CLASSIFICATION:
        return ImageProcessor.load(str(path))
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except Exception as error:
        # Of no narrower class: what the tokenizers library raises for a broken file is Exception itself.
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"model {path}: its tokenizer cannot be loaded: {reason}") from error
    if tokenizer.pad_token is None:
        # Decoders are often published without one; what is padded is masked.
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def save_processor(processor: Processor, folder: Path) -> None:
    """Into a folder, as transformers loads it."""
    if isinstance(processor, ImageProcessor):
        write_atomically(folder / FILES[ArtifactKind.IMAGE_PROCESSOR], processor.save())
    else:
        processor.save_pretrained(folder)


def processor_files(processor: Processor) -> dict[ArtifactKind, bytes]:
    """The files that a worker needs, by kind, whatever form the model's own directory has."""
    with tempfile.TemporaryDirectory() as folder:
        save_processor(processor, Path(folder))
        found = {kind: Path(folder) / name for kind, name in FILES.items()}
        return {kind: path.read_bytes() for kind, path in found.items() if path.exists()}


def write_processor(folder: Path, files: Mapping[ArtifactKind, bytes], kind: TaskKind) -> Processor:
    """The inverse, on a worker. Raises ModelError."""
    for artifact, content in files.items():
        if artifact not in FILES:
            raise ModelError(f"a file of kind {artifact} belongs to no tokenizer or image processor")
        write_atomically(folder / FILES[artifact], content)
    return load_processor(folder, kind)
