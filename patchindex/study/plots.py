"""Pictures of a study; matplotlib is the extra `plots`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from patchindex.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figure_class", "plot"]

HONEST = (0.8, 1.25)  # of rmse over standard error


def figure_class() -> type[Figure]:
    """Return matplotlib's `Figure`.

    Raises
    ------
    InputError
        When it is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            "matplotlib is not installed", where="plot", remedy="pip install 'patchindex[plots]'"
        ) from None
    return Figure


def plot(rows: list[dict[str, Any]], estimators: Iterable[str]) -> Figure:
    """Plot error, standard error, captured mass and time of estimators against t.

    Parameters
    ----------
    rows : list of dict
        The table of a `Study`.
    estimators : iterable of str
        Names of the estimators, in the order of their colours.

    Raises
    ------
    InputError
        When matplotlib is not installed.
    """
    figure = figure_class()(figsize=(11, 8), layout="constrained")
    (errors, honesty), (mass, seconds) = figure.subplots(2, 2, sharex=True)
    for number, name in enumerate(estimators):
        colour = f"C{number}"
        along, own = (_by_time(rows, name, trajectory) for trajectory in ("exact", "own"))
        if along:
            t = [at for at, _ in along]
            rmse = [_rms(step, "rmse") for _, step in along]
            errors.plot(t, rmse, "o-", color=colour, label=name)
            mass.plot(t, [_mean(step, "captured_mass") for _, step in along], "o-", color=colour)
            stderr = [_rms(step, "stderr") for _, step in along]
            ratio = [error / each if each else math.nan for error, each in zip(rmse, stderr, strict=True)]
            honesty.plot(t, ratio, "o-", color=colour)
        if own:
            if along:
                errors.plot([at for at, _ in own], [_rms(step, "rmse") for _, step in own], ":", color=colour)
            seconds.plot(
                [at for at, _ in own],
                [_mean(step, "seconds") for _, step in own],
                "o-",
                color=colour,
                label=None if along else name,
            )
    errors.set(title="RMSE of posterior mean (solid) and of image so far (dotted)", yscale="log")
    honesty.set(title="RMSE / standard error")
    honesty.axhspan(*HONEST, color="0.9")
    mass.set(title="captured mass", xlabel="t", ylim=(0, 1.05))
    seconds.set(title="seconds per step and image", xlabel="t", yscale="log")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _by_time(
    rows: list[dict[str, Any]], name: str, trajectory: str
) -> list[tuple[float, list[dict[str, Any]]]]:
    found = defaultdict(list)
    for row in rows:
        if row["estimator"] == name and row["trajectory"] == trajectory:
            found[row["t"]].append(row)
    return sorted(found.items())


def _mean(rows: list[dict[str, Any]], column: str) -> float:
    return sum(row[column] for row in rows) / len(rows)


def _rms(rows: list[dict[str, Any]], column: str) -> float:
    """Root mean square; 0 where there is nothing."""
    return math.sqrt(sum((row[column] or 0.0) ** 2 for row in rows) / len(rows))
