"""Figures of counted features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from patchindex.figures import figure_class, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_counts", "plot_examples"]

RIGHT, FEWER, MORE = "#4a8f5a", ("#c6dbef", "#2171b5"), ("#fdbe85", "#b02a02")


def plot_counts(counts: Mapping[str, np.ndarray], summary: list[dict[str, Any]], expected: int) -> Figure:
    """Draw the shares of each count as stacked bars, and beside them the share of right counts."""
    names = list(counts)
    figure = figure_class()(figsize=(10, 0.8 + 0.42 * len(names)), layout="constrained")
    shares, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    largest = max(int(each.max()) for each in counts.values())
    for value in range(largest + 1):
        share = np.array([(mine == value).mean() for mine in counts.values()])
        start = np.array([(mine < value).mean() for mine in counts.values()])
        if share.any():
            colour = _colour(value, expected, largest)
            bars = shares.barh(names, share, left=start, color=colour, edgecolor="white", label=str(value))
            labels = [str(value) if each > 0.04 else "" for each in share]
            shares.bar_label(bars, labels, label_type="center", fontsize=8)
    shares.set(title="share of images, by count", xlim=(0, 1), xlabel="share")
    shares.set_ylim(len(names) - 0.4, -0.6)
    for row in summary:
        bar = [[row["right"] - row["right_low"]], [row["right_high"] - row["right"]]]
        right.errorbar(row["right"], row["name"], xerr=bar, fmt="o", color=RIGHT, capsize=3)
    right.set(title=f"share with {expected}, 95 % interval", xlim=(-0.02, 1.02), xlabel="share")
    right.grid(axis="x", color="0.9")
    return figure


def plot_examples(images: Mapping[str, Tensor], counts: Mapping[str, np.ndarray], expected: int) -> Figure:
    """Draw a row of images per name; the count of each image is above it, green where it is right."""
    columns = max(len(x) for x in images.values())
    figure = figure_class()(figsize=(1.6 + 0.8 * columns, 0.95 * len(images)), layout="constrained")
    panels = figure.subplots(len(images), columns, squeeze=False)
    for line, (name, x) in zip(panels, images.items(), strict=True):
        for axes in line:
            axes.axis("off")
        for axes, image, count in zip(line, x, counts[name], strict=False):
            show_image(axes, image)
            colour = RIGHT if count == expected else MORE[1] if count > expected else FEWER[1]
            axes.set_title(str(count), fontsize=9, color=colour, pad=2)
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    return figure


def _colour(value: int, expected: int, largest: int) -> Any:
    """Return green for the right count, blues for fewer and oranges for more, darker where farther off."""
    from matplotlib.colors import LinearSegmentedColormap

    if value == expected:
        return RIGHT
    off, most = (expected - value, expected) if value < expected else (value - expected, largest - expected)
    ends = FEWER if value < expected else MORE
    return LinearSegmentedColormap.from_list("", ends)(off / max(most, 4))
