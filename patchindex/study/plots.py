"""Figures of studies; matplotlib comes with the extra `plots`."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from patchindex.figures import figure_class
from patchindex.study.metrics import root_mean_square

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_accuracy"]

HONEST = (0.8, 1.25)  # range of RMSE over standard error that is shaded
LEAST_ERROR = 1e-7  # rounding of float32: a pixel that was computed exactly has a smaller error
SECONDS = "seconds per step and image"


def plot_accuracy(rows: Iterable[dict[str, Any]], estimators: Sequence[str]) -> Figure:
    """Draw the table of a `Study` (see `Study.plot`), with these estimators in the order of the legend."""
    table: dict[tuple[str, str], dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in sorted(rows, key=lambda row: row["t"]):
        table[row["estimator"], row["trajectory"]][row["t"]].append(row)
    if all(trajectory == "own" for _, trajectory in table):
        return _plot_seconds({name: table[name, "own"] for name in estimators})
    figure = figure_class()(figsize=(11, 8), layout="constrained")
    (errors, ratios), (mass, seconds) = figure.subplots(2, 2, sharex=True)
    estimated = False  # some estimator has standard errors that are not 0
    for number, name in enumerate(estimators):
        along, own, colour = table[name, "exact"], table[name, "own"], f"C{number}"
        if along:
            rmse, stderr = (_by_time(root_mean_square, column, along) for column in ("rmse", "stderr"))
            ratio = [error / each if each else math.nan for error, each in zip(rmse, stderr, strict=True)]
            errors.plot([*along], rmse, "o-", color=colour, label=name)
            ratios.plot([*along], ratio, "o-", color=colour)
            estimated = estimated or not all(map(math.isnan, ratio))
            mass.plot([*along], _by_time(fmean, "captured_mass", along), "o-", color=colour)
        if own:
            if along:
                errors.plot([*own], _by_time(root_mean_square, "rmse", own), ":", color=colour)
            label = None if along else name
            seconds.plot([*own], _by_time(fmean, "seconds", own), "o-", color=colour, label=label)
    errors.set(title="RMSE of posterior mean (solid) and of image so far (dotted)")
    if any(
        max(line.get_ydata()) > 0 for line in errors.get_lines()
    ):  # zeros alone have no place on a log axis
        errors.set_yscale("log")
        low, high = errors.get_ylim()
        errors.set_ylim(min(max(low, LEAST_ERROR), high / 10), high)
    low, high = HONEST
    ratios.set(title=f"RMSE over standard error (1 is right; grey: {low} to {high})")
    ratios.axhspan(low, high, color="0.9")
    if not estimated:
        ratios.text(
            0.5, 0.5, "no standard errors above 0", transform=ratios.transAxes, ha="center", va="center"
        )
    mass.set(title="captured mass: share of the softmax that was evaluated", xlabel="t", ylim=(0, 1.05))
    seconds.set(title=SECONDS, xlabel="t", yscale="log")
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def _plot_seconds(own: Mapping[str, dict[float, list[dict[str, Any]]]]) -> Figure:
    """Draw the time of each step, of exact scores that are compared with no estimator."""
    figure = figure_class()(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for name, by_time in own.items():
        axes.plot([*by_time], _by_time(fmean, "seconds", by_time), "o-", label=name)
    axes.set(title=SECONDS, xlabel="t", ylim=(0, None))
    axes.legend()
    return figure


def _by_time(
    mean: Callable[[Iterable[float]], float], column: str, rows: dict[float, list[dict[str, Any]]]
) -> list[float]:
    """Return the mean of a column at each time; None counts as 0."""
    return [mean(row[column] or 0.0 for row in at) for at in rows.values()]
