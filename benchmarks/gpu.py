"""What a GPU makes of a worker's training and of the coordinator's alignment, each beside a plain loop.

    python -m benchmarks.gpu [--sizes smollm2 1b 8b] [--device cuda] [--minutes 7] [--json FILE]

LLaMAs in bfloat16: SmolLM2-135M's weights where its package is installed, else weights drawn at random in its
shape; 1.1 and 8 billion parameters drawn at random. LoRA of rank 8 on attention; tokens by chance alone.
Everything of one size in one process, by turns:

- training: transformers and peft in the loop that anybody would write, on the FM and on the sub-FM (75 % of
  the FFN's neurons cut); and the worker's own training, on the sub-FM;
- alignment: teacher, student, mean squared error of hidden states, AdamW, by hand; and the coordinator's.

Tokens a second, the most memory on the device beyond the models, and the ratios. What does not fit, or has no
time left, is left out and named. Needs what constraints.txt has for CUDA, and no data.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from benchmarks.llamas import KIND, SIZES, RandomTokens, model_of, sub_model_of
from benchmarks.measuring import Ratio, Spread, Target, benchmark_parser, interleave, report, table
from common.data.batches import Batch
from common.model.adapter import Adapted
from common.model.apoz import ZeroCounter
from common.model.layers import layers_of
from common.records import AdapterSpec, AdapterTargets, TrainingSpec
from coordinator.algorithms.distillation import Settings, distil

SPEC = AdapterSpec(AdapterTargets.ATTENTION, 8, 32.0, 0.1)
RATE = 2e-4
# Of a pass, which is what is timed.
STEPS = 6
_GIGABYTE = 1e9
SUB_FMS = ("worker, sub-FM", "plain loop, sub-FM")


@dataclass(frozen=True)
class Setting:
    """What all contestants of a size have in common."""

    device: torch.device
    batch: int
    tokens: int
    repeats: int

    def data(self, vocabulary: int) -> RandomTokens:
        """As many rows as a pass has."""
        draw = torch.Generator().manual_seed(7)
        ids = torch.randint(vocabulary, (STEPS * self.batch, self.tokens), generator=draw)
        return RandomTokens(ids.to(self.device))

    @property
    def of_a_pass(self) -> int:
        """Tokens."""
        return STEPS * self.batch * self.tokens


# --- contestants: each returns a pass ---


def plain_training(model: PreTrainedModel, data: RandomTokens, batch: int) -> Callable[[], None]:
    """transformers and peft, by hand."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    peft = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=32, lora_dropout=0.1, target_modules=targets, task_type="CAUSAL_LM")
    )
    tuned = [parameter for parameter in peft.parameters() if parameter.requires_grad]

    def run() -> None:
        peft.train()
        optimizer = torch.optim.AdamW(tuned, lr=RATE, weight_decay=0.01)
        for rows in data.ids.split(batch):
            optimizer.zero_grad()
            peft(input_ids=rows, labels=rows, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(tuned, 1.0)
            optimizer.step()

    return run


def worker(adapted: Adapted, data: RandomTokens, batch: int) -> Callable[[], None]:
    """The worker's own training, from an adapter to the change of it."""
    from worker.train import fine_tune

    start = adapted.tensors()
    spec = TrainingSpec(1, batch, RATE, RATE, 0.01, 1.0)

    def run() -> None:
        fine_tune(adapted, start, data, spec, factor=1.0, seed=7, counter=ZeroCounter({}))

    return run


def plain_alignment(
    teacher: PreTrainedModel, student: PreTrainedModel, layers: Sequence[int], data: RandomTokens, batch: int
) -> Callable[[], None]:
    """Hidden states against hidden states, by hand. What is trained is float32, as it has to be."""
    parts = [layers_of(student)[i].get_submodule("mlp") for i in layers]
    trained = [parameter for part in parts for parameter in part.parameters()]

    def run() -> None:
        held = [parameter.data for parameter in trained]
        student.requires_grad_(False)
        for parameter in trained:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
        for rows in data.ids.split(batch):
            optimizer.zero_grad()
            asked: dict[str, Any] = {"output_hidden_states": True, "use_cache": False}
            with torch.no_grad():
                wanted = _encoder(teacher)(input_ids=rows, **asked).hidden_states
            with torch.autocast(rows.device.type, torch.bfloat16):
                got = _encoder(student)(input_ids=rows, **asked).hidden_states
            errors = [nn.functional.mse_loss(got[i + 1].float(), wanted[i + 1].float()) for i in layers]
            torch.stack(errors).mean().backward()
            optimizer.step()
        for parameter, before in zip(trained, held, strict=True):
            parameter.data, parameter.grad = before, None

    return run


def alignment(
    teacher: PreTrainedModel, student: PreTrainedModel, layers: Sequence[int], data: RandomTokens, batch: int
) -> Callable[[], None]:
    """The coordinator's own, without the term on weights, which the loop by hand has not either."""

    def batches() -> Iterator[Batch]:
        while True:
            for rows in range(0, len(data), batch):
                yield data.batch(range(rows, rows + batch))

    def run() -> None:
        distil(teacher, student, layers, batches(), Settings(STEPS, RATE, 0.0, weight_term=0.0))

    return run


def _encoder(model: PreTrainedModel) -> nn.Module:
    return model.get_submodule("model")


# --- measuring ---


@dataclass(frozen=True)
class Pass:
    """Seconds, and the most memory that the device held beyond what lay there before, in bytes."""

    seconds: float
    memory: int


def measured(work: Callable[[], None], device: torch.device) -> Callable[[], Pass]:
    """A contestant that waits for the device."""

    def run() -> Pass:
        _settle(device)
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - begun
        most = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        return Pass(seconds, most - before)

    return run


def _settle(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)


def compare(contestants: dict[str, Callable[[], None]], setting: Setting) -> dict[str, Any]:
    """By name: tokens a second, gigabytes, ratio to the first of all."""
    each = {name: measured(work, setting.device) for name, work in contestants.items()}
    found = interleave(each, setting.repeats)
    seconds = {name: [one.seconds for one in passes] for name, passes in found.items()}
    return {
        name: {
            "tokens_per_second": Spread.of([setting.of_a_pass / one for one in seconds[name]]),
            "gigabytes": max(one.memory for one in passes) / _GIGABYTE,
            "seconds": seconds[name],
        }
        for name, passes in found.items()
    }


def training_of(size: str, setting: Setting) -> tuple[dict[str, Any], bool]:
    """All three, and whether the weights are real. The loop by hand and the worker train the same weights."""
    device = setting.device
    fm, real = model_of(size, device)
    sub_fm, _ = sub_model_of(fm, device)
    # peft changes the model that it is given: each has its own modules on the same weights.
    twin, _ = sub_model_of(fm, device)
    data = setting.data(fm.config.vocab_size)
    contestants = {
        "plain loop, FM": plain_training(fm, data, setting.batch),
        SUB_FMS[1]: plain_training(twin, data, setting.batch),
        SUB_FMS[0]: worker(Adapted(sub_fm, KIND, SPEC), data, setting.batch),
    }
    return compare(contestants, setting), real


def alignment_of(size: str, setting: Setting) -> dict[str, Any]:
    """Both."""
    device = setting.device
    fm, _ = model_of(size, device)
    sub_fm, layers = sub_model_of(fm, device)
    data = setting.data(fm.config.vocab_size)
    given = fm, sub_fm, layers, data, setting.batch
    contestants = {"plain loop": plain_alignment(*given), "coordinator": alignment(*given)}
    return compare(contestants, setting)


def ratio(found: dict[str, Any], over: str, under: str) -> Ratio:
    """Of seconds."""
    return Ratio.of(found[over]["seconds"], found[under]["seconds"])


@dataclass
class Found:
    """All that was measured."""

    card: str
    figures: dict[str, Any]
    left_out: dict[str, str]
    targets: list[Target]
    rows: list[list[str]]

    def training(self, size: str, setting: Setting) -> None:
        """Of a size."""
        found, real = training_of(size, setting)
        self.figures[f"{size}, training"] = found | {"real_weights": real}
        self._tell(size, "training", found, "plain loop, FM")
        self._judge(f"{size}: worker's step over the plain loop's", found, SUB_FMS, 1.05)
        if size == "8b":
            self._judge("8b: the sub-FM's step over the FM's", found, (SUB_FMS[0], "plain loop, FM"), 0.72)

    def alignment(self, size: str, setting: Setting) -> None:
        """The same."""
        found = alignment_of(size, setting)
        self.figures[f"{size}, alignment"] = found
        self._tell(size, "alignment", found, "plain loop")
        both = ("coordinator", "plain loop")
        self._judge(f"{size}: alignment's step over the plain loop's", found, both, 1.05)

    def _judge(self, what: str, found: dict[str, Any], which: tuple[str, str], limit: float) -> None:
        self.targets.append(Target(what, ratio(found, *which).value, limit, False))

    def _tell(self, size: str, what: str, found: dict[str, Any], first: str) -> None:
        for name, one in found.items():
            quotient = "1" if name == first else str(ratio(found, name, first))
            memory = f"{one['gigabytes']:.1f}" if self.card else "–"
            self.rows.append([size, what, name, str(one["tokens_per_second"]), quotient, memory])


def main() -> None:
    """The command."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["smollm2", "1b", "8b"])
    parser.add_argument("--device", default="cuda", help="torch device [cuda]")
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch [8]")
    parser.add_argument("--tokens", type=int, default=512, help="of a row [512]")
    parser.add_argument("--repeats", type=int, default=5, help="passes of every contestant [5]")
    parser.add_argument("--minutes", type=float, default=7.0, help="after these nothing further is begun [7]")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --sizes tiny shows that it runs")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    begun, found = time.monotonic(), Found(card, {"card": card}, {}, [], [])
    setting = Setting(device, options.batch, options.tokens, options.repeats)
    for size in options.sizes:
        for what, of in (("training", found.training), ("alignment", found.alignment)):
            if time.monotonic() - begun > 60 * options.minutes:
                found.left_out[f"{size}, {what}"] = "no time was left"
                continue
            try:
                of(size, setting)
            except torch.OutOfMemoryError:
                found.left_out[f"{size}, {what}"] = "it does not fit the device's memory"
            _settle(device)
    print(
        f"\n{card or device}, torch {torch.__version__}, {options.batch} × {options.tokens} tokens a batch\n"
    )
    print(table(("size", "what", "contestant", "tokens/s", "× seconds", "GB"), found.rows))
    for what, why in found.left_out.items():
        print(f"{what}: left out, {why}")
    report(options.json, found.figures | {"left_out": found.left_out}, found.targets)


if __name__ == "__main__":
    main()
