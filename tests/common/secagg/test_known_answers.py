"""The primitives give what standards and pencil say; what is agreed on by hash stays as it is."""

import contextlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from common.secagg import context, encoding, keys, masks, shamir
from common.secagg.records import Mask, SecureRound, VectorSpec
from tests.common.secagg.parties import a_round, flipped

h = bytes.fromhex


# Standards, through the library's calls as they are made here.


def test_hkdf_is_that_of_rfc_5869() -> None:
    # Test case 1, cut to the 32 bytes that are asked for here.
    made = HKDF(
        algorithm=hashes.SHA256(),
        length=32,
        salt=h("000102030405060708090a0b0c"),
        info=h("f0f1f2f3f4f5f6f7f8f9"),
    ).derive(h("0b" * 22))
    assert made == h("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf")
    # And what is derived here is that, of the same parts.
    info = encoding.pack(b"self", b"more")
    own = HKDF(algorithm=hashes.SHA256(), length=32, salt=b"c" * 32, info=info).derive(b"s" * 32)
    assert keys.derived(b"s" * 32, b"c" * 32, "self", b"more") == own


def test_gcm_is_that_of_nist() -> None:
    # The GCM specification (McGrew and Viega), test case 16.
    key = h("feffe9928665731c6d6a8f9467308308" * 2)
    nonce = h("cafebabefacedbaddecaf888")
    plain = h(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
        "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
    )
    about = h("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    sealed = nonce + h(
        "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa"
        "8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"
        "76fc6ece0f4e1768cddf8853bb2d551b"
    )
    assert keys.unseal(key, sealed, about) == plain
    assert AESGCM(key).encrypt(nonce, plain, about) == sealed[12:]
    for at in range(len(sealed)):
        with pytest.raises(ValueError, match="does not decrypt"):
            keys.unseal(key, flipped(sealed, at), about)
    with pytest.raises(ValueError, match="does not decrypt"):
        keys.unseal(key, sealed, about + b"\0")
    with pytest.raises(ValueError, match="28 bytes and more"):
        keys.unseal(key, sealed[:27], about)


