"""Protobuf's enums → ours."""

from enum import StrEnum
from typing import TypeVar

from common.errors import BadMessage

Member = TypeVar("Member", bound=StrEnum)


def enum_from_pb(kind: type[Member], pb_enum: object, prefix: str, number: int) -> Member:
    """The member of ours that a protobuf enum's number stands for. Raises BadMessage."""
    try:
        label: str = pb_enum.Name(number)  # type: ignore[attr-defined]
        return kind[label.removeprefix(prefix)]
    except (ValueError, KeyError):
        raise BadMessage(f"{kind.__name__} {number} is not known; upgrade this side") from None
