"""A distillation that was interrupted ends as it would have without."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import Stopped, StoreError
from common.model.families import FAMILIES
from common.storage.tensors import TensorFile, to_bytes
from coordinator.algorithms.distillation import Settings, distil
from tests.coordinator.algorithms.pairs import COMPRESSED, add_lora, batches, pair, same_bits, values
from tests.small import copies

SETTINGS = Settings(steps=6, learning_rate=3e-3, warmup=0.4, weight_term=0.01)
NEURONS = {1: torch.tensor([0, 5, 15]), 2: torch.tensor([3])}


def interrupted(family: str, at: int = 4, lora: bool = False, **options: Any) -> dict[str, Tensor]:
    """The checkpoint of a distillation that was stopped just after step `at`."""

    def stop(step: int, steps: int, loss: float) -> None:
        if step == at:
            raise Stopped("stopped")

    fm, sub_fm = pair(family)
    if lora:
        add_lora(fm), add_lora(sub_fm)
    kept: list[dict[str, Tensor]] = []
    with pytest.raises(Stopped):
        distil(
            fm,
            sub_fm,
            COMPRESSED,
            batches(fm),
            SETTINGS,
            on_step=stop,
            on_checkpoint=lambda state: kept.append(copies(state)),
            checkpoint_every=2,
            **options,
        )
    assert [int(checkpoint["step"]) for checkpoint in kept] == [2, 4][: at // 2]
    return kept[-1]


@pytest.mark.parametrize("neurons", [None, NEURONS], ids=["layer level", "neuron level"])
@pytest.mark.parametrize("family", FAMILIES)
def test_resumed_from_a_file_it_ends_with_the_bits_of_an_uninterrupted_one(
    family: str, neurons: dict[int, Tensor] | None, tmp_path: Path
) -> None:
    fm, whole = pair(family)
    distil(fm, whole, COMPRESSED, batches(fm), SETTINGS, neurons=neurons)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(to_bytes(interrupted(family, neurons=neurons)))
    checkpoint = TensorFile(file)
    before = checkpoint.load()
    _, sub_fm = pair(family)
    steps: list[int] = []
    distil(
        fm,
        sub_fm,
        COMPRESSED,
        batches(fm),
        SETTINGS,
        neurons=neurons,
        resume=checkpoint,
        on_step=lambda step, total, loss: steps.append(step),
    )
    assert steps == [5, 6]
    assert same_bits(values(sub_fm), values(whole))
    assert same_bits(checkpoint.load(), before)


def test_with_lora_around_the_ffn_it_resumes_to_the_same_bits_too() -> None:
    fm, whole = pair("bert")
    _, sub_fm = pair("bert")
    for model in (fm, whole, sub_fm):
        add_lora(model)
    distil(fm, whole, COMPRESSED, batches(fm), SETTINGS)
    distil(fm, sub_fm, COMPRESSED, batches(fm), SETTINGS, resume=interrupted("bert", lora=True))
    assert same_bits(values(sub_fm), values(whole))


def test_going_on_leaves_the_checkpoint_as_it_was_so_that_it_serves_again() -> None:
    checkpoint = interrupted("bert")
    results = []
    for _ in range(2):
        fm, sub_fm = pair("bert")
        distil(fm, sub_fm, COMPRESSED, batches(fm), SETTINGS, resume=checkpoint)
        results.append(values(sub_fm))
    assert same_bits(*results)


def test_a_checkpoint_is_a_copy_that_later_steps_do_not_reach() -> None:
    fm, sub_fm = pair("bert")
    kept: list[dict[str, Tensor]] = []
    distil(
        fm,
        sub_fm,
        COMPRESSED,
        batches(fm),
        SETTINGS,
        on_checkpoint=lambda state: kept.append(copies(state)),
        checkpoint_every=4,
    )
    assert len(kept) == 1 and same_bits(kept[0], interrupted("bert"))


def test_a_finished_distillation_takes_no_further_step_or_batch() -> None:
    fm, whole = pair("bert")
    kept: list[dict[str, Tensor]] = []
    distil(
        fm,
        whole,
        COMPRESSED,
        batches(fm),
        SETTINGS,
        on_checkpoint=lambda state: kept.append(copies(state)),
        checkpoint_every=6,
    )
    _, sub_fm = pair("bert")
    distil(fm, sub_fm, COMPRESSED, iter(()), SETTINGS, resume=kept[-1])
    assert same_bits(values(sub_fm), values(whole))


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda checkpoint: checkpoint.__delitem__(name)


def with_value(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda checkpoint: checkpoint.__setitem__(name, value)


WEIGHT = "bert.encoder.layer.1.intermediate.dense.weight"
FAULTS: dict[str, tuple[Callable[[dict[str, Tensor]], None], str]] = {
    "no step": (without("step"), "tensor step is missing"),
    "no moment": (without(f"exp_avg_sq.{WEIGHT}"), f"tensor exp_avg_sq.{WEIGHT} is missing"),
    "no AdamW step": (without(f"adamw_step.{WEIGHT}"), f"tensor adamw_step.{WEIGHT} is missing"),
    "another tensor": (with_value("extra", torch.zeros(1)), "tensor extra is not expected"),
    "another width": (with_value(f"parameter.{WEIGHT}", torch.zeros(15, 32)), r"must be .* \[16, 32\]"),
    "not a number": (with_value(f"exp_avg.{WEIGHT}", torch.full((16, 32), torch.nan)), "NaN"),
    "step 0": (with_value("step", torch.tensor(0)), "step 0 of 6"),
    "a step too far": (with_value("step", torch.tensor(7)), "step 7 of 6"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line_and_changes_nothing(fault: str) -> None:
    checkpoint = interrupted("bert")
    damage, message = FAULTS[fault]
    damage(checkpoint)
    fm, sub_fm = pair("bert")
    before = values(sub_fm)
    with pytest.raises(
        StoreError, match=f"^the checkpoint does not fit this distillation: .*{message}"
    ) as error:
        distil(fm, sub_fm, COMPRESSED, batches(fm), SETTINGS, resume=checkpoint)
    assert "\n" not in str(error.value)
    assert same_bits(values(sub_fm), before)
    assert all(parameter.requires_grad for parameter in sub_fm.parameters())


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"settings": replace(SETTINGS, steps=8)}, "settings were"),
    "a term": ({"settings": replace(SETTINGS, attention_term=1.0)}, "settings were"),
    "layers": ({"layers": (2, 1), "neurons": NEURONS}, "layers were"),
    "neurons": ({"neurons": NEURONS | {2: torch.tensor([4])}}, r"neurons.2 were \[3\], are \[4\]"),
    "all neurons": ({"neurons": None}, "is missing"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_the_checkpoint_of_another_distillation_is_refused(other: str) -> None:
    checkpoint = interrupted("bert", neurons=NEURONS)
    fm, sub_fm = pair("bert")
    changed, message = OTHERS[other]
    options = {"layers": COMPRESSED, "settings": SETTINGS, "neurons": NEURONS} | changed
    with pytest.raises(StoreError, match=message):
        distil(fm, sub_fm, batches=batches(fm), resume=checkpoint, **options)
