"""What all tables of run.toml have in common.

The descriptions below each key are the only place where it is explained: `fedpft init` and
docs/configuration.md are made from them.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
# Workers are told: messages hold numbers of 32 bits.
Sent = Annotated[int, Field(ge=1, lt=2**32)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
