"""`patchindex originality`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchindex.errors import InputError

from .computing import Computing
from .config import record_in
from .options import (
    LocalPath,
    count_option,
    json_option,
    locality_option,
    parse_locality,
    resized_locality,
    seed_option,
    store_path,
    threads_option,
)
from .output import add_row, count, echo, new_table, print_json, print_table
from .outputs import check_output
from .progress import stages
from .sources import default_locality

if TYPE_CHECKING:
    from patchindex.study import Memorisation, Originality

FILES = ("originality.csv", "originality.json", "originality.png", "neighbours.png")
MEMORISATION = ("memorisation.csv", "memorisation.json", "memorisation.png")


@click.command(cls=Computing, short_help="Compare images with the training images of a store.")
@click.argument("samples", type=click.Path(path_type=Path))
@click.argument("store", type=store_path)
@click.option("-o", "--output", required=True, type=LocalPath(), help="Folder for the files.")
@count_option("-n", "Number of images, the first of SAMPLES.  [default: all]")
@count_option("--shift", "Largest shift of a training image in pixels, along each axis.", 4, least=0)
@click.option(
    "--times",
    default="0.05,0.25,0.5,0.75",
    metavar="T,T,...",
    show_default=True,
    help="Times at which the training images that an image draws from are counted; '' for no times.",
)
@count_option("--pixels", "Pixels per image whose weights are added up.", 64)
@count_option("--baseline", "Training images that are compared with all others.", 64)
@click.option(
    "--memorisation",
    "memorise",
    is_flag=True,
    help="Also measure at which scale and time the machine gives training images back.",
)
@locality_option("Locality schedule, in place of the store's schedule.")
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier run.")
@seed_option("Seed of the noise and of the pixels.")
@threads_option
@json_option
def originality(
    samples: Path,
    store: Path | str,
    output: Path,
    n: int | None,
    times: str,
    memorise: bool,
    locality: str | None,
    resize_locality: bool,
    overwrite: bool,
    seed: int,
    threads: int | None,
    as_json: bool,
    **sizes: int,
) -> None:
    """Measure how far SAMPLES are from the training images of a STORE, and how many images they draw from.

    SAMPLES is a samples.npz that `patchindex sample` wrote, or any images that `patchindex build` reads. All
    distances and weights are exact, over all images of the store, and computed on the CPU.

    Writes originality.csv (one row per image), originality.json (settings, summary, all tables),
    originality.png (distances, and numbers of training images) and neighbours.png (images above their nearest
    training images). With --memorisation also memorisation.csv, .json and .png.

    \b
    Rows of the table that it prints, medians over images:
      nearest         root mean square distance per pixel to the nearest training image
      shifted         the same, when training images may be shifted by up to --shift pixels
      held out        distances of --baseline training images to all other training images
      relative        distance of the images divided by the distance "held out"

    \b
    Columns of the second table, medians over images, one row per time of --times:
      k               locality scale
      training images training images that the whole image draws from
      per pixel       training images that one pixel draws from
      ESS             effective sample size of the softmax over patches
      heaviest        largest weight of a training image

    \b
    Examples:
      patchindex originality samples/samples.npz fashion.zarr -o originality
      patchindex originality samples/samples.npz fashion.zarr -o originality --times '' --shift 0
    """
    import patchindex
    from patchindex.figures import figure_class
    from patchindex.study.originality import read_images

    planned = (*FILES, *(MEMORISATION if memorise else ()))
    check_output(output, planned, overwrite=overwrite, sources=[samples, store])
    figure_class()  # matplotlib is optional: without it, fail before any work
    index = patchindex.open_index(store)
    training = index.training
    images = read_images(samples, (training.channels, *training.size), parameter="samples")[:n]
    schedule = parse_locality(locality) or index.locality
    if resize_locality:
        schedule = resized_locality(schedule, training.size)
    at = _parse_times(times)
    if schedule is None and index.machine != "IS" and (at or memorise):
        schedule = default_locality(training.source, index.scales)
    machine = None
    if at:
        machine = patchindex.ScoreMachine(index, estimator="exact", locality=schedule, threads=threads)
    with patchindex.runtime.threads(threads), stages() as progress:
        found = patchindex.study.originality(
            images, index, machine, times=at, seed=seed, progress=progress, **sizes
        )
        study = None
        if memorise:
            study = patchindex.study.memorisation(
                training.source,
                schedule.distinct if schedule is not None else (1,),
                machine=index.machine,
                train_windows=index.train_windows,
                seed=seed,
                progress=progress,
            )
    files = _write(output, found, study)
    record_in(output / "originality.json")
    if as_json:
        print_json({"settings": found.settings, "summary": found.summary(), "files": files})
        return
    _print(found.summary())
    echo(", ".join(file for file in files if file.endswith(".png")))


def _parse_times(text: str) -> list[float]:
    """Read `0.05,0.5`."""
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise InputError(
            f"{text!r} is not a list of times", parameter="times", remedy="write for example 0.05,0.5"
        ) from None


def _write(output: Path, found: Originality, study: Memorisation | None) -> list[str]:
    """Write the files; return their names."""
    figures = {"originality.png": found.plot(), "neighbours.png": found.plot_images()}
    output.mkdir(parents=True, exist_ok=True)
    found.to_csv(output / "originality.csv")
    found.to_json(output / "originality.json")
    if study is not None:
        figures["memorisation.png"] = study.plot()
        study.to_csv(output / "memorisation.csv")
        study.to_json(output / "memorisation.json")
    for name, figure in figures.items():
        figure.savefig(output / name, dpi=120)
    names = (*FILES, *(MEMORISATION if study is not None else ()))
    return [str(output / name) for name in names]


def _print(summary: dict[str, Any]) -> None:
    table = new_table(["median of", "nearest", "shifted"])
    table.columns[0].justify = "left"
    for name, key in (
        (count(summary["images"], "image"), ""),
        ("held out", "baseline_"),
        ("relative", "relative_"),
    ):
        values = (summary[f"{key}{column}"] for column in ("nearest", "shifted"))
        add_row(table, name, *("-" if value is None else f"{value:.3f}" for value in values))
    print_table(table)
    copies = summary["copies"]
    echo(
        f"{count(copies, 'image')} {'is a copy' if copies == 1 else 'are copies'}"
        ": three times nearer to the nearest training image than to the second"
    )
    if summary["steps"]:
        steps = new_table(["t", "k", "training images", "per pixel", "ESS", "heaviest"])
        for row in summary["steps"]:
            cells = (row["images"], row["images_per_pixel"], row["ess"])
            known = ["-" if value is None else f"{value:,.1f}" for value in cells]
            heaviest = "-" if row["heaviest"] is None else f"{row['heaviest']:.3f}"
            add_row(steps, f"{row['t']:g}", str(row["k"]), *known, heaviest)
        print_table(steps)
