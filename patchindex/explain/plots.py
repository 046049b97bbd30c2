"""Figures of one sample: its mosaic, its steps, and the training images behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchindex.explain.explanation import Explanation
from patchindex.figures import figure_class, file_title, show_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures", "plot_mosaic", "plot_sources", "plot_steps"]

NAMED = 10  # training images and segments with a colour of their own
OTHERS = 0.85  # grey level of all others
MOST_STEPS = 10  # columns of the figure of steps
SHOWN = 6  # sources that are shown


def figures(found: Explanation) -> dict[str, Figure]:
    """Draw the mosaic, the steps and the sources of a sample.

    Parameters
    ----------
    found : Explanation
        From `explain_sample`.

    Returns
    -------
    dict of str to matplotlib.figure.Figure
        `mosaic`: the sample, its mosaic, and the pixels by training image, by segment and by nearest patch.
        `steps`: the noisy image, the posterior mean and the effective sample size at each step.
        `sources`: the training images that most pixels came from.

    Raises
    ------
    InputError
        When matplotlib is not installed.

    Examples
    --------
    >>> from patchindex.denoisers import ScoreMachine
    >>> from patchindex.explain import explain_sample, redraw
    >>> images = np.random.default_rng(0).integers(0, 256, (10, 8, 8), np.uint8)
    >>> m = ScoreMachine(images, machine="LS", locality=3)
    >>> found = explain_sample(m, redraw(m, torch.randn(1, 1, 8, 8), steps=3))
    >>> list(figures(found))
    ['mosaic', 'steps', 'sources']
    """
    return {"mosaic": plot_mosaic(found), "steps": plot_steps(found), "sources": plot_sources(found)}


def plot_mosaic(found: Explanation) -> Figure:
    """Draw the sample, its mosaic, and the pixels by training image, by segment and by nearest patch."""
    figure = figure_class()(figsize=(15, 3.6), layout="constrained")
    image, centres, sources, pieces, equal = figure.subplots(1, 5)
    mosaic, numbers = found.mosaic, found.mosaic.summary()
    show_image(image, mosaic.sample)
    image.set_title(f"sample {found.steps.number}", fontsize=10)
    show_image(centres, mosaic.centres)
    centres.set_title("centre of the heaviest patch", fontsize=10)
    named = [number for number, _ in found.sources(NAMED)]
    _show_map(sources, _coloured(mosaic.image, named), mosaic.segment)
    sources.set_title(f"training image (pixels): {numbers['source_images']} in all", fontsize=10)
    _add_legend(sources, found, named)
    _show_map(pieces, _shuffled(mosaic.segment), mosaic.segment)
    largest = numbers["largest_segment"]
    pieces.set_title(f"{numbers['segments']} segments, the largest {largest} pixels", fontsize=10)
    shown = equal.imshow(mosaic.difference, cmap="magma_r", vmin=0, vmax=max(0.2, numbers["tolerance"]))
    equal.axis("off")
    equal.set_title(
        f"difference to the nearest patch's centre\n{numbers['mosaic_share']:.0%} within "
        f"{numbers['tolerance']:g}",
        fontsize=10,
    )
    figure.colorbar(shown, ax=equal, shrink=0.8)
    return figure


def _add_legend(axes: Any, found: Explanation, named: list[int]) -> None:
    """Name training images below a map, or below the figure if their files have names: those are long."""
    names = [_file(found, number) for number in named]
    for place, (number, name) in enumerate(zip(named, names, strict=True)):
        count = (found.mosaic.image == number).sum()
        label = f"{number} {name} ({count})" if name else f"{number} ({count})"
        axes.plot([], [], "s", color=f"C{place}", label=label, markersize=6)
    style: Any = {"fontsize": 7, "ncols": 5, "handletextpad": 0.1, "columnspacing": 0.6, "frameon": False}
    if any(names):
        axes.figure.set_figheight(axes.figure.get_figheight() + 0.4)
        axes.figure.legend(**style, loc="outside lower center")
    else:
        axes.legend(**style, loc="upper center", bbox_to_anchor=(0.5, 0))


def plot_steps(found: Explanation) -> Figure:
    """Draw noisy image, posterior mean, ESS and, where known, entropy and source images by step."""
    steps = found.steps
    chosen = np.unique(np.linspace(0, len(steps) - 1, min(MOST_STEPS, len(steps))).round().astype(int))
    exact = [found.patches[i] for i in chosen]
    with_entropy = all(each is not None and each.method == "exact" for each in exact)
    names = ["x_t", "posterior\nmean", "ESS", *(["entropy\n(nats)"] if with_entropy else [])]
    figure = figure_class()(figsize=(1.5 + 1.05 * len(chosen), 1.2 * len(names) + 2.4), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[1.2 * len(names) + 0.3, 2.1])
    maps, curve = parts
    panels = maps.subplots(len(names), len(chosen), squeeze=False)
    size = steps.ess.shape[1:]
    most = max(float(np.nanmax(steps.ess)), 10.0) if not np.isnan(steps.ess).all() else 10.0
    ess = entropy = None
    for column, (i, patches) in enumerate(zip(chosen, exact, strict=True)):
        show_image(panels[0, column], steps.x[i])
        scale = f", k {steps.k[i]}" if steps.k[i] else ""
        panels[0, column].set_title(f"t {steps.t[i]:.3g}{scale}", fontsize=8, pad=2)
        show_image(panels[1, column], steps.mean[i])
        ess = panels[2, column].imshow(np.maximum(steps.ess[i], 1), cmap="viridis", norm=_log(1, most))
        if with_entropy and patches is not None:
            entropy = panels[3, column].imshow(
                patches.entropy.reshape(size), cmap="viridis", vmin=0, vmax=np.log(most) + 1
            )
        for axes in panels[2:, column]:
            axes.axis("off")
    for line, name in zip(panels, names, strict=True):
        line[0].text(-0.15, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    maps.colorbar(ess, ax=panels[2], shrink=0.9)
    if entropy is not None:
        maps.colorbar(entropy, ax=panels[3], shrink=0.9)
    _plot_curves(curve.subplots(), found)
    return figure


def _plot_curves(axes: Any, found: Explanation) -> None:
    """Draw the effective sample size, and the number of source images, against the time."""
    steps = found.steps
    ess = np.maximum(steps.ess.reshape(len(steps), -1), 1)
    if not np.isnan(ess).all():
        low, middle, high = np.nanquantile(ess, (0.25, 0.5, 0.75), axis=1)
        axes.plot(
            steps.t, middle, "o-", color="C0", label="ESS: median and quartiles over pixels", markersize=4
        )
        axes.fill_between(steps.t, low, high, color="C0", alpha=0.2, linewidth=0)
    rows = [(row["t"], row["source_images"]) for row in found.by_step() if row["source_images"] is not None]
    if len(rows) > 1:
        label = "training images with the heaviest patch of a pixel"
        axes.plot(*zip(*rows, strict=True), "s:", color="C1", label=label, markersize=4)
    axes.set(xlabel="t", yscale="log", xlim=(1, 0))
    axes.set_ylim(bottom=0.8)
    axes.legend(fontsize=8)


def plot_sources(found: Explanation) -> Figure:
    """Draw the sample, its nearest training images, and the training images that most pixels came from.

    Each source has its pixels of the sample below: the pixels that came from it, all others faded.
    """
    mosaic, sources = found.mosaic, found.sources(SHOWN)
    columns = 1 + max(len(found.nearest), len(sources))
    figure = figure_class()(figsize=(1.5 * columns + 0.6, 5.4), layout="constrained")
    near, above, below = figure.subplots(3, columns, squeeze=False)
    for axes in (*near, *above, *below):
        axes.axis("off")
    show_image(near[0], mosaic.sample)
    near[0].set_title(f"sample {found.steps.number}", fontsize=9)
    for axes, image, number, distance in zip(
        near[1:], found.nearest, found.nearest_images, found.nearest_distances, strict=False
    ):
        show_image(axes, image)
        axes.set_title(f"nearest: {number}{_line(found, number)}\ndistance {distance:.2f}", fontsize=8)
    above[0].text(1, 0.5, "training images\nthat most\npixels came from", ha="right", va="center", fontsize=8)
    below[0].text(1, 0.5, "their pixels\nin the sample", ha="right", va="center", fontsize=8)
    for top, bottom, (number, count) in zip(above[1:], below[1:], sources, strict=False):
        show_image(top, found.source(number))
        mine = mosaic.image == number
        used = np.zeros(mine.shape, bool)
        used[mosaic.y[mine], mosaic.x[mine]] = True
        _outline(top, used)
        top.set_title(f"image {number}{_line(found, number)}\n{count} pixels", fontsize=8)
        show_image(bottom, _faded(mosaic.sample, mine))
        _outline(bottom, mine)
    return figure


def _line(found: Explanation, number: int) -> str:
    """Return the file name of a training image as one more line of a title; an empty text without a name."""
    name = _file(found, number)
    return f"\n{name}" if name else ""


def _file(found: Explanation, number: int) -> str:
    """Return the end of the file name of a training image; an empty text without a name."""
    return file_title(found.machine.training.image_names([number])[0])


def _faded(image: Tensor, mask: np.ndarray) -> Tensor:
    """Return an image (C, H, W) whose pixels outside the mask are nearly white."""
    return torch.where(torch.from_numpy(mask), image, 0.3 * image + 0.6)


def _coloured(images: np.ndarray, named: list[int]) -> np.ndarray:
    """Return colours (H, W, 3): one colour for each named training image, and grey for all others."""
    from matplotlib.colors import to_rgb

    colours = np.full((*images.shape, 3), OTHERS)
    for place, number in enumerate(named):
        colours[images == number] = to_rgb(f"C{place}")
    return colours


def _shuffled(segment: np.ndarray) -> np.ndarray:
    """Return colours (H, W, 3) in which neighbouring segments differ; single pixels are grey."""
    from matplotlib import colormaps

    sizes = np.bincount(segment.ravel())
    shades = np.random.default_rng(0).permutation(len(sizes)) / max(1, len(sizes))
    colours = colormaps["hsv"](shades)[:, :3] * 0.75 + 0.2
    colours[sizes == 1] = OTHERS
    return np.asarray(colours[segment])


def _show_map(axes: Any, colours: np.ndarray, segment: np.ndarray) -> None:
    """Draw colours (H, W, 3) with the borders of segments of more than one pixel."""
    axes.imshow(colours)
    several = np.bincount(segment.ravel())[segment] > 1
    right = (segment[:, 1:] != segment[:, :-1]) & (several[:, 1:] | several[:, :-1])
    down = (segment[1:] != segment[:-1]) & (several[1:] | several[:-1])
    _borders(axes, right, down)
    axes.axis("off")


def _outline(axes: Any, mask: np.ndarray) -> None:
    """Draw the border of a mask (H, W), also along the edges of the image."""
    inside = np.pad(mask, 1)
    _borders(axes, inside[1:-1, 1:] != inside[1:-1, :-1], inside[1:, 1:-1] != inside[:-1, 1:-1], 1, "red")


def _borders(axes: Any, right: np.ndarray, down: np.ndarray, shift: int = 0, colour: str = "black") -> None:
    """Draw lines between the pixels where `right` (H, W - 1) and `down` (H - 1, W) are true."""
    from matplotlib.collections import LineCollection

    ends = []
    for mask, along in ((right, (0.5, 0.0)), (down, (0.0, 0.5))):
        y, x = (place.astype(float) for place in np.nonzero(mask))
        # The middle of the edge after pixel (y, x), and half of the edge to either side.
        middle = np.stack([x + along[0], y + along[1]], 1)
        middle[:, 0 if along[0] else 1] -= shift
        half = np.array([along[1], along[0]])
        ends.append(np.stack([middle - half, middle + half], 1))
    axes.add_collection(LineCollection([*ends[0], *ends[1]], colors=colour, linewidths=0.8))


def _log(low: float, high: float) -> Any:
    from matplotlib.colors import LogNorm

    return LogNorm(low, high)
