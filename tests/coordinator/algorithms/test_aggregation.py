"""Updates → the next adapter: each rule and optimizer by hand, and what holds whatever the numbers."""

import math
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.config.choices import AggregationRule, ServerOptimizer
from common.errors import BadUpdate, RunFailed
from common.model.adapter import plus
from coordinator.algorithms.aggregation import Settings, Update, aggregate, combine, step
from tests.small import copies, same_bits

RULES = [Settings(rule, trim=0.2, density=1.0) for rule in AggregationRule]
ROBUST = [s for s in RULES if s.rule not in (AggregationRule.MEAN, AggregationRule.TIES)]
OPTIMIZERS = [Settings(optimizer=optimizer) for optimizer in ServerOptimizer]


def name_of(settings: Settings) -> str:
    return f"{settings.rule}-{settings.optimizer}"


def random_tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 5, generator=generator), "b": torch.randn(7, generator=generator)}


def numbers(*values: float, examples: int = 1) -> list[Update]:
    """Workers that each send one number, named in this order."""
    return [Update(f"w{i}", examples, {"w": torch.tensor([float(value)])}) for i, value in enumerate(values)]


def combined(updates: list[Update], settings: Settings) -> float:
    return combine(updates, settings)["w"].item()


START = random_tensors(0)
UPDATES = [Update(f"w{i}", 10 + 7 * i, random_tensors(i + 1)) for i in range(5)]


# Many changes become one.


def test_the_mean_weighs_by_examples_as_worked_out_by_hand() -> None:
    updates = [
        Update("a", 30, {"w": torch.tensor([4.0, 0.0])}),
        Update("b", 10, {"w": torch.tensor([0.0, -8.0])}),
    ]
    # (30 · 4 + 10 · 0) / 40, (30 · 0 - 10 · 8) / 40
    assert combine(updates, Settings())["w"].tolist() == [3.0, -2.0]


def test_the_median_is_the_middle_one_or_halfway_between_the_middle_two() -> None:
    median = Settings(AggregationRule.MEDIAN)
    assert combined(numbers(5, 1, 3), median) == 3.0
    assert combined(numbers(5, 1, 100, 3), median) == 4.0
    assert combined(numbers(5), median) == 5.0


def test_the_median_is_taken_in_each_coordinate() -> None:
    rows = [[1.0, 30.0], [2.0, 10.0], [3.0, 20.0]]
    updates = [Update(f"w{i}", 1, {"w": torch.tensor(row)}) for i, row in enumerate(rows)]
    # The middle of 1, 2, 3 and of 10, 20, 30: no worker sent both.
    assert combine(updates, Settings(AggregationRule.MEDIAN))["w"].tolist() == [2.0, 20.0]


@pytest.mark.parametrize(
    ("trim", "expected"),
    # Of 0, 1, 2, 6, 16: all; 1, 2, 6; the same, a share of 0.1 being half an update, rounded up; 2.
    [(0.0, 5.0), (0.2, 3.0), (0.1, 3.0), (0.4, 2.0)],
)
def test_the_trimmed_mean_leaves_out_its_share_at_each_end(trim: float, expected: float) -> None:
    assert combined(numbers(16, 0, 2, 6, 1), Settings(AggregationRule.TRIMMED_MEAN, trim)) == expected


def test_a_share_that_is_whole_is_not_rounded_up() -> None:
    # 0.07 · 100 is a little more than 7 in floating point. Cutting 8 would leave only zeros.
    updates = numbers(*[0.0] * 92, *[86.0] * 8)
    assert combined(updates, Settings(AggregationRule.TRIMMED_MEAN, trim=0.07)) == 1.0


def test_krum_takes_the_update_whose_neighbours_are_nearest() -> None:
    # n - f - 2 = 2 neighbours. Scores of 0, 1, 3, 3.5, 100: 1 + 9, 1 + 4, 0.25 + 4, 0.25 + 6.25, much.
    updates = numbers(100, 3.5, 0, 3, 1)
    assert combined(updates, Settings(AggregationRule.KRUM)) == 3.0
    # The best m = 2 of them: 3 and 1.
    assert combined(updates, Settings(AggregationRule.MULTI_KRUM)) == 2.0


