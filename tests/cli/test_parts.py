"""What needs no process: requests, schemas, texts."""

from __future__ import annotations

from typing import Annotated, Literal

import click
import pytest
from pydantic import BaseModel, Field, TypeAdapter

from busmicro.cli.body import parse
from busmicro.cli.find import duration
from busmicro.cli.schemas import Schema
from busmicro.cli.words import clean, did_you_mean


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ([], None),
        (["{}"], {}),
        (["[1, 2]"], [1, 2]),
        (['"a=b"'], "a=b"),
        (["5"], 5),
        (["a=b=c"], {"a": "b=c"}),
        (["a=", "n:=5", "l:=[1]"], {"a": "", "n": 5, "l": [1]}),
        (["at.city=Bern", "at.zip:=3000"], {"at": {"city": "Bern", "zip": 3000}}),
    ],
)
def test_words_become_a_request(words, meant):
    """Each way to write a request means what it looks like."""
    assert parse(words) == meant


def test_field_cannot_be_value_and_object():
    """Contradicting fields are wrong usage."""
    with pytest.raises(click.UsageError, match="both a value"):
        parse(["a=1", "a.b=2"])


class Item(BaseModel):
    """Something in a list."""

    kind: Literal["big", "small"]
    count: Annotated[int, Field(ge=3)]
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5


class Order(BaseModel):
    """Something with everything."""

    id: Annotated[str, Field(min_length=3)]
    items: list[Item]
    note: str | None = None
    tags: dict[str, str] = {}
    parent: Order | None = None


def test_example_is_a_valid_message():
    """What a schema's example says passes the validation of its type."""
    adapter = TypeAdapter(Order)

    example = Schema(adapter.json_schema()).example()

    assert adapter.validate_python(example).items[0].count == 3


def test_example_of_a_type_without_end_ends():
    """A type that contains itself has an example."""

    class Tree(BaseModel):
        left: Tree
        items: list[Tree]

    assert Schema(Tree.model_json_schema()).example()


def test_fields_are_told_in_short():
    """Each field is one line: name, type, and what holds if it is left out."""
    fields = Schema(Order.model_json_schema()).fields()

    assert fields[:3] == ["id: string", "items: array of Item", "note: string or null = null"]
    assert Schema({"type": "integer"}).fields() == ["integer"]
    assert Schema(None).fields() == []


def test_text_of_others_cannot_steer_the_terminal():
    """Escape sequences in what others wrote do nothing."""
    assert clean("a\x1b[2Jb\nc") == "a\N{REPLACEMENT CHARACTER}[2Jb\nc"


def test_close_names_are_suggested():
    """Names that come close are named, others not."""
    assert did_you_mean("helo", ["hello", "other"]) == "did you mean hello?"
    assert did_you_mean("xyz", ["hello"]) == ""


@pytest.mark.parametrize(("seconds", "text"), [(3.2, "3 s"), (90, "1.5 min"), (90_000, "1.0 d")])
def test_durations_are_read_at_a_glance(seconds, text):
    """Seconds become the unit that suits them."""
    assert duration(seconds) == text
