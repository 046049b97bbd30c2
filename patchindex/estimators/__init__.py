"""Estimators of the posterior mean, by name, under one contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from patchindex.errors import InputError
from patchindex.estimators.auto import Auto
from patchindex.estimators.base import Data, Estimate, Estimator, Query, Trail
from patchindex.estimators.exact import Exact
from patchindex.estimators.priority import Priority
from patchindex.estimators.topk import TopK

__all__ = ["ESTIMATORS", "Data", "Estimate", "Estimator", "Query", "Trail", "make_estimator", "options_of"]

ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "exact": Exact,
    "topk": TopK,
    "priority": Priority,
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


def make_estimator(name: str, data: Data, **options: Any) -> Estimator:
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
    return ESTIMATORS[name](data, **options)