def test_krum_measures_distances_over_all_tensors() -> None:
    xs, ys = [9.0, 3.0, 8.0, 2.0, 4.0], [2.0, 1.0, 9.0, 4.0, 8.0]
    updates = [
        Update(f"w{i}", 1, {"x": torch.tensor([x]), "y": torch.tensor([[y]])})
        for i, (x, y) in enumerate(zip(xs, ys, strict=True))
    ]
    # Scores by x alone 26, 2, 17, 5, 5, by y alone 5, 10, 26, 13, 17; by both 87, 47, 67, 30, 37.
    change = combine(updates, Settings(AggregationRule.KRUM))
    assert (change["x"].item(), change["y"].item()) == (2.0, 4.0)


def test_krum_takes_the_first_worker_of_those_that_are_as_good() -> None:
    # Scores of 4, 3, 2, 1, 0: 1 + 4, 1 + 1, 1 + 1, 1 + 1, 1 + 4.
    updates = numbers(4, 3, 2, 1, 0)
    assert combined(updates, Settings(AggregationRule.KRUM)) == 3.0
    assert combined(updates[::-1], Settings(AggregationRule.KRUM)) == 3.0


@pytest.mark.parametrize("settings", RULES, ids=name_of)
def test_the_order_of_updates_changes_no_bit(settings: Settings) -> None:
    expected = combine(UPDATES, settings)
    for order in permutations(UPDATES):
        assert same_bits(combine(order, settings), expected)


@pytest.mark.parametrize("settings", RULES, ids=name_of)
@given(st.lists(st.integers(1, 1000), min_size=5, max_size=9))
def test_workers_that_agree_get_what_they_agree_on(settings: Settings, examples: list[int]) -> None:
    agreed = random_tensors(9)
    change = combine([Update(f"w{i}", n, agreed) for i, n in enumerate(examples)], settings)
    assert all(torch.allclose(change[name], agreed[name], atol=1e-5) for name in agreed)


@pytest.mark.parametrize("settings", ROBUST, ids=name_of)
def test_robust_rules_give_every_worker_the_same_weight(settings: Settings) -> None:
    claimed = [replace(update, weight=10**i) for i, update in enumerate(UPDATES)]
    assert same_bits(combine(claimed, settings), combine(UPDATES, settings))


honest_values = st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=4)
outliers = st.one_of(
    st.sampled_from([math.inf, -math.inf, math.nan]),
    st.floats(2.0**10, 2.0**100, width=32),
    st.floats(-(2.0**100), -(2.0**10), width=32),
)


@pytest.mark.parametrize("settings", ROBUST, ids=name_of)
@given(honest_values, outliers, st.integers(0, 4))
def test_one_bad_worker_of_five_moves_no_robust_rule_beyond_the_honest(
    settings: Settings, honest: list[float], outlier: float, place: int
) -> None:
    updates = numbers(*honest[:place], outlier, *honest[place:])
    # However many examples it claims.
    updates[place] = replace(updates[place], weight=10**9)
    slack = 1e-6
    assert min(honest) - slack <= combined(updates, settings) <= max(honest) + slack


@given(honest_values, outliers)
def test_one_bad_worker_of_five_moves_the_mean_beyond_the_honest(honest: list[float], bad: float) -> None:
    mean = combined(numbers(*honest, bad), Settings())
    assert not min(honest) <= mean <= max(honest)


@pytest.mark.parametrize("rule", [AggregationRule.KRUM, AggregationRule.MULTI_KRUM])
@pytest.mark.parametrize(("byzantine", "least"), [(0, 3), (1, 5), (2, 7)])
def test_krum_names_how_many_updates_it_needs(rule: AggregationRule, byzantine: int, least: int) -> None:
    settings = Settings(rule, byzantine=byzantine)
    assert combined(numbers(*[1.0] * least), settings) == 1.0
    with pytest.raises(RunFailed) as failure:
        combine(numbers(*[1.0] * (least - 1)), settings)
    assert str(failure.value) == (
        f"{rule} with byzantine = {byzantine} needs at least {least} updates, got {least - 1}; "
        "lower aggregation.byzantine or take more workers"
    )


