"""What all sections of a config document share: frozen, and a key that is not known is an error."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the config: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
