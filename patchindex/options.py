"""Texts such as `topk:candidates=512`: a name in a table of factories, and options of that factory."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from patchindex.errors import InputError

__all__ = ["plain_options", "read_text"]

TYPES: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}
EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
EXAMPLES = {bool: "true", int: "64", float: "0.5", str: "NAME"}
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def plain_options(factory: Callable[..., Any]) -> dict[str, type]:
    """Return the options of a factory that a text can give: the parameters of type bool, int, float or str.

    The type is the annotation (also with `| None`), or else the type of the default value.

    Examples
    --------
    >>> def blur(image, width: int | None = None, *, strength=0.5, window: list | None = None): ...
    >>> plain_options(blur)
    {'width': <class 'int'>, 'strength': <class 'float'>}
    """
    found = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        written = parameter.annotation
        if written is inspect.Parameter.empty:
            written = type(parameter.default)
        # Texts are not evaluated: the names in an annotation may exist for type checkers only.
        text = written if isinstance(written, str) else inspect.formatannotation(written)
        plain = re.fullmatch(r"(\w+)( \| None)?", text)
        if plain is not None and plain[1] in TYPES:
            found[name] = TYPES[plain[1]]
    return found


def read_text(
    text: str,
    table: Mapping[str, Callable[..., Any]],
    *,
    parameter: str,
    entry: str | None = None,
    hidden: Collection[str] = (),
) -> tuple[str, dict[str, Any]]:
    """Read a name, in upper or lower case, and options.

    Parameters
    ----------
    text : str
        `NAME` or `NAME:OPTION=VALUE,...`.
    table : dict
        Factories by name.
    parameter : str
        The parameter that the text comes from, for errors.
    entry : str, optional
        The word for an entry of the table, for errors; by default `parameter`.
    hidden : collection of str
        Parameters of factories that a text may not give.

    Returns
    -------
    tuple of str and dict
        The table's spelling of the name, and the options.

    Raises
    ------
    InputError
        When the name or an option is unknown, an option is given twice, or a value has the wrong type.

    Examples
    --------
    >>> def blur(image, width: int = 3, *, strength: float = 0.5): ...
    >>> read_text("Blur:strength=2", {"blur": blur}, parameter="filter")
    ('blur', {'strength': 2.0})
    """
    given, _, rest = text.partition(":")
    name = next((known for known in table if known.lower() == given.strip().lower()), None)
    if name is None:
        remedy = f"use one of {', '.join(table)}"
        raise InputError(f"unknown {entry or parameter} {given!r}", parameter=parameter, remedy=remedy)
    known = {option: t for option, t in plain_options(table[name]).items() if option not in hidden}
    options: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if option not in known:
            remedy = f"its options are {', '.join(known)}" if known else "it has none"
            raise InputError(f"{name} has no option {option!r}", parameter=parameter, remedy=remedy)
        if option in options:
            raise InputError(f"{option} is given twice", parameter=parameter, remedy="give it once")
        if not equals:
            what, remedy = f"{part!r} has no value", f"write {name}:{option}=VALUE"
            raise InputError(what, parameter=parameter, remedy=remedy)
        options[option] = _value(value, known[option], option, parameter)
    return name, options


def _value(text: str, kind: type, option: str, parameter: str) -> Any:
    try:
        value = WORDS[text.lower()] if kind is bool else kind(text)
        if kind is not float or math.isfinite(value):
            return value
    except (KeyError, ValueError):
        pass
    raise InputError(
        f"{option} must be {EXPECTED[kind]}, got {text!r}",
        parameter=parameter,
        remedy=f"write for example {option}={EXAMPLES[kind]}",
    )
