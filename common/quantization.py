"""What a sub-FM's frozen weights may be held in."""

from enum import StrEnum


class Quantization(StrEnum):
    """What they are sent in, and held in by workers: as they are, or as int8."""

    NONE = "none"
    INT8 = "int8"
