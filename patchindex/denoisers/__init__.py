"""Denoisers: estimates of E[x_0 | x_t] under one contract."""

from patchindex.denoisers.base import Call, Denoiser, TrainingDenoiser, is_store
from patchindex.denoisers.machine import ScoreMachine
from patchindex.denoisers.registry import DENOISERS, denoiser, register_denoiser

__all__ = [
    "DENOISERS",
    "Call",
    "Denoiser",
    "ScoreMachine",
    "TrainingDenoiser",
    "denoiser",
    "is_store",
    "register_denoiser",
]
