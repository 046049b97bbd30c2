"""Noise schedules, from time to noise variance, and locality schedules, from noise variance to scale."""

from patchindex.schedules.locality import (
    LOCALITY_PRESETS,
    LocalityLike,
    LocalitySchedule,
    Provenance,
    noise_levels,
)
from patchindex.schedules.noise import (
    NOISE_SCHEDULES,
    NoiseSchedule,
    cosine,
    edm,
    flow,
    linear,
    noise_schedule,
    squaredcos,
    time_of,
)

__all__ = [
    "LOCALITY_PRESETS",
    "NOISE_SCHEDULES",
    "LocalityLike",
    "LocalitySchedule",
    "NoiseSchedule",
    "Provenance",
    "cosine",
    "edm",
    "flow",
    "linear",
    "noise_levels",
    "noise_schedule",
    "squaredcos",
    "time_of",
]
