"""Messages of errors: one line, without characters that a terminal would obey."""

from pathlib import Path

import pytest

from patchindex.errors import InputError, PatchIndexWarning, printable

ESCAPE = "\x1b]0;owned\x07"  # sets the title of a terminal's window
OVERRIDE = "\u202egnp.exe"  # turns the direction of what follows


@pytest.mark.parametrize("outside", [ESCAPE, OVERRIDE, "a\rb", "\x9b2J", "a\nb", "\udc80", "\u2028"])
def test_text_from_outside_is_escaped_in_messages(outside):
    for error in (
        InputError("is missing", where=Path(outside)),
        InputError(f"cannot be read ({outside})", where="s.zarr"),
        InputError("exists", where="s.zarr", remedy=f"use {outside}2"),
        PatchIndexWarning(outside, parameter="labels"),
    ):
        assert str(error).isprintable()
        str(error).encode()  # lone surrogates cannot be encoded


def test_plain_text_stays_as_it_is():
    for text in ("", "größe 3 × 3", "模型.zarr", "a b", "\\x1b"):
        assert printable(text) == text


def test_lines_of_another_library_are_joined():
    assert (
        str(InputError("cannot be read (first\n  second)", where="x")) == "x: cannot be read (first second)"
    )
