"""Draw docs/position-classes.png: position classes, and the patches that one pixel is compared with.

python docs/position_classes.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from patchindex.geometry import Geometry

SIZE, K, PIXEL = 9, 5, (4, 1)  # images of 9 x 9, windows of 5 x 5, and a pixel near the left border
MACHINES = {
    "LS": ("LS", "valid"),
    "ELS": ("ELS", "valid"),
    "ELS, wrapped": ("ELS", "wrapped"),
    "bbELS": ("bbELS", "valid"),
}


def colours(count: int) -> np.ndarray:
    """Return as many distinct colours, in an order that sets neighbours apart."""
    hues = np.arange(count) * 0.618 % 1
    return np.clip(0.74 + 0.22 * np.cos(2 * np.pi * (hues[:, None] + np.array([0, 1 / 3, 2 / 3]))), 0, 1)


def draw(axes: Axes, title: str, values: np.ndarray, palette: list[str] | np.ndarray) -> None:
    """Draw an image whose pixels have the colours of `values` in a palette."""
    axes.imshow(values, cmap=ListedColormap(palette), vmin=0, vmax=len(palette) - 1)
    axes.set_title(title, fontsize=10)
    for i in range(SIZE + 1):
        axes.axhline(i - 0.5, color="white", linewidth=1)
        axes.axvline(i - 0.5, color="white", linewidth=1)
    axes.set(xlim=(-1.7, SIZE - 0.4), ylim=(SIZE - 0.4, -0.6))
    axes.axis("off")


def main() -> None:
    """Draw one column for each machine: its classes above, the compared training positions below."""
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    panels = figure.subplots(2, len(MACHINES))
    y, x = PIXEL
    for (above, below), (name, (machine, train_windows)) in zip(panels.T, MACHINES.items(), strict=True):
        geometry = Geometry.of(machine, K, (SIZE, SIZE), train_windows)
        count = geometry.n_classes
        draw(above, f"{name}\n{count} class{'es' * (count > 1)}", geometry.query_classes, colours(count))
        compared = geometry.y.compared[y][:, None] & geometry.x.compared[x]
        many = int(compared.sum())
        draw(below, f"{many} patch{'es' * (many > 1)} per image", compared, ["#e4e4e4", "#4477aa"])
        above.add_patch(Rectangle((x - 0.3, y - 0.3), 0.6, 0.6, color="black", zorder=3))
        corner = (x - K // 2 - 0.5, y - K // 2 - 0.5)
        above.add_patch(Rectangle(corner, K, K, fill=False, edgecolor="black", linewidth=2, zorder=3))
    figure.savefig(Path(__file__).with_name("position-classes.png"), dpi=90)


if __name__ == "__main__":
    main()
