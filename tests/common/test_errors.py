"""Errors tell apart what the user got wrong, what a run came to, and what a peer did."""

import pytest

from common import errors
from common.errors import FedPftError, ModelError, UnsupportedFamily

DOMAIN = [kind for kind in vars(errors).values() if isinstance(kind, type)]


@pytest.mark.parametrize("kind", DOMAIN)
def test_every_error_is_a_domain_error_that_says_for_what(kind: type[Exception]) -> None:
    assert issubclass(kind, FedPftError)
    assert kind.__doc__


def test_an_unsupported_family_is_caught_where_model_errors_are() -> None:
    with pytest.raises(ModelError):
        raise UnsupportedFamily("model family 'gpt' is not supported")
