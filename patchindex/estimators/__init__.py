"""Estimators of the posterior mean, by name, under one contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from patchindex.errors import InputError
from patchindex.estimators.auto import Auto
from patchindex.estimators.base import Estimate, Estimator, ScoreContext
from patchindex.estimators.exact import Exact
from patchindex.estimators.topk import TopK
from patchindex.exact import ScoreRequest
from patchindex.exact.engine import LARGEST_DIFFERENCE, largest_difference

__all__ = [
    "ESTIMATORS",
    "Estimate",
    "Estimator",
    "ScoreContext",
    "make_estimator",
    "options_of",
    "parse_estimator",
]

ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "exact": Exact,
    "topk": TopK,
    "auto": Auto,
}


def options_of(name: str) -> list[str]:
    """Return the names of an estimator's options.

    Examples
    --------
    >>> options_of("topk")
    ['candidates', 'probes', 'quality']
    """
    return list(inspect.signature(ESTIMATORS[name]).parameters)[1:]


def parse_estimator(text: str) -> tuple[str, dict[str, Any]]:
    """Read an estimator's name and options from `NAME` or `NAME:option=value,...`.

    Raises
    ------
    InputError
        When the name or an option is unknown, or a value is not a number.

    Examples
    --------
    >>> parse_estimator("topk:candidates=512,quality=0.9")
    ('topk', {'candidates': 512, 'quality': 0.9})
    """
    name, _, rest = text.partition(":")
    if name not in ESTIMATORS:
        known = ", ".join(ESTIMATORS)
        raise InputError(f"unknown estimator {name!r}", parameter="estimator", remedy=f"use one of {known}")
    known = ", ".join(options_of(name))
    options: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        option, _, value = (piece.strip() for piece in part.partition("="))
        if option not in options_of(name):
            raise InputError(
                f"{name} has no option {option!r}",
                parameter="estimator",
                remedy=f"its options are {known}" if known else "it has none",
            )
        try:
            options[option] = int(value) if value.lstrip("-").isdigit() else float(value)
        except ValueError:
            example = f"{name}:{option}=64"
            raise InputError(
                f"{part!r} is not option=number", parameter="estimator", remedy=f"write for example {example}"
            ) from None
    return name, options


def make_estimator(name: str, data: ScoreContext, **options: Any) -> Estimator:
    """Make an estimator by name.

    Raises
    ------
    InputError
        When the name is unknown, or an option is not one of this estimator's.
    """
    if name not in ESTIMATORS:
        raise InputError(
            f"unknown estimator {name!r}", where="estimator", remedy=f"use {' or '.join(ESTIMATORS)}"
        )
    known = options_of(name)
    for option in options:
        if option not in known:
            raise InputError(
                f"{name} has no option {option!r}",
                where="estimator",
                remedy=f"its options are {', '.join(known)}" if known else "it has none",
            )
    # FAISS takes Python's own numbers only.
    plain = {option: v.item() if isinstance(v, np.generic) else v for option, v in options.items()}
    made = ESTIMATORS[name](data, **plain)
    return made if name == "exact" else _InRange(data, made)


class _InRange:
    """An estimator as long as float32 tells patches apart, exact scores beyond.

    Codes and retrieved patches are compared by differences, whose rounding grows with their squares.
    """

    def __init__(self, data: ScoreContext, inside: Estimator) -> None:
        self._data, self._inside, self._exact = data, inside, Exact(data)

    def __call__(self, request: ScoreRequest) -> Estimate:
        """Estimate by the one or the other."""
        beyond = largest_difference(request) > LARGEST_DIFFERENCE
        return (self._exact if beyond else self._inside)(request)