def test_a_trimmed_mean_of_nothing_is_refused() -> None:
    with pytest.raises(RunFailed, match=r"trim = 0.4 cuts 2 from each end and leaves none, got 4 updates"):
        combine(numbers(1, 2, 3, 4), Settings(AggregationRule.TRIMMED_MEAN, trim=0.4))


@pytest.mark.parametrize("settings", RULES, ids=name_of)
def test_no_updates_are_refused(settings: Settings) -> None:
    with pytest.raises(RunFailed, match="no update"):
        combine([], settings)


def test_updates_that_hold_different_tensors_are_refused() -> None:
    updates = [Update("ann", 1, START), Update("bob", 1, {"a": START["a"]})]
    with pytest.raises(BadUpdate, match=r"ann and bob do not fit together: only one of them holds tensor b"):
        combine(updates, Settings())


class FromDisk(Mapping[str, Tensor]):
    """Makes a tensor anew each time it is asked for, as if read; `made` refers to all that were made."""

    def __init__(self, tensors: dict[str, Tensor], made: list[weakref.ref[Tensor]], peaks: list[int]) -> None:
        self.tensors, self.made, self.peaks = tensors, made, peaks

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.tensors[name].clone()
        self.made.append(weakref.ref(tensor))
        self.peaks.append(sum(reference() is not None for reference in self.made))
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@pytest.mark.parametrize("settings", RULES, ids=name_of)
def test_updates_are_read_tensor_by_tensor(settings: Settings) -> None:
    names, workers = [f"t{i}" for i in range(8)], 5
    made: list[weakref.ref[Tensor]] = []
    peaks: list[int] = []
    tensors = {name: torch.ones(2) for name in names}
    combine([Update(f"w{i}", 1, FromDisk(tensors, made, peaks)) for i in range(workers)], settings)
    # One tensor of each worker, and what becomes the result: of 40 there are.
    assert max(peaks) <= workers + len(names)
    # Once each; Krum and Multi-Krum once more those of the one and the two that they take.
    chosen = {AggregationRule.KRUM: 1, AggregationRule.MULTI_KRUM: 2}.get(settings.rule, 0)
    assert len(made) == (workers + chosen) * len(names)


# The one change is applied.


def one(value: float) -> dict[str, Tensor]:
    return {"w": torch.tensor([value], dtype=torch.float64)}


def two_steps(settings: Settings, first: float, second: float) -> tuple[float, float]:
    """From zero: where the first and the second step lead."""
    adapter, state = step(one(0.0), one(first), {}, settings)
    after, _ = step(adapter, one(second), state, settings)
    return adapter["w"].item(), after["w"].item()


def test_no_optimizer_adds_the_change_times_the_learning_rate() -> None:
    assert two_steps(Settings(learning_rate=0.5), 4.0, -2.0) == (2.0, 1.0)


def test_momentum_keeps_its_share_of_the_last_step() -> None:
    settings = Settings(optimizer=ServerOptimizer.MOMENTUM, learning_rate=0.5, momentum=0.75)
    # m = 4, then 0.75 · 4 + 2 = 5; the steps are half of that.
    assert two_steps(settings, 4.0, 2.0) == (2.0, 4.5)


def test_adam_and_yogi_step_as_worked_out_by_hand() -> None:
    adam = Settings(
        optimizer=ServerOptimizer.ADAM, learning_rate=2.0, momentum=0.5, second_momentum=0.75, tau=0.5
    )
    # Changes 1 and 0.5. m = 0.5 · 0 + 0.5 · 1 = 0.5, then 0.5 · 0.5 + 0.5 · 0.5 = 0.5. At first v = 0.5².
    # Adam: v = 0.75 · 0.25 + 0.25 · 1 = 0.4375, then 0.75 · 0.4375 + 0.25 · 0.25 = 0.390625 = 0.625².
    first = 2 * 0.5 / (math.sqrt(0.4375) + 0.5)
    assert two_steps(adam, 1.0, 0.5) == pytest.approx((first, first + 2 * 0.5 / (0.625 + 0.5)))
    # Yogi: v rises by 0.25 · 1 to 0.5, as 1 > 0.25, then falls by 0.25 · 0.25 to 0.4375, as 0.25 < 0.5.
    first = 2 * 0.5 / (math.sqrt(0.5) + 0.5)
    yogi = replace(adam, optimizer=ServerOptimizer.YOGI)
    assert two_steps(yogi, 1.0, 0.5) == pytest.approx((first, first + 2 * 0.5 / (math.sqrt(0.4375) + 0.5)))


