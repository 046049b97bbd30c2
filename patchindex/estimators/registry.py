"""Estimators and their options by name, from Python and from the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypedDict, Unpack, cast

import numpy as np

from patchindex.checks import is_name_in
from patchindex.errors import InputError
from patchindex.estimators.auto import Auto
from patchindex.estimators.base import Estimator, ScoreContext
from patchindex.estimators.exact import Exact
from patchindex.estimators.policy import DEFAULT_POLICY, AutoPolicy
from patchindex.estimators.sampled import SampledAuto
from patchindex.estimators.topk import TopK
from patchindex.options import read_text

__all__ = ["ESTIMATORS", "EstimatorOptions", "make_estimator", "parse_estimator"]


def make_auto(
    context: ScoreContext,
    tolerance: float = 0.01,
    probes: int | None = None,
    candidates: int | None = None,
    policy: AutoPolicy = DEFAULT_POLICY,
    engine: str | None = None,
) -> Estimator:
    """Make `auto`: `Auto` for an index on the CPU, else `SampledAuto`.

    A near field comes from the CPU, and takes longer there than an exact scan of as many images on a GPU. So
    `auto` on a GPU, or by a named engine, uses the images of an index and not its lists.

    Raises
    ------
    InputError, DeviceError
        As from `Auto` and `SampledAuto`, and when there are probes, candidates or a policy and no near field.
    """
    indexed = context.index is not None and bool(context.index.scales)
    if indexed and context.device.type == "cpu" and engine is None:
        return Auto(context, tolerance, probes, candidates, policy)
    given = {
        "probes": probes,
        "candidates": candidates,
        "policy": None if policy == DEFAULT_POLICY else policy,
    }
    for name, value in given.items():
        if value is not None:
            raise InputError(
                "applies to an index on the CPU only: here, auto has no near field",
                parameter=name,
                remedy="leave it out",
            )
    return SampledAuto(context, tolerance, engine)


ESTIMATORS: dict[str, Callable[..., Estimator]] = {"exact": Exact, "topk": TopK, "auto": make_auto}


class EstimatorOptions(TypedDict, total=False):
    """Options of all estimators, for type checkers. Each estimator describes its own."""

    engine: str | None
    tolerance: float
    probes: int | None
    candidates: int
    quality: float | None
    policy: AutoPolicy


def _options_of(name: str) -> list[str]:
    return list(inspect.signature(ESTIMATORS[name]).parameters)[1:]


def parse_estimator(text: str) -> tuple[str, EstimatorOptions]:
    """Read an estimator's name and options.

    >>> parse_estimator("topk:candidates=512,quality=0.9")
    ('topk', {'candidates': 512, 'quality': 0.9})
    """
    name, options = read_text(text, ESTIMATORS, parameter="estimator")
    return name, cast(EstimatorOptions, options)


def make_estimator(name: str, context: ScoreContext, **options: Unpack[EstimatorOptions]) -> Estimator:
    """Make an estimator by name.

    Parameters
    ----------
    name : str
        One of `ESTIMATORS`: `"exact"`, `"topk"` or `"auto"`.
    context : ScoreContext
        The index, the device and the scans of a machine.
    **options
        Options of the estimator: `tolerance`, `candidates`, ...

    Returns
    -------
    Estimator
        A function from a `ScoreRequest` to an `Estimate`.

    Raises
    ------
    InputError
        When the name or an option is unknown, an option is out of range, or there is no index and the
        estimator needs one.
    DeviceError
        When the engine or FAISS cannot run on the device.

    Examples
    --------
    >>> import torch
    >>> from patchindex.exact import ScoreRequest
    >>> from patchindex.geometry import Geometry
    >>> from patchindex.images.by_label import TrainingImages
    >>> estimator = make_estimator("exact", ScoreContext(None, torch.device("cpu")))
    >>> training = TrainingImages(np.arange(6 * 25, dtype=np.uint8).reshape(6, 5, 5))
    >>> estimator(ScoreRequest(training, Geometry.of("LS", 3, (5, 5)), torch.zeros(1, 1, 5, 5), 0.5))
    Estimate(1 image of 1 x 5 x 5: exact, 25 of 25 pixels exact, 6 patches per pixel)
    """
    _check_name(name)
    for option in options:
        _check_option(name, option, _options_of(name))
    # FAISS takes Python's own numbers only.
    plain = {option: v.item() if isinstance(v, np.generic) else v for option, v in options.items()}
    return ESTIMATORS[name](context, **plain)


def _check_name(name: str) -> None:
    if not is_name_in(name, ESTIMATORS):
        known = ", ".join(ESTIMATORS)
        raise InputError(f"unknown estimator {name!r}", parameter="estimator", remedy=f"use one of {known}")


def _check_option(name: str, option: str, known: list[str]) -> None:
    if option not in known:
        remedy = f"its options are {', '.join(known)}" if known else "it has none"
        raise InputError(f"{name} has no option {option!r}", parameter="estimator", remedy=remedy)
