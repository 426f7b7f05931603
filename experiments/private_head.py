"""What differential privacy costs in accuracy: the head on BBC News, by the workers' own training.

python -m experiments.private_head [SEEDS]

all-MiniLM-L6-v2; three workers of 400 documents, cut to 64 tokens; four rounds; 400 documents to test, split
anew for each seed. Only the head is trained, so what it reads of a document is computed once.
"""

import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from common.data.batches import Batch, Dataset
from common.data.encoding import encode
from common.data.processors import load_processor
from common.model import passes
from common.model.adapter import Adapted, plus
from common.privacy.accounting import undisturbed
from common.private_task import DpSpec, DpUnit
from common.records import AdapterSpec, AdapterTargets, LocalOptimizer, TaskKind, TrainingSpec
from common.runtime import seeds
from coordinator.modelling.foundation import load_foundation
from experiments.packaged import bbc_news, packaged_model
from worker.private_training import Mechanism, fine_tune_privately
from worker.train import fine_tune

KIND, DELTA, ROUNDS, WORKERS, EACH, TEST = TaskKind.TEXT_CLASSIFICATION, 1e-5, 4, 3, 400, 400
HEAD = AdapterSpec(AdapterTargets.NONE, 8, 32.0, 0.0)
# As found for the demo by a search; and as `fedpft init --epsilon` writes it.
PLAIN = TrainingSpec(2, 8, 0.0, 10.0, 0.0, 1.0, optimizer=LocalOptimizer.SGD)
PRIVATE = TrainingSpec(40, 512, 0.0, 3.0, 0.0, 1.0, optimizer=LocalOptimizer.SGD)


class _Read(nn.Module):
    """In the encoder's place: is given what the encoder came to."""

    def forward(self, read: Tensor, **others: object) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=read, pooler_output=read)


class Documents(Dataset):
    """What the head reads of some documents, and their classes."""

    def __init__(self, read: Tensor, labels: Tensor) -> None:
        self._read, self._labels = read, labels

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: Sequence[int]) -> Batch:
        rows = list(indices)
        return Batch({"input_ids": self._read[rows]}, self._labels[rows])


def read_documents() -> tuple[Adapted, Tensor, Tensor]:
    """The model with the encoder taken out, what this came to for all documents, and their classes."""
    documents = bbc_news()
    labels = tuple(sorted(set(documents.label_names or ())))
    folder = packaged_model()
    dataset = encode(load_processor(folder, KIND), documents, KIND, 64, labels)
    model: Any = load_foundation(str(folder), KIND, labels, 1).model
    seen: list[Tensor] = []
    hook = model.bert.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
    classes = []
    with torch.no_grad():
        for batch in dataset.in_order(64):
            passes.logits(model, batch.inputs)
            assert batch.labels is not None
            classes.append(batch.labels)
    hook.remove()
    model.bert = _Read()
    return Adapted(model, KIND, HEAD), torch.cat(seen), torch.cat(classes)


def accuracy(model: Adapted, read: Tensor, classes: Tensor, epsilon: float | None, seed: int) -> float:
    """On the test documents, after all rounds; without an epsilon as it would be without privacy."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(classes), generator=draw)
    test, *parts = order[: TEST + WORKERS * EACH].split([TEST, *[EACH] * WORKERS])
    data = [Documents(read[part], classes[part]) for part in parts]
    adapter = {name: torch.zeros_like(tensor) for name, tensor in model.tensors().items()}
    for number in range(ROUNDS):
        factor = 1 - number / ROUNDS
        deltas = []
        for worker, own in enumerate(data):
            if epsilon is None:
                own_seed = seeds.derive(seed, "private-head", worker, number) % 2**62
                update = fine_tune(model, adapter, own, PLAIN, factor=factor, seed=own_seed)
            else:
                dp = DpSpec(DpUnit.EXAMPLE, epsilon, DELTA, 1.0, PRIVATE.batch_size, ROUNDS)
                planned, batch = undisturbed(dp, EACH, PRIVATE.epochs)
                how = Mechanism(planned, dp.clip, batch)
                update = fine_tune_privately(model, adapter, own, PRIVATE, how, factor=factor)
            deltas.append(update.delta)
        mean = {name: torch.stack([delta[name] for delta in deltas]).mean(0) for name in deltas[0]}
        adapter = plus(adapter, mean)
    model.load(adapter)
    with torch.no_grad():
        scores = passes.logits(model.model, {"input_ids": read[test]})
    return float((scores.argmax(-1) == classes[test]).float().mean())


def main(count: int) -> None:
    """Print mean and spread over so many splits."""
    torch.set_num_threads(1)
    model, read, classes = read_documents()
    for epsilon in (None, 8.0, 3.0, 1.0):
        found = [accuracy(model, read, classes, epsilon, seed) for seed in range(1, count + 1)]
        name = "no privacy" if epsilon is None else f"epsilon {epsilon:g}"
        print(f"{name:<12} {statistics.mean(found):.3f} ± {statistics.stdev(found):.3f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
