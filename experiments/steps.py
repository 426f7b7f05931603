"""What a worker's optimiser step costs on different models: time, floating-point operations, parameters."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch.optim import AdamW, Optimizer
from torch.utils.flop_counter import FlopCounterMode

from common.data.batches import Batch
from common.model.adapter import Adapted
from common.model.passes import loss

_WARM_UP = 3


@dataclass(frozen=True)
class StepCost:
    """Median and spread (interquartile range) in milliseconds; FLOPs of forward and backward."""

    milliseconds: float
    spread: float
    flops: int
    parameters: int
    trained_parameters: int


def measure_steps(
    models: Mapping[str, Adapted],
    batch: Batch,
    repeats: int,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> dict[str, StepCost]:
    """The cost of a step by model. The models take turns, so that the machine's noise hits all alike."""
    optimizers: dict[str, Optimizer] = {}
    for name, adapted in models.items():
        adapted.model.train()
        trained = [p for p in adapted.model.parameters() if p.requires_grad]
        optimizers[name] = AdamW(trained, lr=1e-5)
    milliseconds: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(_WARM_UP + repeats):
        on_step(repeat, _WARM_UP + repeats)
        for name, adapted in models.items():
            begun = time.perf_counter()
            _step(adapted, batch, optimizers[name])
            if repeat >= _WARM_UP:
                milliseconds[name].append(1000 * (time.perf_counter() - begun))
    costs = {}
    for name, adapted in models.items():
        with FlopCounterMode(display=False) as counter:
            _step(adapted, batch, optimizers[name])
        quartiles = statistics.quantiles(milliseconds[name], n=4) if repeats > 1 else [0.0, 0.0, 0.0]
        parameters = list(adapted.model.parameters())
        costs[name] = StepCost(
            statistics.median(milliseconds[name]),
            quartiles[2] - quartiles[0],
            counter.get_total_flops(),
            sum(p.numel() for p in parameters),
            sum(p.numel() for p in parameters if p.requires_grad),
        )
        adapted.model.eval()
    return costs


def _step(adapted: Adapted, batch: Batch, optimizer: Optimizer) -> None:
    assert batch.labels is not None
    value = loss(adapted.model, batch.inputs, batch.labels, adapted.kind)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
