"""What every key of the configuration says of itself: meaning, unit, source, default and bounds."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MBPO = "MBPO released code (jannerm/mbpo)"
RELEASED = "USB-PO released code"
SOFTLEARNING = "softlearning's SAC as used by MBPO"
CMLO = "CMLO (arXiv 2210.08349)"
OURS = "ours"

MOST = 1_000_000_000
"""Of whatever a key counts: beyond every machine, and far below what arithmetic on it can no longer hold."""


def key(description: str, unit: str, source: str, default: Any = ..., **bounds: Any) -> Any:
    """A configuration key with what every key must say of itself."""
    return Field(default=default, description=description, json_schema_extra={"unit": unit, "source": source}, **bounds)


class Section(BaseModel):
    """A part of the configuration: unknown keys and wrong types are errors, infinities too."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
