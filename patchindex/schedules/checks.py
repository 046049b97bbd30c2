"""Checks of the parts of a locality schedule, which a user writes or reads from a file."""

from __future__ import annotations

from typing import Any

from patchindex.checks import is_real

__all__ = ["problem_of_pairs", "problem_of_quartiles", "problem_of_scale"]


def problem_of_scale(k: Any) -> str | None:
    """Return the problem of a scale, or None."""
    if not is_real(k) or k % 2 != 1 or k < 1:
        return f"k must be odd and at least 1, got {k!r}"
    return None


def _is_list_of_pairs(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in value)


def problem_of_pairs(pairs: Any) -> str | None:
    """Return the first problem of pairs of a noise variance and a scale, or None."""
    if not _is_list_of_pairs(pairs) or not pairs:
        return "pairs must be a list of [beta, k], with at least one pair"
    for i, (beta, k) in enumerate(pairs):
        if not is_real(beta) or not 0 < beta < 1:
            return f"beta must lie in (0, 1), got {beta!r} in pair {i + 1}"
        if i and not beta > pairs[i - 1][0]:
            return f"beta must increase from pair to pair, got {beta!r} after {pairs[i - 1][0]!r}"
        if (problem := problem_of_scale(k)) is not None:
            return f"{problem} in pair {i + 1}"
    return None


def problem_of_quartiles(quartiles: Any, n: int) -> str | None:
    """Return the first problem of the quartiles of n pairs, or None."""
    if quartiles is None:
        return None
    if not _is_list_of_pairs(quartiles) or len(quartiles) != n:
        return f"quartiles must be {n} pairs, one for each pair of beta and k"
    for i, (low, high) in enumerate(quartiles):
        if not is_real(low) or not is_real(high) or not 1 <= low <= high:
            return f"quartiles must ascend from 1, got {[low, high]} in pair {i + 1}"
    return None
