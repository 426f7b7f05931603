"""Secure aggregation on the wire: what goes in comes out, and what breaks a bound does not come in."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fedpft.v1 import federation_pb2, secure_pb2, types_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BadMessage
from common.secagg.news import Ended, Endorsements, Roster, Said, SecureNews, Sharers, Survivors
from common.secagg.records import MOST_WORKERS, Endorsement, Kind, Opening, PublicKeys, ShareOffer
from common.secure_task import MOST_COUNTED, SecureSpec, SecureTask
from common.transport import secure_wire, wire
from common.transport.texts import one_line
from tests.common.secagg import secure_examples

NAMES = [f"w{i}" for i in range(6)]
names, digests = st.sampled_from(NAMES), st.binary(min_size=32, max_size=32)
sealed, signatures = st.binary(max_size=512), st.binary(max_size=1024)
sorted_names = st.sets(names).map(lambda found: tuple(sorted(found)))
numbers = st.integers(0, 2**31 - 1)
keys = st.builds(PublicKeys, names, digests, digests, digests, st.binary(max_size=2048), signatures)


@st.composite
def offers(draw: st.DrawFn) -> ShareOffer:
    told = draw(st.sets(names))
    return ShareOffer(
        "w0", {w: draw(sealed) for w in told}, {(w, k): draw(digests) for w in told for k in Kind}
    )


@st.composite
def sharers(draw: st.DrawFn) -> Sharers:
    told = draw(st.sets(names))
    return Sharers({w: draw(sealed) for w in told}, {w: (draw(digests), draw(digests)) for w in told})


openings = st.lists(st.builds(Opening, names, st.sampled_from(Kind), sealed), max_size=6).map(tuple)
endorsements = st.lists(st.builds(Endorsement, names, signatures), max_size=6).map(tuple)
contents = st.one_of(keys, offers(), st.builds(Endorsement, st.just("w0"), signatures), openings)
said = st.builds(Said, st.text(max_size=20), numbers, numbers, digests, contents)
told = st.one_of(
    st.builds(Roster, st.lists(keys, max_size=6).map(tuple)),
    sharers(),
    st.builds(Survivors, sorted_names),
    st.builds(Endorsements, endorsements),
    st.builds(Ended, st.text("abc ", max_size=30).map(one_line)),
)
news = st.builds(SecureNews, numbers, numbers, digests, told)


@given(said)
@settings(max_examples=60, deadline=None)
def test_what_workers_say_comes_as_it_went(one: Said) -> None:
    if isinstance(one.content, PublicKeys):
        one = replace(one, content=replace(one.content, worker="w0"))
    _, request = secure_wire.said_to_pb(one)
    again = type(request).FromString(request.SerializeToString())
    assert secure_wire.said_from_pb(again, "w0") == one


@given(news)
@settings(max_examples=60, deadline=None)
def test_news_come_as_they_went(one: SecureNews) -> None:
    message = secure_wire.news_to_pb(one).SerializeToString()
    assert wire.task_from_pb(federation_pb2.WatchTasksResponse.FromString(message)) == one


@given(st.builds(SecureSpec, numbers, st.sampled_from((32, 64)), st.booleans(), st.integers(1, MOST_COUNTED)
                 , st.booleans()))  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_what_a_run_says_comes_as_it_went(spec: SecureSpec) -> None:
    message = secure_wire.spec_to_pb(spec)
    assert message is not None and secure_wire.spec_from_pb(message) == spec


@given(st.builds(SecureTask, sorted_names, sorted_names, numbers, numbers, numbers,
                 st.floats(1e-6, 1e6), digests))  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_what_a_task_says_comes_as_it_went(task: SecureTask) -> None:
    message = secure_wire.task_to_pb(task)
    assert message is not None and secure_wire.task_from_pb(message) == task


def test_a_run_of_128_workers_fits_a_message_each_way() -> None:
    """Below 64 KiB for what a worker says, below 1 MiB for what it hears."""
    many = [f"worker-{i:03}" for i in range(MOST_WORKERS)]
    offer = ShareOffer(
        many[0], dict.fromkeys(many[1:], b"s" * 94), {(w, k): b"d" * 32 for w in many for k in Kind}
    )
    _, request = secure_wire.said_to_pb(replace(secure_examples.SAID[1], content=offer))
    assert secure_wire.said_from_pb(request, many[0]).content == offer
    assert request.ByteSize() < 64 * 1024
    roster = Roster(tuple(replace(secure_examples.KEYS, worker=w, certificate=b"c" * 1000) for w in many))
    assert secure_wire.news_to_pb(replace(secure_examples.NEWS[0], content=roster)).ByteSize() < 2**20


def changed(index: int, change: Callable[[Any], object]) -> Any:
    _, request = secure_wire.said_to_pb(secure_examples.SAID[index])
    change(request)
    return request


def with_kept(message: Any, **fields: Any) -> Any:
    for name, value in fields.items():
        setattr(message, name, value)
    return message


SPOILT: dict[str, tuple[Any, str]] = {
    "another's keys": (changed(0, lambda m: with_kept(m.keys, worker="v")), "keys of another worker than w"),
    "a short key": (changed(0, lambda m: with_kept(m.keys, mask=b"1")), "must have 32 bytes, got 1"),
    "a long certificate": (
        changed(0, lambda m: with_kept(m.keys, certificate=bytes(16 * 1024 + 1))),
        "16385 bytes, 16384 are allowed",
    ),
    "a long signature": (changed(0, lambda m: with_kept(m.keys, signature=bytes(1025))), "1024 are allowed"),
    "no context": (changed(0, lambda m: with_kept(m, context=b"")), "must have 32 bytes, got 0"),
    "no worker's name": (changed(1, lambda m: with_kept(m.shares[0], recipient="../v")), "name"),
    "a share twice": (
        changed(1, lambda m: m.shares.append(m.shares[0])),
        "two shares are for the same worker",
    ),
    "digests twice": (changed(1, lambda m: m.digests.append(m.digests[0])), "for the same worker"),
    "a large share": (changed(1, lambda m: with_kept(m.shares[0], sealed=bytes(513))), "512 are allowed"),
    "a short digest": (changed(1, lambda m: with_kept(m.digests[0], mask_key=b"")), "32 bytes, got 0"),
    "many shares": (
        changed(
            1,
            lambda m: m.shares.extend(
                secure_pb2.SealedShare(recipient=f"w{i}", sealed=b"") for i in range(MOST_WORKERS)
            ),
        ),
        "128 workers at most",
    ),
    "a large endorsement": (changed(2, lambda m: with_kept(m, signature=bytes(1025))), "1024 are allowed"),
    "many openings": (
        changed(3, lambda m: m.opened.extend([m.opened[0]] * MOST_WORKERS)),
        "128 workers at most",
    ),
    "a large opening": (changed(3, lambda m: with_kept(m.opened[0], share=bytes(513))), "512 are allowed"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_breaks_a_bound_does_not_come_in(case: str) -> None:
    request, told = SPOILT[case]
    with pytest.raises(BadMessage, match=told):
        secure_wire.said_from_pb(request, "w")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: with_kept(m, context=b"c"), "32 bytes, got 1"),
        (lambda m: m.ClearField("survivors"), "of a kind not known here; upgrade the worker"),
        (lambda m: m.survivors.workers.append("a"), "sorted, each once"),
        (lambda m: m.survivors.workers.append("w"), "sorted, each once"),
        (
            lambda m: m.survivors.workers.extend(f"x{i:04}" for i in range(MOST_WORKERS)),
            "128 workers at most",
        ),
    ],
)
def test_news_that_break_a_rule_are_refused(change: Callable[[Any], object], told: str) -> None:
    message = secure_wire.news_to_pb(secure_examples.NEWS[2])
    change(message.secure)
    with pytest.raises(BadMessage, match=told):
        wire.task_from_pb(message)


@pytest.mark.parametrize("most", [0, MOST_COUNTED + 1, 2**63])
def test_weights_that_would_leave_the_ring_are_refused(most: int) -> None:
    with pytest.raises(BadMessage, match="count 1 to 524288 of a worker, got"):
        secure_wire.spec_from_pb(types_pb2.SecureSpec(bits=64, by_examples=True, most_examples=most))


@pytest.mark.parametrize("bits", [0, 31, 128])
def test_a_ring_that_is_not_known_is_refused(bits: int) -> None:
    with pytest.raises(BadMessage, match=f"sums of {bits} bits are not known here"):
        secure_wire.spec_from_pb(types_pb2.SecureSpec(bits=bits))


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan"), float("inf")])
def test_a_clip_that_bounds_nothing_is_refused(clip: float) -> None:
    message = secure_wire.task_to_pb(secure_examples.TASK)
    assert message is not None
    message.clip = clip
    with pytest.raises(BadMessage, match="bounded by a positive number"):
        secure_wire.task_from_pb(message)
