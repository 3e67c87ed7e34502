"""What `verify` finds."""

from pydantic import BaseModel, ConfigDict


class Problem(BaseModel):
    """Something that is not as it should be. `tensor` is None for what concerns a whole file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    file: str
    message: str
    tensor: str | None = None
