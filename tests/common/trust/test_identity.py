"""Role and name, and the one URI that tells them."""

import pytest

from common.errors import CertificateError
from common.trust.identity import Identity, Role


@pytest.mark.parametrize("role", Role)
def test_an_identity_is_read_from_the_uri_that_it_writes(role: Role) -> None:
    identity = Identity(role, "clinic-a.example_1")
    assert identity.uri == f"fedpft://{role}/clinic-a.example_1"
    assert Identity.from_uris(["https://example.org", identity.uri]) == identity
    assert Identity.parse(str(identity)) == identity


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["https://example.org/worker/a"],
        ["fedpft://worker/a", "fedpft://admin/a"],
        ["fedpft://worker/a", "fedpft://worker/a"],
        ["fedpft://worker/"],
        ["fedpft://worker"],
        ["fedpft://owner/a"],
        ["fedpft://WORKER/a"],
        ["fedpft://worker/a/b"],
        ["fedpft://worker/a?role=admin"],
        ["fedpft://worker/../admin/a"],
        ["fedpft://worker/" + "a" * 65],
        ["fedpft://worker/a\n"],
    ],
)
def test_what_is_not_exactly_one_identity_is_none(uris: list[str]) -> None:
    with pytest.raises(CertificateError):
        Identity.from_uris(uris)
