"""`patchindex study`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import torch
from rich import box
from rich.table import Table

from patchindex.denoisers.score_machine import ScoreMachine
from patchindex.estimators import parse_estimator
from patchindex.index import open_index
from patchindex.study import compare
from patchindex.study.plots import figure_class

from .options import (
    LocalPath,
    StorePath,
    check_output,
    common,
    label_option,
    locality_option,
    parse_label,
    parse_locality,
    print_json,
    table_console,
)
from .pictures import image_grid
from .progress import stages

__all__ = ["study"]

FILES = ("study.csv", "study.json", "study.png", "images.png")
COLUMNS = {  # heading: how a row of the summary is told
    "rmse": "{rmse:.4f}",
    "max": "{max_error:.3f}",
    "within": "{coverage:.3f}",
    "rmse/stderr": "{least_ratio:.2f}-{largest_ratio:.2f}",
    "r": "{pearson_r:.5f}",
    "R2": "{r2:.4f}",
    "s": "{seconds:.2f}",
}


@click.command()
@click.argument("store", type=StorePath())
@click.option("-o", "--output", required=True, type=LocalPath(), help="Folder for the files.")
@click.option(
    "--estimator",
    "estimators",
    multiple=True,
    default=("auto",),
    show_default=True,
    help="NAME, or NAME:option=value,...; give it once for each.",
)
@click.option("-n", type=click.IntRange(1), default=1, show_default=True, help="How many images.")
@click.option(
    "--steps", type=click.IntRange(2), default=20, show_default=True, help="Steps of the time grid."
)
@click.option(
    "--repeats",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Draws of each estimate, for the bias.",
)
@locality_option("Locality schedule, in place of the store's own.")
@label_option("Compare with training images of this label only: its number or name.")
@click.option(
    "--batch-size", type=click.IntRange(1), default=4, show_default=True, help="Images drawn together."
)
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier run.")
@common
def study(
    store: Path | str,
    output: Path,
    estimators: tuple[str, ...],
    n: int,
    steps: int,
    repeats: int,
    locality: str | None,
    label: str | None,
    batch_size: int,
    overwrite: bool,
    seed: int,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Compare estimators with the exact score, on the images of a STORE.

    All see the noisy images of the exact trajectory, and then follow their own from the same noise. Writes
    study.csv (a tidy table), study.json (also settings and summary), study.png (error, honesty of the
    standard errors, captured mass, time) and images.png (a row for each estimator, the exact one first).

    \b
    Examples:
      patchindex study fashion.zarr -o study --estimator auto --estimator topk
      patchindex study fashion.zarr -o study -n 4 --estimator auto:tolerance=0.02 \\
          --estimator topk:candidates=1024 --repeats 4
    """
    check_output(output, FILES, overwrite)
    figure_class()  # before any work
    index = open_index(store, device=device)
    schedule = parse_locality(locality) or index.locality
    number = parse_label(label, index)
    machines = {}
    for text in estimators:
        name, options = parse_estimator(text)
        machines[text] = ScoreMachine(
            index, estimator=name, locality=schedule, device=device, threads=threads, **options
        )
    with stages() as progress:
        found = compare(
            machines, n, steps, repeats=repeats, seed=seed, label=number, batch_size=batch_size,
            progress=lambda share: progress("comparing", share, 1.0),
        )  # fmt: skip
    figure = found.plot()
    output.mkdir(parents=True, exist_ok=True)
    found.to_csv(output / "study.csv")
    found.to_json(output / "study.json")
    figure.savefig(output / "study.png", dpi=120)
    image_grid(torch.cat(list(found.images.values())), columns=n).save(output / "images.png")
    if as_json:
        files = [os.fspath(output / name) for name in FILES]
        print_json({"settings": found.settings, "summary": found.summary(), "files": files})
        return
    table = Table(box=box.SIMPLE_HEAD, title="worst step along the exact trajectory; worst own image")
    table.add_column("estimator", min_width=16, overflow="fold")
    for heading in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.summary():
        known = {name: value for name, value in row.items() if value is not None}
        table.add_row(row["estimator"], *(_told(form, known) for form in COLUMNS.values()))
    table_console().print(table)
    click.echo(f"{output / 'study.png'}, {output / 'study.csv'}")


def _told(form: str, known: dict[str, Any]) -> str:
    """Fill in a form, or a dash where there is nothing to tell."""
    try:
        return form.format(**known)
    except KeyError:
        return "-"
