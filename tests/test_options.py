"""Texts such as NAME:OPTION=VALUE: types from signatures, and errors in one line."""

from __future__ import annotations

import pytest

from patchindex.errors import InputError
from patchindex.options import plain_options, read_text


def draw(
    source: object,
    count: int | None = None,
    *,
    width: float = 1.0,
    round_ends: bool = False,
    style: str = "plain",
    untyped=3,
    points: list[int] | None = None,
    shared: int = 0,
    **more: object,
) -> None: ...


TABLE = {"Draw": draw, "nothing": lambda source: None}


def read(text):
    return read_text(text, TABLE, parameter="tool", hidden={"shared"})


def test_options_are_the_plain_parameters():
    types = {"count": int, "width": float, "round_ends": bool, "style": str, "untyped": int, "shared": int}
    assert plain_options(draw) == types


def test_options_of_a_class_are_those_of_its_constructor():
    class Tool:
        def __init__(self, source, *, size: int = 3):
            pass

    assert plain_options(Tool) == {"size": int}


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("Draw", {}),
        ("draw:", {}),
        (" DRAW : count = 3 , width=2", {"count": 3, "width": 2.0}),
        ("draw:width=1e-3,style=dotted", {"width": 0.001, "style": "dotted"}),
        ("draw:round_ends=true,untyped=-4", {"round_ends": True, "untyped": -4}),
        ("draw:round_ends=No", {"round_ends": False}),
    ],
)
def test_values_have_the_type_of_the_parameter(text, options):
    name, found = read(text)
    assert name == "Draw"
    assert found == options
    assert [type(value) for value in found.values()] == [type(value) for value in options.values()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paint", "tool: unknown tool 'paint'; use one of Draw, nothing"),
        ("", "tool: unknown tool ''; use one of Draw, nothing"),
        ("nothing:count=3", "tool: nothing has no option 'count'; it has none"),
        ("draw:points=3", "tool: Draw has no option 'points'; its options are count, width, round_ends, "),
        ("draw:shared=3", "tool: Draw has no option 'shared'; "),
        ("draw:more=3", "tool: Draw has no option 'more'; "),
        ("draw:count", "tool: 'count' has no value; write Draw:count=VALUE"),
        ("draw:count=2.5", "tool: count must be a whole number, got '2.5'; write for example count=64"),
        ("draw:count=", "tool: count must be a whole number, got ''"),
        ("draw:width=nan", "tool: width must be a number, got 'nan'"),
        ("draw:width=inf", "tool: width must be a number, got 'inf'"),
        ("draw:round_ends=2", "tool: round_ends must be true or false, got '2'"),
        ("draw:count=1,count=2", "tool: count is given twice; give it once"),
    ],
)
def test_errors_say_what_to_do(text, message):
    with pytest.raises(InputError) as error:
        read(text)
    assert str(error.value).startswith(message)