@pytest.mark.parametrize(
    ("optimizer", "kinds"),
    [
        (ServerOptimizer.NONE, set()),
        (ServerOptimizer.MOMENTUM, {"momentum"}),
        (ServerOptimizer.ADAM, {"momentum", "variance"}),
        (ServerOptimizer.YOGI, {"momentum", "variance"}),
    ],
)
def test_the_state_is_named_after_the_tensors(optimizer: ServerOptimizer, kinds: set[str]) -> None:
    state: dict[str, Tensor] = {}
    for _ in range(2):
        _, state = step(START, random_tensors(1), state, Settings(optimizer=optimizer))
        assert state.keys() == {f"{kind}.{name}" for kind in kinds for name in START}


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=name_of)
def test_what_no_update_holds_stays_as_it_is_to_the_bit(settings: Settings) -> None:
    _, state = step(START, random_tensors(1), {}, settings)
    adapter, after = aggregate(START, [Update("ann", 3, {"a": torch.ones(3, 5)})], state, settings)
    assert adapter.keys() == START.keys() and after.keys() == state.keys()
    assert torch.equal(adapter["b"], START["b"]) and not torch.equal(adapter["a"], START["a"])
    for name in state:
        assert torch.equal(after[name], state[name]) == name.endswith(".b")


@pytest.mark.parametrize("settings", OPTIMIZERS, ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_keeps_the_adapters_dtype_and_leaves_its_inputs_alone(
    settings: Settings, dtype: torch.dtype
) -> None:
    start, change = ({n: t.to(dtype) for n, t in random_tensors(seed).items()} for seed in (0, 1))
    _, state = step(start, change, {}, settings)
    inputs = (start, change, state)
    before = [copies(tensors) for tensors in inputs]
    adapter, after = step(start, change, state, settings)
    assert all(tensor.dtype == dtype for tensor in adapter.values())
    assert all(tensor.dtype == torch.float32 for tensor in after.values())
    assert all(same_bits(tensors, copy) for tensors, copy in zip(inputs, before, strict=True))


# Both.


@given(st.integers(1, 2**31), st.integers(1, 10**9))
def test_one_update_gives_exactly_start_plus_delta(seed: int, examples: int) -> None:
    delta = random_tensors(seed)
    adapter, state = aggregate(START, [Update("ann", examples, delta)], {}, Settings())
    assert same_bits(adapter, plus(START, delta)) and not state


def test_one_update_keeps_the_sign_of_zero() -> None:
    zero = {"w": torch.tensor([-0.0])}
    adapter, _ = aggregate(zero, [Update("ann", 3, zero)], {}, Settings())
    assert adapter["w"].signbit().item()


@pytest.mark.parametrize("rule", AggregationRule)
@pytest.mark.parametrize("optimizer", ServerOptimizer)
def test_every_rule_goes_with_every_optimizer(rule: AggregationRule, optimizer: ServerOptimizer) -> None:
    settings = Settings(rule, optimizer=optimizer)
    expected = step(START, combine(UPDATES, settings), {}, settings)
    result = aggregate(START, UPDATES[::-1], {}, settings)
    assert all(same_bits(ours, theirs) for ours, theirs in zip(result, expected, strict=True))


@pytest.mark.parametrize("settings", RULES, ids=name_of)
def test_aggregation_leaves_the_updates_alone(settings: Settings) -> None:
    before = [copies(dict(update.delta)) for update in UPDATES]
    aggregate(START, UPDATES, {}, settings)
    assert all(same_bits(dict(u.delta), copy) for u, copy in zip(UPDATES, before, strict=True))
