"""A worker's secrets; what two workers share by X25519 and HKDF-SHA256; AES-256-GCM between them."""

import secrets
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.secagg.encoding import framed, hashed, number, pack, unframed
from common.secagg.records import KEY_BYTES

_NONCE_BYTES, _TAG_BYTES = 12, 16
SEALED_MORE_BYTES = _NONCE_BYTES + _TAG_BYTES

_SECRETS = "secrets"

# A private key for one question only: whether a public key is one that any private key could be used with.
_PROBE = X25519PrivateKey.from_private_bytes(bytes(31) + b"\x40")


@dataclass(frozen=True)
class Secrets:
    """A worker's secrets for one attempt: private X25519 keys c and s, and the seed b; 32 bytes each."""

    channel: bytes = field(repr=False)
    mask: bytes = field(repr=False)
    self_seed: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> "Secrets":
        """New ones, by the operating system's randomness."""
        channel, mask = (X25519PrivateKey.generate().private_bytes_raw() for _ in range(2))
        return cls(channel, mask, secrets.token_bytes(KEY_BYTES))

    def to_bytes(self) -> bytes:
        """As a file's content, for the worker's own disk."""
        return framed(_SECRETS, self.channel, self.mask, self.self_seed)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Secrets":
        """What `to_bytes` gave. Raises SecureRefused."""
        return cls(*unframed(_SECRETS, data, 3))


@dataclass(frozen=True)
class Side:
    """One of two workers: its place among those drawn, and its public key."""

    place: int
    public: bytes


def public(private: bytes) -> bytes:
    """The X25519 public key of a private one. Raises ValueError."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def require_usable(public: bytes) -> None:
    """Raise ValueError for what is no X25519 key, or one with which all would agree on zero."""
    _PROBE.exchange(X25519PublicKey.from_public_bytes(public))


def commitment(self_seed: bytes) -> bytes:
    """H("b"‖b)."""
    return hashed("b", self_seed)


def shared(purpose: str, private: bytes, mine: Side, theirs: Side, context: bytes) -> bytes:
    """The 32 bytes that two workers share for a purpose in a round; the same from either's view.

    Both public keys go in, as RFC 7748 section 6.1 advises. Raises ValueError where the other's key is no
    X25519 key, or makes everybody agree on zero.
    """
    secret = X25519PrivateKey.from_private_bytes(private).exchange(
        X25519PublicKey.from_public_bytes(theirs.public)
    )
    low, high = sorted((mine, theirs), key=lambda side: side.place)
    return derived(secret, context, purpose, number(low.place), number(high.place), low.public, high.public)


def derived(secret: bytes, context: bytes, purpose: str, *info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) with the round's context as salt: 32 bytes for one purpose."""
    told = pack(purpose.encode(), *info)
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=context, info=told).derive(secret)


def seal(key: bytes, content: bytes, about: bytes) -> bytes:
    """AES-256-GCM: nonce, ciphertext and tag; `about` is bound to it, not sent.

    The nonce is random: a worker that died before it sent its shares deals others under the same key.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, content, about)


def unseal(key: bytes, sealed: bytes, about: bytes) -> bytes:
    """What was sealed. Raises ValueError when it was changed, or sealed by another key or about another."""
    if len(sealed) < SEALED_MORE_BYTES:
        raise ValueError(f"a sealed message has {SEALED_MORE_BYTES} bytes and more, got {len(sealed)}")
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], about)
    except InvalidTag:
        raise ValueError("it does not decrypt") from None
