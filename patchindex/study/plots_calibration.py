"""The figure of a locality calibration; matplotlib comes with the extra `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchindex.figures import figure_class
from patchindex.schedules import LocalitySchedule

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_calibration"]

LEVELS = 6  # noise levels whose curves are drawn
SMALLEST = 1e-6  # 1 - cosine similarity, and squared difference from a network, that are drawn
DEEP = 20.0  # errors on training images are drawn down to the least error on held-out images over this


def plot_calibration(
    settings: Mapping[str, Any],
    summary: Sequence[Mapping[str, Any]],
    curves: Mapping[str, np.ndarray],
    beside: Mapping[str, LocalitySchedule],
) -> Figure:
    """Draw the figure of a `Calibration`.

    Parameters
    ----------
    settings, summary
        Of the calibration.
    curves : mapping of str to array, shape (steps, scales)
        Measures against the locality scale: averages over samples. They are `cosine` with a network, and
        `mse`, `train_mse` and `ess` without.
    beside : mapping of str to LocalitySchedule
        Other schedules to draw.
    """
    on_network = settings["way"] == "network"
    figure = figure_class()(figsize=(11 if on_network else 15, 4.6), layout="constrained")
    axes = figure.subplots(1, 2 if on_network else 3)
    _scales(axes[0], settings, summary, beside)
    shown = np.unique(np.linspace(0, len(summary) - 1, min(LEVELS, len(summary))).round().astype(int))
    ks = settings["scales"]
    for number, i in enumerate(shown):
        style: dict[str, Any] = {"color": _colour(number, len(shown)), "marker": "o", "markersize": 3}
        name = f"t = {summary[i]['t']:.2f}"
        if on_network:
            curve = 1 - curves["cosine"][i] if settings["measure"] == "cosine" else curves["mse"][i]
            axes[1].plot(ks, curve, label=name, **style)
        else:
            curve = curves["mse"][i]
            axes[1].plot(ks, curve, label=name, **style)
            axes[1].plot(ks, curves["train_mse"][i], ":", **{**style, "marker": ""})
            axes[2].plot(ks, curves["ess"][i], **style)
        at = ks.index(summary[i]["k"])
        axes[1].plot(ks[at], curve[at], "o", color=style["color"], markersize=9, fillstyle="none")
    values = [line.get_ydata() for line in axes[1].get_lines()]
    floor = SMALLEST if on_network else min(row["value"] for row in summary) / DEEP
    axes[1].set(xlabel="locality scale k", yscale="log")
    axes[1].set_ylim(bottom=max(floor, 0.5 * min(float(np.min(each)) for each in values)))
    for each in axes[1:]:
        each.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    if on_network:
        like = "1 - cosine similarity" if settings["measure"] == "cosine" else "squared difference"
        axes[1].set(title=f"{like} to the network")
    else:
        axes[1].set(title="error on held-out (solid) and training images (dotted)")
        axes[2].set(xlabel="locality scale k", yscale="log", title="effective sample size, held-out images")
    return figure


def _scales(
    axes: Axes,
    settings: Mapping[str, Any],
    summary: Sequence[Mapping[str, Any]],
    beside: Mapping[str, LocalitySchedule],
) -> None:
    """Draw k(t) with quartiles, the other schedules, and the scales that memorise."""
    times, ks = [row["t"] for row in summary], [row["k"] for row in summary]
    axes.fill_between(
        times, [row["low"] for row in summary], [row["high"] for row in summary], color="C0", alpha=0.2, lw=0,
        label="quartiles of the samples",
    )  # fmt: skip
    axes.plot(times, ks, "o-", color="C0", label="calibrated")
    for number, (name, schedule) in enumerate(beside.items(), 1):
        others = [schedule.k(row["beta"]) for row in summary]
        axes.plot(times, others, ".--", color=f"C{number}", label=name)
    memorised = [(row["t"], row["memorises_from"]) for row in summary if row["memorises_from"] is not None]
    if memorised:
        axes.plot(*zip(*memorised, strict=True), "x", color="0.3", label="memorises from here up")
    axes.set(
        xlabel="t", ylabel="k", title=f"locality scale, {settings['machine']}", xlim=(0, 1),
    )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.legend(fontsize="small", loc="upper left")


def _colour(number: int, count: int) -> tuple[float, ...]:
    """Return a colour from dark (low noise) to light."""
    from matplotlib import colormaps

    return tuple(colormaps["viridis"](0.9 * number / max(1, count - 1)))
