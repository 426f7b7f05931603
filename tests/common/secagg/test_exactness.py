"""What comes out of a secure round is the plain sum of integers, to the bit, whoever drops out when."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BadShare, SecureRefused
from common.secagg import context, vector
from common.secagg.masks import Ring
from common.secagg.records import SecureRound, VectorSpec
from tests.common.secagg.parties import Parties, Signatures, a_round, masked, ring_sum, until_opened


@dataclass(frozen=True)
class Case:
    """A round, and who leaves before which phase."""

    round: SecureRound
    before_keys: tuple[str, ...]
    before_shares: tuple[str, ...]
    before_upload: tuple[str, ...]
    before_endorsing: tuple[str, ...]
    before_opening: tuple[str, ...]
    seed: int
    signed: bool


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n = draw(st.integers(3, 12))
    c = draw(st.integers(0, n - 1))
    limit = draw(st.integers((n + c) // 2 + 1, n))
    minimum = draw(st.integers(max(limit, 3), n))
    shapes = draw(
        st.lists(st.sampled_from([(), (0,), (1,), (7,), (2, 3), (3, 0, 2)]), min_size=1, max_size=3)
    )
    bits = draw(st.sampled_from([32, 64]))
    vectors = tuple(VectorSpec(f"v{i}", shape, bits) for i, shape in enumerate(shapes))
    counts = VectorSpec("counts", (4,), 64)
    told = a_round(
        n,
        c,
        threshold=limit,
        minimum=minimum,
        vectors=(*vectors, counts),
        step=context.ring_step(8.0, bits, n),
    )
    left = list(draw(st.permutations(told.drawn)))
    gone: list[tuple[str, ...]] = []
    for least in (limit, limit, minimum):
        many = draw(st.integers(0, len(left) - max(least, minimum)))
        gone.append(tuple(left[:many]))
        left = left[many:]
    # Who endorses and who opens is another question each: some return.
    gone += [tuple(left[: draw(st.integers(0, len(left) - limit))]) for _ in range(2)]
    return Case(told, *gone, draw(st.integers(0, 2**32)), draw(st.booleans()))  # type: ignore[arg-type]


def outcome(case: Case) -> None:
    """Play the round, and compare."""
    told = case.round
    parties = Parties(told, Signatures(told.drawn) if case.signed else None)
    parties.offer_keys(case.before_keys)
    parties.deal(case.before_shares)
    parties.receive()
    random = np.random.default_rng(case.seed)
    plain: dict[str, dict[str, Ring]] = {}
    for name in parties.sharers:
        weight = vector.weight_of(int(random.integers(1, 10**6)), told.most_examples)
        plain[name] = {}
        for spec in told.vectors:
            if spec.name == "counts":
                values = random.integers(-(2**62), 2**62, spec.shape) // 12
                plain[name][spec.name] = vector.to_ring(values, 64)
            else:
                floats = random.choice([-8.0, 8.0, -0.0, 1e-30, *random.normal(0, 9, 3)], spec.shape)
                found = vector.quantise(np.asarray(floats), weight, told.step, spec.bits, told.clip)
                plain[name][spec.name] = found
    sent = {
        name: {key: masked(values, parties.masks_of(name), key, told) for key, values in held.items()}
        for name, held in plain.items()
    }
    parties.survive(case.before_upload)
    openings = parties.open(parties.endorse(case.before_endorsing), case.before_opening)
    found = parties.recover(openings)
    for spec in told.vectors:
        total = ring_sum(sent[name][spec.name] for name in parties.survivors)
        opened = vector.to_signed(masked(total, found, spec.name, told))
        expected = np.zeros(spec.shape, object)
        for name in parties.survivors:
            expected = expected + vector.to_signed(plain[name][spec.name]).astype(object)
        assert opened.shape == spec.shape
        assert opened.dtype.itemsize * 8 == spec.bits
        assert opened.tolist() == np.asarray(expected).tolist()


@settings(max_examples=5, deadline=None)
@given(cases())
def test_the_sum_is_the_plain_one(case: Case) -> None:
    outcome(case)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(cases())
def test_the_sum_is_the_plain_one_in_hundreds_of_rounds(case: Case) -> None:
    outcome(case)


def test_any_openers_give_the_same_masks() -> None:
    parties = until_opened(7, late=["w003"])
    openings = parties.open(parties.endorse())
    first = parties.recover(openings)
    assert parties.round.threshold == 5
    for without in parties.survivors:
        rest = {name: given for name, given in openings.items() if name != without}
        assert parties.recover(rest) == first


def test_a_masked_vector_is_nothing_like_the_plain_one() -> None:
    parties = until_opened(5)
    told = parties.round
    plain = np.zeros(1000, np.uint32)
    sent = [masked(plain, parties.masks_of(name), "delta", told) for name in told.drawn]
    for one in sent:
        # Uniform: a zero in a thousand elements has probability 2e-7.
        assert np.count_nonzero(one) == 1000
    # Pairs' masks cancel; each one's own is left.
    assert np.count_nonzero(ring_sum(sent)) == 1000


@pytest.mark.parametrize(
    ("phase", "play"),
    [
        ("roster", lambda p: p.offer_keys(["w000", "w001"]) or p.deal()),
        ("sharers", lambda p: p.offer_keys() or p.deal(["w000", "w001"]) or p.receive()),
        ("survivors", lambda p: whole(p) or p.survive(["w000", "w001"]) or p.endorse()),
        ("endorsements", lambda p: whole(p) or p.survive() or p.open(p.endorse(["w000", "w001"]))),
        ("openings", lambda p: whole(p) or p.survive() or p.recover(p.open(p.endorse(), ["w000", "w001"]))),
    ],
)
def test_fewer_than_the_threshold_end_the_attempt(phase: str, play: Callable[[Parties], object]) -> None:
    parties = Parties(a_round(5), None)
    assert parties.round.threshold == 4
    with pytest.raises((SecureRefused, BadShare), match=r"needed, got 3|must open their shares, got 3"):
        play(parties)


def whole(parties: Parties) -> None:
    """All of the first phases."""
    parties.offer_keys()
    parties.deal()
    parties.receive()
