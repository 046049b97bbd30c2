"""Estimators of the posterior mean, by name, under one contract: `auto`, `topk` and `exact`."""

from patchindex.estimators.base import Estimate, Estimator, ScoreContext
from patchindex.estimators.policy import AutoPolicy
from patchindex.estimators.registry import ESTIMATORS, EstimatorOptions, make_estimator, parse_estimator

__all__ = [
    "ESTIMATORS",
    "AutoPolicy",
    "Estimate",
    "Estimator",
    "EstimatorOptions",
    "ScoreContext",
    "make_estimator",
    "parse_estimator",
]
