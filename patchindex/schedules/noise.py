"""Noise schedules: the noise variance beta as a function of time.

The forward process is `x_t = sqrt(1 - beta(t)) x_0 + sqrt(beta(t)) eps`, with t from 0 (data) to 1 (noise).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate

from patchindex.errors import InputError

__all__ = ["NOISE_SCHEDULES", "NoiseSchedule", "cosine", "linear", "noise_schedule"]

NoiseSchedule = Callable[[float], float]

# DDPM: 1 000 steps, whose variances go from 1e-4 to .02 in equal steps.
DDPM_STEPS = 1000
_VARIANCES = [1e-4 + (0.02 - 1e-4) * i / (DDPM_STEPS - 1) for i in range(DDPM_STEPS)]
_LOG_ABAR = list(accumulate((math.log1p(-b) for b in _VARIANCES), initial=0.0))


def cosine(t: float) -> float:
    """Return `beta(t) = 1 - cos(t / 1.008 * pi / 2)^2`, the noise schedule of the paper's code."""
    return math.sin(t / 1.008 * math.pi / 2) ** 2  # equal, and not zero for a tiny t


def linear(t: float) -> float:
    """Return beta(t) of the linear schedule of DDPM (Ho, Jain & Abbeel, arXiv 2006.11239).

        beta(n / 1000) = 1 - prod_{i < n} (1 - b_i),    b_i = 1e-4 + (0.02 - 1e-4) i / 999

    Between these times, log(1 - beta) is interpolated linearly. The timestep n of a DDPM network, which
    counts from 0, is the time (n + 1) / 1000.

    Examples
    --------
    >>> round(linear(0.001), 10), round(linear(0.5), 3)
    (0.0001, 0.921)
    """
    place = DDPM_STEPS * t
    i = min(int(place), DDPM_STEPS - 1)
    return -math.expm1(_LOG_ABAR[i] + (place - i) * (_LOG_ABAR[i + 1] - _LOG_ABAR[i]))


# A noise schedule that is added here has a name in all functions that take one.
NOISE_SCHEDULES: dict[str, NoiseSchedule] = {"cosine": cosine, "linear": linear}


def noise_schedule(noise: str | NoiseSchedule) -> NoiseSchedule:
    """Return the noise schedule of this name; a function from t to beta is returned as it is."""
    if callable(noise):
        return noise
    if noise not in NOISE_SCHEDULES:
        known = ", ".join(sorted(NOISE_SCHEDULES))
        raise InputError(f"unknown noise schedule {noise!r}", parameter="noise", remedy=f"use {known}")
    return NOISE_SCHEDULES[noise]
