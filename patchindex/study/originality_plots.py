"""Figures of originality and of memorisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from patchindex.figures import figure_class, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_memorisation", "plot_neighbours", "plot_originality"]

Rows = Sequence[Mapping[str, Any]]


def plot_originality(rows: Rows, baseline: Rows, steps: Rows) -> Figure:
    """Draw distributions of distances, and numbers of training images and patches against t."""
    figure = figure_class()(figsize=(10 if steps else 5.5, 4), layout="constrained")
    panels = figure.subplots(1, 2 if steps else 1, squeeze=False)[0]
    for each, label, colour in ((rows, "images", "C1"), (baseline, "training images, left out", "0.5")):
        for column, style in (("nearest", "-"), ("shifted", "--")):
            values = np.sort([0.0, *(row[column] for row in each)])  # from a share of 0 at a distance of 0
            shares = np.arange(len(values)) / (len(values) - 1)
            name = label if column == "nearest" else f"{label}: shifted"
            panels[0].step(values, shares, style, where="post", color=colour, label=name)
    panels[0].set(
        title="distance to the nearest training image",
        xlabel="root mean square difference per pixel, in units of [-1, 1]",
        ylabel="share of images up to this distance",
        xlim=(0, None),
        ylim=(0, 1.02),
    )
    panels[0].legend(fontsize=8, loc="upper left", framealpha=0.6)
    if steps:
        times = sorted({row["t"] for row in steps})
        for column, label, colour in (
            ("images", "training images, per image", "C0"),
            ("images_per_pixel", "training images, per pixel", "C2"),
            ("ess", "patches, per pixel (ESS)", "C3"),
        ):
            at = [[row[column] for row in steps if row["t"] == t] for t in times]
            known = [[value for value in some if value is not None] or [np.nan] for some in at]
            low, middle, high = ([np.quantile(some, q) for some in known] for q in (0.25, 0.5, 0.75))
            panels[1].plot(times, middle, "o-", color=colour, label=label)
            panels[1].fill_between(times, low, high, color=colour, alpha=0.2, linewidth=0)
        panels[1].set(
            title="number drawn from: median and quartiles over images", xlabel="t", yscale="log", xlim=(0, 1)
        )
        panels[1].legend(fontsize=8)
    return figure


def plot_neighbours(images: Mapping[str, Tensor], rows: Rows) -> Figure:
    """Draw images above the nearest and the nearest shifted training image, with the distances."""
    names = {"images": "image", "nearest": "nearest\ntraining image", "shifted": "nearest,\nshifted"}
    columns = len(images["images"])
    figure = figure_class()(figsize=(1.4 + 0.9 * columns, 3.2), layout="constrained")
    panels = figure.subplots(len(names), columns, squeeze=False)
    for line, (key, label) in zip(panels, names.items(), strict=True):
        for axes, image, row in zip(line, images[key], rows, strict=False):
            show_image(axes, image)
            if key in row:
                axes.set_title(f"{row[key]:.2f}", fontsize=9, pad=2)
        line[0].text(-0.15, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    return figure


def plot_memorisation(rows: Rows) -> Figure:
    """Draw the effective sample size, and the error on held-out and on training images, by scale and time."""
    scales, times = (sorted({row[name] for row in rows}) for name in ("k", "t"))
    table = {(row["k"], row["t"]): row for row in rows}
    figure = figure_class()(figsize=(12, 4), layout="constrained")
    ess, copied, errors = figure.subplots(1, 3)
    panels = (
        (ess, "ess", "effective sample size (geometric mean)", "viridis", "log"),
        (copied, "ratio", "error on training / held-out images", "magma", "linear"),
    )
    for axes, column, title, colours, norm in panels:
        values = np.array([[table[k, t][column] for t in times] for k in scales], float)
        limits = {} if norm == "log" else {"vmin": 0, "vmax": 1}
        shown = axes.imshow(values, cmap=colours, norm=norm, origin="lower", aspect="auto", **limits)
        figure.colorbar(shown, ax=axes)
        axes.set(title=title, xlabel="t", ylabel="k")
        axes.set_xticks(range(len(times)), [f"{t:g}" for t in times])
        axes.set_yticks(range(len(scales)), scales)
        single = np.array([[table[k, t]["single"] for t in times] for k in scales])
        for y, x in np.argwhere(single >= 0.5):  # one patch decides most pixels
            axes.plot(x, y, "o", color="white", markeredgecolor="black", markersize=5)
    for number, k in enumerate(scales):
        colour = f"C{number}"
        for column, style in (("rmse_held_out", "-"), ("rmse_training", ":")):
            label = f"k = {k}" if column == "rmse_held_out" else None
            errors.plot(times, [table[k, t][column] for t in times], style, color=colour, label=label)
    errors.set(title="RMSE (dotted: on training images)", xlabel="t")
    errors.legend(fontsize=8)
    return figure
