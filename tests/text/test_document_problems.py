"""Errors of documents: none of pydantic's texts is shown, whatever it finds."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from dsv4_shard.text.document_problems import described


class Inner(BaseModel):
    name: Annotated[str, Field(max_length=3, pattern="^[a-z]+$")] = "a"


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    number: Annotated[int, Field(ge=1, lt=10)] = 1
    share: float = 1.0
    flag: bool = True
    texts: Annotated[list[str], Field(max_length=1)] = []
    table: dict[str, int] = {}
    kind: Literal["a", "b"] = "a"
    inner: Inner = Inner()
    pair: tuple[int, int] = (1, 2)
    odd: int = 1

    @field_validator("odd")
    @classmethod
    def _is_odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value


@pytest.mark.parametrize(("document", "said"), [
    ({"number": "x"}, "number: must be a whole number"), ({"number": 0}, "number: must be at least 1"),
    ({"number": 10}, "number: must be less than 10"), ({"share": "x"}, "share: must be a number"),
    ({"flag": 3}, "flag: must be true or false"), ({"texts": "x"}, "texts: must be a list"),
    ({"texts": ["a", "b"]}, "texts: has more than 1 entries"), ({"texts": [1]}, "texts.0: must be text"),
    ({"table": []}, "table: must be an object"), ({"table": {"a": None}}, "table.a: must be a whole number"),
    ({"kind": "c"}, "kind: must be 'a' or 'b'"), ({"inner": 3}, "inner: must be an object"),
    ({"inner": {"name": "abcd"}}, "inner.name: has more than 3 characters"),
    ({"inner": {"name": "A"}}, "inner.name: has another form than ^[a-z]+$"),
    ({"more": 1}, "more: is no key of this document"), ({"odd": 2}, "odd: must be odd"),
    ({"pair": [1, 2]}, "pair: must be a list"),
])  # fmt: skip
def test_a_problem_is_told_in_our_words(document: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Model.model_validate(document)
    assert described(caught.value.errors()[0]) == said
