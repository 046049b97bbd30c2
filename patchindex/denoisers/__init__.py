"""Denoisers: estimates of E[x_0 | x_t] under one contract."""

from patchindex.denoisers.machine import ScoreMachine, is_store

__all__ = ["ScoreMachine", "is_store"]
