"""The figure of a store: its scales, and their operating curves."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from patchindex.estimators import ESTIMATORS
from patchindex.estimators.curve import OperatingCurve
from patchindex.estimators.topk import QUALITY
from patchindex.figures import figure_class

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_store"]

STYLES = {"exact": "--", "auto": "o-", "topk": "s:"}


def plot_store(info: Mapping[str, Any]) -> Figure:
    """Draw the patches, bytes and variance of each scale, and the time of the estimators against noise.

    Parameters
    ----------
    info : dict
        The result of `PatchIndex.info`, of a store with an index. Scales that are not tuned have no times.

    Raises
    ------
    InputError
        When matplotlib is not installed.
    """
    scales = {int(k): scale for k, scale in info["indexes"].items()}
    read = {k: OperatingCurve.read(scale.get("operating_curve"), f"scale {k}") for k, scale in scales.items()}
    curves = {k: curve for k, curve in read.items() if curve is not None}
    figure = figure_class()(figsize=(11, 7.5 if curves else 3.2), layout="constrained")
    figure.suptitle(f"{info['machine']}, {info['images']:,} images", parse_math=False)
    rows: Any = figure.subfigures(2, 1, height_ratios=(2, 3)) if curves else [figure]
    panels = rows[0].subplots(1, 3)
    for axes, title, values in (
        (panels[0], "patches, millions", [scale["patches"] / 1e6 for scale in scales.values()]),
        (panels[1], "size on disk, MiB", [scale["bytes"] / 2**20 for scale in scales.values()]),
        (
            panels[2],
            "variance that codes leave out, %",
            [100 - 100 * s["pca_energy"] for s in scales.values()],
        ),
    ):
        names = [str(k) for k in scales]
        bars = axes.bar(names, values, color=[f"C{i % 10}" for i in range(len(names))])
        axes.bar_label(bars, fmt=_short, fontsize=8)
        axes.margins(y=0.15)
        axes.set(title=title, xlabel="locality scale k")
    if curves:
        colours = {k: f"C{i % 10}" for i, k in enumerate(scales)}
        _plot_curves(rows[1].subplots(1, 1), curves, colours)
    return figure


def _short(value: float) -> str:
    """Return a number with three digits, or as an integer from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plot_curves(axes: Axes, curves: Mapping[int, OperatingCurve], colours: Mapping[int, str]) -> None:
    """Draw the microseconds per pixel that each estimator is expected to take with its default options."""
    options = {name: inspect.signature(ESTIMATORS[name]).parameters for name in ("auto", "topk")}
    tolerance = options["auto"]["tolerance"].default
    candidates = options["topk"]["candidates"].default
    for k, curve in curves.items():
        betas = sorted({point.beta for point in curve.near})
        times = {
            "exact": [curve.exact] * len(betas),
            "auto": [curve.near_field(beta, tolerance, steps=True)[1] for beta in betas],
            "topk": [curve.search(beta, candidates, QUALITY).seconds for beta in betas],
        }
        for name, seconds in times.items():
            axes.plot(betas, [1e6 * each for each in seconds], STYLES[name], color=colours[k], alpha=0.8)
    axes.set(
        title=f"time per pixel: auto to a tolerance of {tolerance:g}, topk with {candidates} candidates",
        xlabel="noise variance beta",
        ylabel="microseconds",
        xlim=(0, 1),
        yscale="log",
    )
    for name, style in STYLES.items():
        axes.plot([], [], style, color="0.4", label=name)
    for k in curves:
        axes.plot([], [], "-", color=colours[k], label=f"k = {k}")
    axes.legend(fontsize=8, ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
