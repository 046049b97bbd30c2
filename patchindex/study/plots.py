"""Figures of studies; matplotlib comes with the extra `plots`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from patchindex.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_class", "plot_accuracy"]

HONEST = (0.8, 1.25)  # range of RMSE over standard error that is shaded


def figure_class() -> type[Figure]:
    """Return matplotlib's `Figure`, or raise an InputError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            "matplotlib is not installed", where="plot", remedy="pip install 'patchindex[plots]'"
        ) from None
    return Figure


def plot_accuracy(rows: Iterable[dict[str, Any]], estimators: Sequence[str]) -> Figure:
    """Draw the table of a `Study` (see `Study.plot`), with these estimators in the order of the legend."""
    figure = figure_class()(figsize=(11, 8), layout="constrained")
    (errors, ratios), (mass, seconds) = figure.subplots(2, 2, sharex=True)
    table: dict[tuple[str, str], dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        table[row["estimator"], row["trajectory"]][row["t"]].append(row)
    for number, name in enumerate(estimators):
        colour = f"C{number}"
        along, own = (sorted(table[name, trajectory].items()) for trajectory in ("exact", "own"))
        if along:
            t = [at for at, _ in along]
            rmse, stderr = ([_rms(mine, column) for _, mine in along] for column in ("rmse", "stderr"))
            ratio = [error / each if each else math.nan for error, each in zip(rmse, stderr, strict=True)]
            errors.plot(t, rmse, "o-", color=colour, label=name)
            ratios.plot(t, ratio, "o-", color=colour)
            mass.plot(t, [_mean(mine, "captured_mass") for _, mine in along], "o-", color=colour)
        if own:
            t = [at for at, _ in own]
            if along:
                errors.plot(t, [_rms(mine, "rmse") for _, mine in own], ":", color=colour)
            label = None if along else name
            seconds.plot(t, [_mean(mine, "seconds") for _, mine in own], "o-", color=colour, label=label)
    errors.set(title="RMSE of posterior mean (solid) and of image so far (dotted)", yscale="log")
    ratios.set(title="RMSE over standard error (1 is right)")
    ratios.axhspan(*HONEST, color="0.9")
    mass.set(title="captured mass: share of the softmax that was evaluated", xlabel="t", ylim=(0, 1.05))
    seconds.set(title="seconds per step and image", xlabel="t", yscale="log")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _mean(rows: list[dict[str, Any]], column: str) -> float:
    return sum(row[column] for row in rows) / len(rows)


def _rms(rows: list[dict[str, Any]], column: str) -> float:
    """Return the root mean square of a column; None counts as 0."""
    return math.sqrt(sum((row[column] or 0.0) ** 2 for row in rows) / len(rows))
