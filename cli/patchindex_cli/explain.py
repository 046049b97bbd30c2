"""`patchindex explain`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchindex.errors import InputError

from .computing import Computing
from .config import record_of
from .options import (
    LocalPath,
    RunOptions,
    count_option,
    device_option,
    json_option,
    store_path,
    threads_option,
)
from .output import add_row, echo, new_table, print_json, print_table
from .outputs import check_output
from .progress import stages
from .saved_samples import check_fingerprint, machine_of, read_record, read_sample, recorded_store, steps_of
from .sources import image_options, open_training

if TYPE_CHECKING:
    from torch import Tensor

    from patchindex import ScoreMachine
    from patchindex.explain import Explanation

FILES = ("mosaic.png", "steps.png", "sources.png", "explain.json")
SHOWN = 4  # patches per pixel in the printed table, at most
SHOWN_WEIGHT = 5e-5  # of these patches: a smaller one is printed as 0


@click.command(cls=Computing, short_help="Name the training patches behind the pixels of a sample.")
@click.argument("samples", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=LocalPath(), help="Folder for the files.")
@count_option("--image", "Number of the sample, from 0.", 0, least=0)
@click.option(
    "--pixels",
    metavar="Y,X",
    multiple=True,
    help="A pixel whose patches are printed, as row and column. Give the option again for more pixels.",
)
@click.option("--html", type=LocalPath(), metavar="FILE", help="Also write one page to look at, offline.")
@click.option(
    "--beside",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Images to show beside the sample on the page: a samples.npz, or any images. The image with the "
    "number of the sample is taken, or the only image.",
)
@count_option("--top", f"Patches per pixel in the files; the table has the {SHOWN} heaviest at most.", 8)
@click.option(
    "--all-steps",
    is_flag=True,
    help="Find the patches of all steps, as --html does. Without both options, the command finds the patches "
    "of the last step, and steps.png has no entropy.",
)
@click.option("--exact", is_flag=True, help="Compare every patch, whatever estimator drew the samples.")
@click.option(
    "--mosaic-tolerance",
    type=float,
    default=0.05,
    show_default=True,
    metavar="X",
    help="Difference up to which a pixel counts as equal to the centre of its nearest patch, in [-1, 1].",
)
@click.option(
    "--store",
    type=store_path,
    metavar="STORE",
    help="Where the store is now, if it was moved after the samples were drawn.",
)
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier run.")
@image_options
@threads_option
@device_option()
@json_option
def explain(
    samples: Path,
    output: Path,
    image: int,
    pixels: tuple[str, ...],
    html: Path | None,
    beside: Path | None,
    top: int,
    all_steps: bool,
    exact: bool,
    mosaic_tolerance: float,
    store: Path | str | None,
    overwrite: bool,
    threads: int | None,
    device: str,
    as_json: bool,
    **prepared: Any,
) -> None:
    """Name the training patches behind the pixels of a sample, and draw its mosaic.

    SAMPLES is the folder that `patchindex sample` wrote, or its samples.npz. The steps of the sample are read
    from trajectory.zarr in this folder, or else the sample is drawn again. For samples that were drawn from
    images, not from a store, give the options of the images again, such as --resize.

    Writes mosaic.png (pixels by training image and by segment), steps.png (ESS and entropy by step),
    sources.png (nearest training images, and the images that most pixels came from) and explain.json (the
    numbers of the figures). With --html also one page that shows the patches of each pixel at each step.

    \b
    Examples:
      patchindex explain samples -o explained
      patchindex explain samples -o explained --image 3 --pixels 14,9 --pixels 3,20
      patchindex explain samples -o explained --html explained/sample.html --beside network/samples.npz
      patchindex explain samples -o explained --all-steps --exact --top 16 --device cuda
      patchindex explain samples -o explained --store moved/fashion.zarr --mosaic-tolerance 0.02 --overwrite
      patchindex explain of-photos -o explained --resize 32 --limit 500
    """
    import patchindex
    from patchindex.explain.mosaic import check_tolerance, require_sparse
    from patchindex.figures import figure_class

    ctx = click.get_current_context()
    if html is not None:  # the record of the run leaves the path out, and keeps what the page needs
        all_steps = ctx.params["all_steps"] = True
    check_tolerance(mosaic_tolerance, "mosaic_tolerance")
    outputs = [(output, FILES), *([] if html is None else [(html.parent, (html.name,))])]
    for place, names in outputs:
        check_output(place, names, overwrite=overwrite, inputs=[samples, beside])
    folder = samples.parent if samples.suffix == ".npz" else samples
    record = read_record(folder)
    where = store or recorded_store(record)
    for place, names in outputs:
        check_output(place, names, overwrite=overwrite, sources=[where])
    run = RunOptions(int(record["settings"]["seed"]), threads, device, as_json)
    figure_class()  # matplotlib and scipy are optional: without them, fail before any work
    require_sparse()
    training = open_training(str(where), prepared, run)
    check_fingerprint(training, record, where)
    machine = machine_of(training, record, run)
    drawn = read_sample(samples, folder, image, machine, record)
    chosen = [_parse_pixel(text, training.size) for text in pixels]
    second = None if beside is None else _read_beside(beside, image, machine)
    with patchindex.runtime.threads(threads), stages() as progress:
        steps = steps_of(machine, drawn, folder, progress)
        found = patchindex.explain.explain_sample(
            machine.exact() if exact else machine,
            steps,
            top=top,
            last_only=not all_steps,
            tolerance=mosaic_tolerance,
            progress=progress,
        )
    more = {"pixels": found.pixels(chosen)} if chosen else {}
    files = _write(output, found, {**more, "command": record_of(ctx)})
    if html is not None:
        name = beside.name if beside else ""
        text = patchindex.explain.page_of(
            found, beside=second, beside_name=name, label_names=list(training.label_names)
        )
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(text, encoding="utf-8")
        files.append(str(html))
    if as_json:
        print_json({**found.as_dict(), **more, "files": files})
        return
    _print(found, chosen, training.label_names)
    echo(f"written: {', '.join(files)}")


def _read_beside(path: Path, number: int, machine: ScoreMachine) -> Tensor:
    """Read the second image."""
    from patchindex.study.originality import read_images

    images = read_images(path, machine.shape, parameter="beside")
    if len(images) > 1 and number >= len(images):
        raise InputError(
            f"has {len(images)} images, and no number {number}",
            parameter="beside",
            remedy="give one image, or one for each sample",
        )
    return images[number : number + 1] if len(images) > 1 else images


def _parse_pixel(text: str, size: tuple[int, int]) -> tuple[int, int]:
    """Read `14,9`."""
    try:
        y, x = (int(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"{text!r} is not a pixel", parameter="pixels", remedy="write row and column, such as 14,9"
        ) from None
    if not (0 <= y < size[0] and 0 <= x < size[1]):
        last = f"{size[0] - 1},{size[1] - 1}"
        raise InputError(f"{text} is outside the image", parameter="pixels", remedy=f"use 0,0 to {last}")
    return y, x


def _write(output: Path, found: Explanation, more: dict[str, Any]) -> list[str]:
    """Write the figures and their numbers; return the names of the files."""
    from patchindex.explain import figures

    output.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(found).items():
        figure.savefig(output / f"{name}.png", dpi=120)
    found.to_json(output / FILES[-1], **more)
    return [str(output / name) for name in FILES]


def _print(found: Explanation, pixels: list[tuple[int, int]], label_names: Sequence[str]) -> None:
    from patchindex.images.file_names import numbered

    numbers = found.mosaic.summary()
    single = numbers["single"]
    nearest = found.machine.training.numbered(found.nearest_images[0])
    rows = [
        ("sample", found.steps.number),
        ("heaviest patches", numbers["method"]),
        ("source images", f"{numbers['source_images']:,}"),
        ("segments", f"{numbers['segments']:,} (largest {numbers['largest_segment']} pixels)"),
        ("decided by one patch", "not known" if single is None else f"{single:.1%} of pixels"),
        (
            f"centre of nearest patch, to {numbers['tolerance']:g}",
            f"{numbers['mosaic_share']:.1%} of pixels (exact search)",
        ),
        ("nearest image", f"{nearest} at {found.nearest_distances[0]:.3f}"),
    ]
    table = new_table([f"t = {numbers['t']:.3g}", f"k = {numbers['k'] or 'whole image'}"])
    table.columns[0].justify = "left"
    for row in rows:
        add_row(table, *row)
    print_table(table)
    if not pixels:
        return
    patches = new_table(["pixel", "weight", "image", "row", "column", "label", "rest", "ESS"])
    last, names = found.pixels(pixels), dict(enumerate(label_names))
    t = float(found.steps.t[-1])
    for one in (row for row in last if row["t"] == t):
        shown = [patch for patch in one["patches"][:SHOWN] if patch["weight"] >= SHOWN_WEIGHT]
        shown = shown or one["patches"][:1]
        rest = one["rest"] + sum(patch["weight"] for patch in one["patches"][len(shown) :])
        for i, patch in enumerate(shown):
            ess = "-" if one["ess"] is None else f"{one['ess']:.1f}"
            ends = (f"{rest:.4f}", ess) if i == 0 else ("", "")
            name = f"{one['pixel'][0]},{one['pixel'][1]}" if i == 0 else ""
            label = "-" if patch["label"] < 0 else numbered(patch["label"], names.get(patch["label"], ""))
            source = numbered(patch["image"], patch.get("name", ""))
            add_row(patches, name, f"{patch['weight']:.4f}", source, patch["y"], patch["x"], label, *ends)
    print_table(patches)
