"""Memory of a run on a large language model, from the FM's loading to the first round's end.

    python -m benchmarks.large_model [--int8] [--layers N] [--hidden N] [--ffn N] [--dtype D] [--json FILE]

The real services, and a LLaMA with random weights, by default of 1.09 billion parameters (22 layers, hidden
size 2,048, 5,632 FFN neurons), with SmolLM2's tokenizer, written in shards. Batches are small (64 tokens), so
that what is measured is what does not depend on them. Of coordinator and worker, by phase: the most anonymous
memory, which nothing but the process can give back, and the most resident, mapped files' pages in it. Takes
ten minutes, as much disk as the FM twice, and memory for it.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.measuring import Target, benchmark_parser, report, table
from benchmarks.processes import ROOT, environment_with
from common.config.file import template
from common.data.examples import Examples, write_examples
from experiments.packaged import bbc_news
from experiments.smollm2 import smollm2

_PHASE = re.compile(r"phase: (\w+)")
_PAUSE = 0.2
_SMOLLM2 = Path("runs") / "smollm2-135m-instruct"
# Of anonymous memory, MB, at the usual size.
LIMITS = {"coordinator": 4000, "worker": 1600}


def write_model(folder: Path, layers: int, hidden: int, ffn: int, dtype: torch.dtype) -> int:
    """A random LLaMA and SmolLM2's tokenizer; returns its number of parameters."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2(_SMOLLM2))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=ffn,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        dtype=dtype,
    )
    torch.manual_seed(7)
    model = LlamaForCausalLM._from_config(config)
    model.save_pretrained(folder, max_shard_size="100MB")
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


class Watched:
    """A service, and the most memory that it held in each of its phases, in MB."""

    def __init__(self, module: str, *arguments: str, folder: Path) -> None:
        self._log = folder / f"{module}.log"
        with self._log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=ROOT,
                env=environment_with({"OMP_NUM_THREADS": "1"}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.peaks: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    @property
    def log(self) -> str:
        """What it has said so far."""
        return self._log.read_text(errors="replace")

    def look(self) -> bool:
        """Weigh it; whether it is still there."""
        found = _PHASE.findall(self.log)
        try:
            told = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return False
        if (match := re.search(r"RssAnon:\s+(\d+)", told)) is not None:
            resident = re.search(r"VmRSS:\s+(\d+)", told)
            assert resident is not None
            peaks = self.peaks[found[-1] if found else "loading"]
            for i, value in enumerate((match[1], resident[1])):
                peaks[i] = max(peaks[i], int(value) // 1000)
        return self.process.poll() is None

    def end(self) -> None:
        """Stop it if it is there."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)


def run(folder: Path, model: Path, settings: Mapping[str, Any]) -> dict[str, Watched]:
    """A round with one worker. Raises RuntimeError when a service fails."""
    texts = bbc_news().texts or []
    for name, part in (("public", texts[:64]), ("test", texts[64:66]), ("private", texts[66:70])):
        write_examples(folder / f"{name}.parquet", Examples(name, part))
    config = folder / "run.toml"
    given = {
        "run.directory": str(folder / "run"),
        "model.path": str(model),
        "data.public.path": str(folder / "public.parquet"),
        "data.test.path": str(folder / "test.parquet"),
    }
    config.write_text(template(given | dict(settings)))
    first = Watched("coordinator", "--config", str(config), "--log", "human", folder=folder)
    services = {"coordinator": first}
    try:
        while first.look():
            if "worker" not in services and "phase: waiting" in first.log:
                address = re.search(r"listening on ([^\s,]+)", first.log)
                assert address is not None
                there = ("--coordinator", address[1], "--folder", str(folder / "one"))
                data = ("--data", str(folder / "private.parquet"), "--label-column", "", "--name", "one")
                services["worker"] = Watched("worker", *there, *data, folder=folder)
            if (
                "worker" in services
                and not services["worker"].look()
                and services["worker"].process.returncode
            ):
                raise RuntimeError(services["worker"].log[-3000:])
            time.sleep(_PAUSE)
    finally:
        for service in services.values():
            service.end()
    if first.process.returncode:
        raise RuntimeError(first.log[-3000:])
    return services


def main() -> None:
    """The command."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--layers", type=int, default=22, help="[22]")
    parser.add_argument("--hidden", type=int, default=2048, help="[2048]")
    parser.add_argument("--ffn", type=int, default=5632, help="[5632]")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="[bfloat16]")
    parser.add_argument("--int8", action="store_true", help='with sub_fm.quantization = "int8"')
    options = parser.parse_args()
    settings = {
        "task.kind": "causal-lm",
        "task.max_length": 64,
        "sub_fm.saliency_batches": 1,
        "alignment.closed_form_batches": 1,
        "gradient_gap.batch_size": 1,
        "rounds.count": 1,
        "rounds.workers": 1,
        "rounds.minimum": 1,
        "training.batch_size": 2,
        "server.listen": "127.0.0.1:0",
        "compute.threads": 1,
        "model.dtype": options.dtype,
        "sub_fm.quantization": "int8" if options.int8 else "none",
    }
    folder = Path(tempfile.mkdtemp(prefix="fedpft-large-"))
    try:
        dtype = getattr(torch, options.dtype)
        parameters = write_model(folder / "fm", options.layers, options.hidden, options.ffn, dtype)
        size = parameters * dtype.itemsize / 1e6
        print(f"FM: {parameters / 1e9:.2f} billion parameters, {size:,.0f} MB", flush=True)
        services = run(folder, folder / "fm", settings)
        received = sum(f.stat().st_size for f in (folder / "one").rglob("*") if f.is_file()) / 1e6
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [
        (name, phase, f"{anonymous:,}", f"{resident:,}")
        for name, service in services.items()
        for phase, (anonymous, resident) in service.peaks.items()
    ]
    print(table(("service", "phase", "anonymous, MB", "resident, MB"), rows))
    print(f"\nin the worker's folder: {received:,.0f} MB")
    most = {name: max(a for a, _ in service.peaks.values()) for name, service in services.items()}
    targets = [Target(f"{n}, most anonymous memory, MB", most[n], LIMITS[n], False) for n in LIMITS]
    figures = {
        "parameters": parameters,
        "fm_mb": size,
        "worker_folder_mb": received,
        "peaks": {name: service.peaks for name, service in services.items()},
    }
    report(options.json, figures, targets)


if __name__ == "__main__":
    main()
