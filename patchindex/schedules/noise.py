"""Noise schedules: the noise variance beta as a function of time.

The forward process is `x_t = sqrt(1 - beta(t)) x_0 + sqrt(beta(t)) eps`, with t from 0 (data) to 1 (noise).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate, pairwise
from numbers import Real

from patchindex.checks import is_name_in
from patchindex.errors import InputError
from patchindex.schedules.frames import beta_of_flow, beta_of_sigma

__all__ = [
    "NOISE_SCHEDULES",
    "NoiseSchedule",
    "cosine",
    "edm",
    "flow",
    "linear",
    "noise_schedule",
    "squaredcos",
    "time_of",
]

NoiseSchedule = Callable[[float], float]

# DDPM: 1 000 steps, whose variances go from 1e-4 to .02 in equal steps.
DDPM_STEPS = 1000
_VARIANCES = [1e-4 + (0.02 - 1e-4) * i / (DDPM_STEPS - 1) for i in range(DDPM_STEPS)]
_LOG_ABAR = list(accumulate((math.log1p(-b) for b in _VARIANCES), initial=0.0))
OFFSET = 0.008  # of the schedule of Nichol & Dhariwal
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7  # of EDM


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


def squaredcos(t: float) -> float:
    """Return beta(t) of the cosine schedule of Nichol & Dhariwal (arXiv 2102.09672).

        1 - beta(t) = f(t) / f(0),    f(t) = cos((t + 0.008) / 1.008 * pi / 2)^2

    `squaredcos_cap_v2` of diffusers is this schedule at the times 1 / n, 2 / n, ..., but for a bound on its
    last steps.

    Examples
    --------
    >>> round(squaredcos(0.5), 4), squaredcos(0.0)
    (0.5062, 0.0)
    """
    first, angle = (each / (1 + OFFSET) * math.pi / 2 for each in (OFFSET, t + OFFSET))
    # cos(u)^2 - cos(v)^2 = sin(v - u) sin(v + u): exact for a small t, where the difference is not.
    return min(math.sin(angle - first) * math.sin(angle + first) / math.cos(first) ** 2, 1.0)


def flow(t: float) -> float:
    """Return beta(t) of a rectified flow (Liu, Gong & Liu, arXiv 2209.03003).

    A flow has `z = (1 - t) x_0 + t eps`. Divided by `sqrt((1 - t)^2 + t^2)`, z is an x_t with

        beta(t) = t^2 / ((1 - t)^2 + t^2)

    Examples
    --------
    >>> flow(0.5), flow(0.25)
    (0.5, 0.1)
    """
    return beta_of_flow(t)


def edm(t: float) -> float:
    """Return beta(t) of the noise levels of EDM (Karras et al., arXiv 2206.00364, equation 5).

        sigma(t) = (0.002^(1/7) + t (80^(1/7) - 0.002^(1/7)))^7,    beta = sigma^2 / (1 + sigma^2)

    and 0 at t = 0. EDM's `y = x_0 + sigma eps` divided by `sqrt(1 + sigma^2)` is an x_t.

    Examples
    --------
    >>> beta = edm(0.999999)
    >>> round((beta / (1 - beta)) ** 0.5, 2)
    80.0
    """
    if t <= 0:
        return 0.0
    low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
    return beta_of_sigma((low + t * (high - low)) ** RHO)


# A noise schedule that is added here has a name in all functions that take one.
NOISE_SCHEDULES: dict[str, NoiseSchedule] = {
    "cosine": cosine,
    "squaredcos": squaredcos,
    "linear": linear,
    "flow": flow,
    "edm": edm,
}


def noise_schedule(noise: str | NoiseSchedule) -> NoiseSchedule:
    """Return the noise schedule of this name, or a function from t to beta after a check of its values.

    Raises
    ------
    InputError
        When the name is unknown; or when the function fails, returns anything but a real number in (0, 1] (or
        0 at t = 0), or falls, at one of 200 times in [0, 1).
    """
    if callable(noise):
        if noise not in NOISE_SCHEDULES.values():
            _check_function(noise)
        return noise
    if not is_name_in(noise, NOISE_SCHEDULES):
        known = ", ".join(sorted(NOISE_SCHEDULES))
        raise InputError(f"unknown noise schedule {noise!r}", parameter="noise", remedy=f"use {known}")
    return NOISE_SCHEDULES[noise]


def time_of(noise: NoiseSchedule, beta: float) -> float:
    """Return the time t in (0, 1) whose noise variance is nearest to `beta`, by bisection.

    Raises
    ------
    InputError
        When beta is outside (0, 1), or more than all noise variances of the schedule.

    Examples
    --------
    >>> round(time_of(linear, linear(0.37)), 9)
    0.37
    """
    low, high = LEAST_TIME, 1 - LEAST_TIME
    if not 0 < beta < 1 or beta > noise(high) * (1 + ROUNDING):
        name = getattr(noise, "__name__", "this")
        raise InputError(
            f"the {name} schedule has no noise variance {beta:.8g}; its largest is {noise(high):.8g}",
            parameter="noise",
            remedy="use less noise, or make the denoiser with a noise schedule that has more, such as 'flow'",
        )
    if beta <= noise(low):
        return low
    while high - low > LEAST_TIME * low:  # times near 0 have variances that differ by far more than times do
        middle = math.sqrt(low * high) if low < 0.25 * high else (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if noise(middle) < beta else (low, middle)
    return min((low, high), key=lambda t: abs(noise(t) - beta))


LEAST_TIME, ROUNDING = 1e-13, 1e-9
CHECKED_TIMES = [i / 200 for i in range(200)]  # the sampler starts below t = 1 and ends at t = 0


def _check_function(noise: NoiseSchedule) -> None:
    def refuse(what: str, remedy: str) -> InputError:
        return InputError(what, parameter="noise", remedy=remedy)

    betas: list[float] = []
    for t in CHECKED_TIMES:
        try:
            beta = noise(t)
        except Exception as error:
            what = f"the function fails at t = {t:g} ({type(error).__name__}: {error})"
            raise refuse(what, "give a function from a float t in [0, 1) to beta") from error
        if not isinstance(beta, Real) or isinstance(beta, bool):
            raise refuse(
                f"gives {type(beta).__name__} at t = {t:g}", "return a number: float(beta) of a tensor"
            )
        if not (0 < beta <= 1 or (t == 0 and beta == 0)):
            raise refuse(f"gives beta = {beta} at t = {t:g}", "give beta in (0, 1), or 0 at t = 0")
        betas.append(float(beta))
    for (t, beta), (later, above) in pairwise(zip(CHECKED_TIMES, betas, strict=True)):
        if above < beta:
            raise refuse(
                f"falls from {beta:.6g} at t = {t:g} to {above:.6g} at t = {later:g}",
                "give a function that grows from data at t = 0 to noise at t = 1",
            )
