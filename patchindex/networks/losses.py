"""The loss of a training run by step: `loss.csv` and `loss.png`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from patchindex.store.atomic import atomic_write
from patchindex.store.text_files import write_csv

__all__ = ["COLUMNS", "plot_losses", "write_losses"]

COLUMNS = ("step", "images_seen", "loss", "validation_loss", "lr", "seconds")


def write_losses(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows as CSV, atomically; an unknown value is an empty cell."""
    write_csv(path, rows, COLUMNS, durable=True)


def plot_losses(path: Path, rows: list[dict[str, Any]], title: str) -> None:
    """Draw the losses to a PNG file, atomically, unless matplotlib (the extra `plots`) is not installed."""
    if not rows or find_spec("matplotlib") is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    steps = [row["step"] for row in rows]
    line = "o-" if len(rows) == 1 else "-"  # a line of one point is not visible
    axes.plot(steps, [row["loss"] for row in rows], line, label="training")
    if rows[-1]["validation_loss"] is not None:
        axes.plot(steps, [row["validation_loss"] for row in rows], line, label="held-out images")
        axes.legend()
    axes.set(title=title, xlabel="step", ylabel="mean squared error of the noise", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(which="both", alpha=0.3)
    with atomic_write(path, durable=False) as file:
        figure.savefig(file, format="png", dpi=120)
