"""Time grids of samplers: descending times, from noise to data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

from patchindex.checks import check_least, is_name_in
from patchindex.errors import InputError
from patchindex.schedules import NoiseSchedule, time_of
from patchindex.schedules.frames import beta_of_sigma, sigma_of

__all__ = ["SPACINGS", "Steps", "time_grid"]

Steps = int | Sequence[float]

ENDS = (0.999, 0.001)  # times of the first and the last noise level, of a grid that is spaced by sigma
MOST_STEPS = 1_000_000  # a larger number is a typing mistake, or comes from a damaged file
RHO = 7.0  # of Karras et al.


def _karras(share: float, high: float, low: float) -> float:
    return (high ** (1 / RHO) + share * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO


def _log_snr(share: float, high: float, low: float) -> float:
    return high ** (1 - share) * low**share


# Functions from the share of the steps to sigma, given sigma at both ends. `None`: spaced by time.
SPACINGS: dict[str, Callable[[float, float, float], float] | None] = {
    "uniform": None,
    "karras": _karras,
    "log-snr": _log_snr,
}


def time_grid(steps: Steps, noise: NoiseSchedule, spacing: str = "uniform") -> list[float]:
    """Return the times of a sampler, descending.

    The last one is 0, the time of the data, unless the times themselves are given.

    Parameters
    ----------
    steps : int, or sequence of float
        Number of grid points, from 2 to 1 000 000; a sampler takes one step fewer. Or the times themselves,
        descending, in [0, 1).
    noise : callable
        The noise schedule, from t to beta.
    spacing : str
        `"uniform"`: `(steps - 1) / steps, ..., 1 / steps, 0`, the grid of the paper's code. Others space
        `sigma = sqrt(beta / (1 - beta))` between the times 0.999 and 0.001, and add 0: `"karras"` has equal
        steps of sigma^(1/7) (Karras et al., arXiv 2206.00364), `"log-snr"` of log sigma. A schedule with few
        noise levels has the same time for several sigma; such a time is in the grid once.

    Raises
    ------
    InputError
        When the number of steps, the spacing or the times make no sense; or when the grid is spaced by sigma,
        and `noise` gives no beta in (0, 1) at the times 0.999 and 0.001.

    Examples
    --------
    >>> from patchindex.schedules import cosine
    >>> time_grid(4, cosine)
    [0.75, 0.5, 0.25, 0.0]
    >>> [round(t, 3) for t in time_grid(4, cosine, "karras")]
    [0.999, 0.733, 0.001, 0.0]
    """
    if not is_name_in(spacing, SPACINGS):
        raise InputError(
            f"unknown spacing {spacing!r}", parameter="spacing", remedy=f"use {', '.join(SPACINGS)}"
        )
    if isinstance(steps, Sequence) and not isinstance(steps, str):
        return _checked(steps)
    check_least(steps=(steps, 2))
    if steps > MOST_STEPS:
        raise InputError(f"must be at most {MOST_STEPS:,}, got {steps}", parameter="steps", remedy="use 20")
    steps, spaced = int(steps), SPACINGS[spacing]
    if spaced is None:
        return [i / steps for i in range(steps - 1, -1, -1)]
    high, low = (_sigma_at(t, noise) for t in ENDS)
    levels = [spaced(i / max(steps - 2, 1), high, low) for i in range(steps - 1)]
    times = [1.0]
    for t in (time_of(noise, beta_of_sigma(sigma)) for sigma in levels):
        if t < times[-1]:
            times.append(t)
    return [*times[1:], 0.0]


def _sigma_at(t: float, noise: NoiseSchedule) -> float:
    beta = noise(t)
    if not 0 < beta < 1:  # 1, noise alone, has no sigma
        raise InputError(
            f"gives beta = {beta} at t = {t}, an end of the grid",
            parameter="noise",
            remedy="give beta in (0, 1), or use the spacing uniform",
        )
    return sigma_of(beta)


def _checked(times: Sequence[Any]) -> list[float]:
    """Return given times; refuse times that do not descend."""
    if len(times) < 2 or not all(isinstance(t, Real) and not isinstance(t, bool) for t in times):
        what = f"must be a whole number or a list of at least two times, got {times!r}"
    elif not all(0 <= t < 1 for t in times):
        what = f"times must lie in [0, 1), got {next(t for t in times if not 0 <= t < 1)}"
    elif any(later >= t for t, later in pairwise(times)):
        what = "times must descend"
    else:
        return [float(t) for t in times]
    raise InputError(what, parameter="steps", remedy="use 20, or times such as [0.9, 0.5, 0.2, 0]")