def test_streams_are_aes_256_in_counter_mode() -> None:
    # SP 800-38A, F.5.5: from its counter on, the first block of the stream is output ⊕ plain text.
    key = h("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    counter = int.from_bytes(h("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"), "big")
    stream = masks._stream(key, counter)
    plain = h("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51")
    expected = h("601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5")
    assert stream.update(plain) == expected


def test_x25519_is_that_of_rfc_7748() -> None:
    # Section 6.1: Bob's keys, Alice's public one, what they share.
    bob = h("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    alice = h("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    both = h("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    public = keys.public(bob)
    assert public == h("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    ctx, mine, theirs = bytes(32), keys.Side(7, public), keys.Side(2, alice)
    info = (encoding.number(2), encoding.number(7), alice, public)
    assert keys.shared("pair", bob, mine, theirs, ctx) == keys.derived(both, ctx, "pair", *info)


# RFC 7748 and "May the Fourth Be With You" (Cremers and Jackson 2019): points of low order.
LOW = [
    bytes(32),
    b"\1" + bytes(31),
    h("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    h("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    h("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    h("edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    h("eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


@pytest.mark.parametrize("point", [*LOW, b"", bytes(31), b"\x09" * 33])
def test_a_key_with_which_all_agree_on_zero_is_refused(point: bytes) -> None:
    with pytest.raises(ValueError):
        keys.require_usable(point)
    secrets = keys.Secrets.generate()
    mine = keys.Side(1, keys.public(secrets.mask))
    with pytest.raises(ValueError):
        keys.shared("pair", secrets.mask, mine, keys.Side(2, point), bytes(32))


def test_two_workers_share_a_key_for_each_purpose_and_round() -> None:
    a, b = keys.Secrets.generate(), keys.Secrets.generate()
    one, two = keys.Side(1, keys.public(a.mask)), keys.Side(2, keys.public(b.mask))
    made = {
        keys.shared(purpose, a.mask, one, two, ctx)
        for purpose in ("pair", "share")
        for ctx in (bytes(32), b"c" * 32)
    }
    assert len(made) == 4
    assert keys.shared("pair", b.mask, two, one, bytes(32)) in made


# Shamir.


def test_the_prime_is_one_and_the_least_above_256_bits() -> None:
    def probably_prime(n: int) -> bool:
        return all(pow(base, n - 1, n) == 1 for base in (2, 3, 5, 7, 11, 13, 17, 19, 23))

    assert [n for n in range(2**256, shamir.PRIME + 1) if n % 2 and probably_prime(n)] == [shamir.PRIME]


def test_shares_are_those_computed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # f(x) = 5 + 3x + 2x²: f(1) = 10, f(2) = 19, f(3) = 32, f(4) = 49.
    drawn = iter([3, 2])
    monkeypatch.setattr("secrets.randbelow", lambda below: next(drawn))
    secret = (5).to_bytes(32, "big")
    shares = shamir.split(secret, 3, 4)
    assert [int.from_bytes(share, "big") for share in shares] == [10, 19, 32, 49]
    assert {len(share) for share in shares} == {33}
    # Lagrange at 0 for 1, 2, 4: 8/3, -2, 1/3; 10·8/3 - 19·2 + 49/3 = 5.
    third = pow(3, -1, shamir.PRIME)
    weights = shamir.weights([1, 2, 4])
    assert weights == {1: 8 * third % shamir.PRIME, 2: shamir.PRIME - 2, 4: third}
    assert shamir.combine({1: shares[0], 2: shares[1], 4: shares[3]}, weights) == secret


@settings(max_examples=25, deadline=None)
@given(
    st.binary(min_size=32, max_size=32) | st.sampled_from([bytes(32), b"\xff" * 32]),
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))),
    st.randoms(use_true_random=False),
)
def test_any_threshold_of_shares_give_the_secret_and_fewer_another(
    secret: bytes, sizes: tuple[int, int], random: object
) -> None:
    threshold, n = sizes
    shares = dict(enumerate(shamir.split(secret, threshold, n), 1))
    places = random.sample(sorted(shares), threshold)  # type: ignore[attr-defined]
    some = {place: shares[place] for place in places}
    assert shamir.combine(some, shamir.weights(places)) == secret
    if threshold > 1:
        del some[places[0]]
        # What comes out may be above 2^256, and no secret at all.
        with contextlib.suppress(ValueError):
            assert shamir.combine(some, shamir.weights(some)) != secret


def test_what_are_no_shares_is_refused() -> None:
    shares = shamir.split(b"s" * 32, 2, 3)
    weights = shamir.weights([1, 2])
    for wrong in (b"", shares[0][1:], shamir.PRIME.to_bytes(33, "big"), b"\xff" * 33):
        with pytest.raises(ValueError, match="no element of the field"):
            shamir.combine({1: wrong, 2: shares[1]}, weights)
    with pytest.raises(ValueError, match="of places"):
        shamir.combine({1: shares[0], 3: shares[2]}, weights)
    for places in ([1, 1], [0, 1], [shamir.PRIME, 1]):
        with pytest.raises(ValueError, match="different places"):
            shamir.weights(places)
    for secret, threshold, n in ((b"s" * 31, 2, 3), (b"s" * 33, 2, 3), (b"s" * 32, 0, 3), (b"s" * 32, 4, 3)):
        with pytest.raises(ValueError, match="shares of a secret"):
            shamir.split(secret, threshold, n)
    # A constant polynomial of 2^256: an element, but of no 32 bytes.
    above = (2**256).to_bytes(33, "big")
    with pytest.raises(ValueError, match="no secret of 32 bytes"):
        shamir.combine({1: above, 2: above}, weights)


# Masks.


def stream(mask: Mask, size: int, kind: type[np.unsignedinteger]) -> np.ndarray:
    array = np.zeros(size, kind)
    masks.add(array, mask, "v", b"c" * 32)
    return array


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
def test_a_masks_first_elements_stay_what_they_are(kind: type[np.unsignedinteger]) -> None:
    # By openssl enc -aes-256-ctr on zeros, with a key by HMAC alone.
    made = stream(Mask(b"m" * 32, 1), 4, kind)
    assert made.astype(made.dtype.newbyteorder("<")).tobytes()[:12].hex() == "b23a8f9d9032e821fa569240"


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([np.uint32, np.uint64]),
    st.lists(st.integers(0, 40_000), max_size=4),
    st.sampled_from([1, -1]),
    st.randoms(use_true_random=False),
)
def test_windows_in_any_order_are_the_whole(
    kind: type[np.unsignedinteger], sizes: list[int], sign: int, random: object
) -> None:
    bounds = np.cumsum([0, *sizes])
    plain = np.arange(bounds[-1], dtype=kind) * kind(0x9E3779B1)
    whole, pieces = plain.copy(), plain.copy()
    mask = Mask(b"m" * 32, sign)
    masks.add(whole, mask, "v", b"c" * 32)
    windows = list(pairwise(bounds))
    random.shuffle(windows)  # type: ignore[attr-defined]
    for start, end in windows:
        masks.add_window(pieces[start:end], mask, "v", b"c" * 32, int(start))
    assert whole.tobytes() == pieces.tobytes()
    masks.add(whole, Mask(mask.seed, -sign), "v", b"c" * 32)
    assert whole.tobytes() == plain.tobytes()


def test_each_seed_vector_and_context_has_a_stream_of_its_own() -> None:
    made = set()
    for seed, vector, ctx in ((b"m", "v", b"c"), (b"n", "v", b"c"), (b"m", "w", b"c"), (b"m", "v", b"d")):
        array = np.zeros(4, np.uint64)
        masks.add(array, Mask(seed * 32, 1), vector, ctx * 32)
        made.add(array.tobytes())
    assert len(made) == 4


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(4, np.int32),
        np.zeros(4),
        np.zeros((4, 4), np.uint32)[:, :2],
        np.zeros(4, np.uint32)[::2],
        np.uint32(1),
    ],
)
def test_what_a_mask_would_be_lost_on_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="contiguous arrays"):
        masks.add(array, Mask(bytes(32), 1), "v", bytes(32))


@pytest.mark.parametrize(("sign", "start"), [(0, 0), (2, 0), (1, -1)])
def test_signs_and_windows_are_checked(sign: int, start: int) -> None:
    with pytest.raises(ValueError, match="sign must be"):
        masks.add_window(np.zeros(4, np.uint32), Mask(bytes(32), sign), "v", bytes(32), start)


# The context.

GOLDEN = a_round(
    5,
    vectors=(VectorSpec("delta", (2, 3), 32), VectorSpec("counts", (), 64)),
    step=2.0**-20,
    by_examples=True,
)


def test_the_context_stays_what_it_is() -> None:
    # Workers of different versions must agree on it: another value is another VERSION.
    assert context.digest(GOLDEN).hex() == "82fa702c2da5605455078226566a68e2197627c2b14c795470eda71afb283f17"


CHANGES = [
    {"run_id": "run2"},
    {"run_digest": b"R" * 32},
    {"task_digest": b"T" * 32},
    {"round": 2},
    {"attempt": 2},
    {"drawn": GOLDEN.drawn[:4], "threshold": 4},
    {"electorate": (*GOLDEN.drawn, "x")},
    {"colluding": 0},
    {"threshold": 5, "minimum": 5},
    {"minimum": 5},
    {"clip": 16.0},
    {"step": 2.0**-21},
    {"by_examples": False},
    {"most_examples": 65535},
    {"vectors": GOLDEN.vectors[:1]},
    {"vectors": GOLDEN.vectors[::-1]},
    {"vectors": (VectorSpec("delta", (3, 2), 32), GOLDEN.vectors[1])},
    {"vectors": (VectorSpec("delta", (6,), 32), GOLDEN.vectors[1])},
    {"vectors": (VectorSpec("delta", (2, 3), 64), GOLDEN.vectors[1])},
    {"vectors": (VectorSpec("delt", (2, 3), 32), GOLDEN.vectors[1])},
]


def test_whatever_is_told_otherwise_makes_another_context() -> None:
    assert {key for change in CHANGES for key in change} == set(SecureRound.__dataclass_fields__)
    made = {context.digest(replace(GOLDEN, **change)) for change in CHANGES}  # type: ignore[arg-type]
    assert len(made) == len(CHANGES)
    assert context.digest(GOLDEN) not in made


@settings(max_examples=25, deadline=None)
@given(st.lists(st.binary(max_size=5), max_size=4), st.lists(st.binary(max_size=5), max_size=4))
def test_packed_parts_mean_one_thing(a: list[bytes], b: list[bytes]) -> None:
    assert (encoding.pack(*a) == encoding.pack(*b)) is (a == b)
    assert list(encoding.unpack(encoding.pack(*a))) == a


@pytest.mark.parametrize("data", [b"\0", b"\0\0\0\1", b"\0\0\0\0\0"])
def test_packed_parts_that_end_early_are_no_parts(data: bytes) -> None:
    with pytest.raises(ValueError, match="end within a part"):
        encoding.unpack(data)


# How many must agree.


@pytest.mark.parametrize(
    ("n", "colluding", "threshold"), [(3, 0, 2), (5, 1, 4), (10, 3, 7), (100, 33, 67), (128, 42, 86)]
)
def test_the_threshold_is_above_two_thirds(n: int, colluding: int, threshold: int) -> None:
    assert context.default_colluding(n) == colluding
    assert context.threshold(n, colluding) == threshold


@settings(max_examples=25, deadline=None)
@given(st.integers(3, 128), st.data())
def test_the_threshold_is_the_least_that_keeps_one_secret_closed(n: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(0, n - 1))
    t = context.threshold(n, c)
    assert 2 * t > n + c >= 2 * (t - 1)
    among = data.draw(st.integers(n, 2 * n))
    earlier = data.draw(st.lists(st.integers(1, n), max_size=3))
    later = context.threshold(n, c, among, earlier)
    assert later >= t
    assert all(context.electorates_ok((before, later), among, c) for before in earlier)
    if later > t:
        assert not all(context.electorates_ok((before, later - 1), among, c) for before in earlier)
