"""Noise schedules and locality schedules, with the published presets.

The forward process is `x_t = sqrt(1 - beta(t)) x_0 + sqrt(beta(t)) eps`, with t from 0 (data) to 1 (noise).
A locality schedule gives the locality scale k at time t: entry i of n holds for t = i / n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real

from patchindex.errors import InputError

__all__ = [
    "LOCALITY_PRESETS",
    "NOISE_SCHEDULES",
    "LocalitySchedule",
    "NoiseSchedule",
    "cosine",
    "noise_levels",
    "noise_schedule",
]

NoiseSchedule = Callable[[float], float]

STEPS = 20  # of the paper's sampling grid


def cosine(t: float) -> float:
    """Return `beta(t) = 1 - cos(t / 1.008 * pi / 2)^2`, the noise schedule of the paper's code."""
    return math.sin(t / 1.008 * math.pi / 2) ** 2  # equal, and not zero for a tiny t


NOISE_SCHEDULES: dict[str, NoiseSchedule] = {"cosine": cosine}


def noise_schedule(noise: str | NoiseSchedule) -> NoiseSchedule:
    """Return the noise schedule of this name; a function from t to beta is returned as it is."""
    if callable(noise):
        return noise
    if noise not in NOISE_SCHEDULES:
        known = ", ".join(sorted(NOISE_SCHEDULES))
        raise InputError(f"unknown noise schedule {noise!r}", parameter="noise", remedy=f"use {known}")
    return NOISE_SCHEDULES[noise]


# Kamb & Ganguli's calibrated schedules. Index 0 is the lowest noise; its entry is never used.
LOCALITY_PRESETS: dict[str, tuple[int, ...]] = {
    "cifar10-resnet-circular": (3, 3, 3, 3, 5, 5, 5, 5, 7, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15, 15),
    "cifar10-resnet-zeros": (3, 3, 3, 3, 5, 5, 5, 7, 7, 7, 7, 9, 9, 11, 11, 13, 15, 17, 17, 17),
    "cifar10-unet-zeros": (3, 3, 3, 3, 5, 5, 5, 5, 7, 7, 7, 7, 9, 9, 11, 13, 13, 15, 17, 25),
    "celeba-resnet-zeros": (3, 3, 3, 5, 5, 5, 5, 5, 7, 7, 9, 9, 9, 11, 11, 11, 13, 15, 19, 19),
    "celeba-unet-zeros": (3, 3, 3, 3, 3, 3, 3, 5, 5, 5, 5, 5, 7, 7, 9, 9, 9, 13, 19, 27),
    "fashion-mnist-resnet-zeros": (3, 3, 5, 5, 7, 7, 9, 9, 9, 11, 11, 11, 13, 13, 13, 15, 15, 15, 17, 17),
    "fashion-mnist-unet-zeros": (3, 3, 5, 5, 7, 7, 7, 9, 11, 11, 11, 13, 15, 15, 21, 23, 25, 25, 25, 25),
    "mnist-resnet-circular": (3, 3, 5, 5, 5, 7, 7, 9, 9, 9, 11, 11, 11, 11, 9, 9, 7, 7, 3, 3),
    "mnist-resnet-zeros": (3, 3, 5, 5, 5, 7, 7, 7, 9, 9, 11, 11, 11, 11, 13, 15, 15, 15, 15, 15),
    "mnist-unet-zeros": (3, 3, 3, 5, 5, 7, 7, 7, 9, 9, 9, 11, 13, 15, 17, 21, 23, 23, 25, 27),
}


@dataclass(frozen=True)
class LocalitySchedule:
    """The locality scale at every time: `k(t) = scales[clip(round(n t), 1, n - 1)]`.

    Attributes
    ----------
    name : str
        Name of the preset, or `"custom"`.
    scales : tuple of int
        Locality scales by time, lowest noise first; the first entry is unused, as in the paper's code.

    Examples
    --------
    >>> s = LocalitySchedule.of("cifar10-resnet-circular")
    >>> s.k(0.05), s.k(0.5), s.k(0.95)
    (3, 7, 15)
    >>> s.distinct
    (3, 5, 7, 9, 11, 13, 15)
    """

    name: str
    scales: tuple[int, ...]

    @classmethod
    def of(cls, locality: str | int | Sequence[int] | LocalitySchedule) -> LocalitySchedule:
        """Return the schedule of a preset's name, of a sequence of scales, or of one scale for all times.

        Raises
        ------
        InputError
            When the preset is unknown, or a scale is even or below 1.
        """
        if isinstance(locality, LocalitySchedule):
            return locality
        if isinstance(locality, str):
            if locality not in LOCALITY_PRESETS:
                raise InputError(
                    f"unknown preset {locality!r}",
                    parameter="locality",
                    remedy=f"use one of {', '.join(LOCALITY_PRESETS)}",
                )
            return cls(locality, LOCALITY_PRESETS[locality])
        entries = (locality,) if isinstance(locality, int) else tuple(locality)
        if not entries:
            raise InputError("the schedule is empty", parameter="locality", remedy="give at least one scale")
        for k in entries:
            if not isinstance(k, Real) or isinstance(k, bool) or k % 2 != 1 or k < 1:
                raise InputError(
                    f"k must be odd and at least 1, got {k!r}",
                    parameter="locality",
                    remedy="use 3, 5, 7, ...",
                )
        return cls("custom", tuple(int(k) for k in entries))

    @property
    def distinct(self) -> tuple[int, ...]:
        """The scales in use, ascending: an index for this schedule must hold them."""
        return tuple(sorted(set(self.scales[1:] or self.scales)))

    def k(self, t: float) -> int:
        """Return the locality scale at time t in (0, 1)."""
        n = len(self.scales)
        return self.scales[min(max(round(n * t), 1), n - 1)]

    def times(self, k: int) -> list[float]:
        """Return the times i / n and i / `STEPS` at which the schedule uses scale k, ascending."""
        every = {i / n for n in (STEPS, len(self.scales)) for i in range(1, n)}
        return sorted(t for t in every if self.k(t) == k)

    def nearest(self, scales: Iterable[int]) -> LocalitySchedule:
        """Return this schedule with every entry moved to the nearest of `scales`, the smaller one in a tie.

        Examples
        --------
        >>> LocalitySchedule.of("cifar10-resnet-circular").nearest([3, 7, 15]).scales[::3]
        (3, 3, 3, 7, 7, 15, 15)
        """
        ascending = sorted(scales)
        if set(self.distinct) <= set(ascending):
            return self
        moved = tuple(min(ascending, key=lambda s: abs(s - k)) for k in self.scales)
        name = f"{self.name}/nearest-{'-'.join(map(str, ascending))}"
        return LocalitySchedule(name, moved)


def noise_levels(k: int, schedule: LocalitySchedule | None = None) -> list[float]:
    """Return the noise variances at which a schedule, or any preset, uses scale k, ascending.

    The noise schedule is `cosine`. A scale that no schedule uses gets the variances of all times.
    """
    presets = [schedule] if schedule else [LocalitySchedule.of(name) for name in LOCALITY_PRESETS]
    times = {t for each in presets for t in each.times(k)} or {i / STEPS for i in range(1, STEPS)}
    return [cosine(t) for t in sorted(times)]
