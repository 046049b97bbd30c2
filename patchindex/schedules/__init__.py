"""Noise schedules, from time to noise variance, and locality schedules, from noise variance to scale."""

from patchindex.schedules.locality import (
    LOCALITY_PRESETS,
    LocalityLike,
    LocalitySchedule,
    Provenance,
    noise_levels,
)
from patchindex.schedules.noise import NOISE_SCHEDULES, NoiseSchedule, cosine, linear, noise_schedule

__all__ = [
    "LOCALITY_PRESETS",
    "NOISE_SCHEDULES",
    "LocalityLike",
    "LocalitySchedule",
    "NoiseSchedule",
    "Provenance",
    "cosine",
    "linear",
    "noise_levels",
    "noise_schedule",
]
