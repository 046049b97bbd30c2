"""`patchindex calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchindex.errors import InputError

from .computing import Computing
from .config import record_in
from .options import (
    LocalPath,
    NameIn,
    RunOptions,
    count_option,
    parse_locality,
    parse_scales,
    run_options,
)
from .output import add_row, echo, new_table, print_json, print_table
from .outputs import check_output
from .progress import resumable, stages
from .sources import Training, image_options, open_source, open_training, parse_label

if TYPE_CHECKING:
    from patchindex import LocalitySchedule
    from patchindex.study import Calibration


@click.command(cls=Computing, short_help="Find the locality scale of each noise level.")
@click.argument("source")
@click.option("-o", "--output", required=True, type=LocalPath(), help="Folder for the files.")
@click.option(
    "--network",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Folder that `train` wrote, or a diffusers folder: choose the scale whose score is most similar to "
    "the score of this network.  [default: the scale of least denoising error on held-out images]",
)
@click.option(
    "--held-out",
    metavar="IMAGES",
    help="Held-out images, when there is no network.  [default: images of SOURCE that are set aside]",
)
@click.option(
    "--machine",
    type=NameIn("patchindex.geometry", "MACHINES"),
    help="LS, ELS or bbELS.  [default: the machine of the store, or bbELS]",
)
@click.option(
    "--train-windows",
    type=NameIn("patchindex.geometry", "TRAIN_WINDOWS"),
    help="ELS: valid or wrapped training windows.  [default: the windows of the store, or valid]",
)
@click.option(
    "--scales", metavar="K,K,...", help="Locality scales to compare.  [default: 3 to the image size]"
)
@count_option("-n", "Samples of the network (default 10), or held-out images (default 20).")
@count_option("--steps", "Grid points; N gives N-1 noise levels.", 20, least=2)
@click.option(
    "--measure",
    type=click.Choice(["cosine", "mse"]),
    default="cosine",
    show_default=True,
    help="With a network: largest cosine similarity, or least squared error.",
)
@click.option(
    "--estimator",
    type=click.Choice(["exact", "auto"]),
    default="exact",
    show_default=True,
    help="auto: with a network, use the index of a store at the scales that it has.",
)
@count_option("--pixels", "Compare N random pixels of each image.  [default: all]")
@click.option(
    "--by-label/--no-by-label",
    default=None,
    help="Compare each image with training images of its label only.  "
    "[default: yes for a class-conditional network]",
)
@click.option(
    "--other-images", is_flag=True, help="Accept images that the network was not trained on, or some of them."
)
@click.option("--label", metavar="NUMBER|NAME", help="Use images of this label only.")
@click.option(
    "--beside",
    metavar="SCHEDULE",
    multiple=True,
    help="Draw this schedule beside the result: a preset or a .json file. Its scales are scaled to the size "
    "of the images. Repeat the option for more schedules.",
)
@click.option("--resume", is_flag=True, help="Continue an interrupted run of the same command.")
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier run.")
@count_option("--batch-size", "Images per batch.", 8)
@image_options
@run_options("Seed of the noise, the held-out images and the pixels.")
def calibrate(
    source: str,
    output: Path,
    network: Path | None,
    held_out: str | None,
    machine: str | None,
    scales: str | None,
    n: int | None,
    steps: int,
    label: str | None,
    beside: tuple[str, ...],
    resume: bool,
    overwrite: bool,
    run: RunOptions,
    **values: Any,
) -> None:
    """Find the locality scale of each noise level, for a network or for the images of SOURCE alone.

    SOURCE is a store, or images as `build` takes them. With a network, SOURCE holds its training images. The
    image options (--resize and others) apply to SOURCE and to --held-out; --limit and --labels to SOURCE.

    Writes schedule.json, which --locality of other commands takes; calibration.csv (one row per noise level,
    sample and scale), calibration.json (settings and the table below) and calibration.png. The folder parts
    holds finished results for --resume.

    \b
    Columns of the table that it prints:
      k               scale of the noise level: median over samples, or least mean error
      quartiles       quartiles of the best scales of single samples
      memorises from  smallest scale whose error on held-out images is more than twice the error on
                      training images, as it is for all larger scales

    \b
    Examples:
      patchindex calibrate data/fashion_mnist_6k.npz -o scales --network run \\
          --beside fashion-mnist-resnet-zeros
      patchindex calibrate mnist.npz -o scales --resize 32 --limit 5000 -n 20
      patchindex sample fashion.zarr -o samples --locality scales/schedule.json --nearest-scales
    """
    import patchindex
    from patchindex.figures import figure_class
    from patchindex.study import CalibrationOptions
    from patchindex.study.calibration import FILES

    check_output(
        output, FILES, overwrite=overwrite, sources=[source, held_out], inputs=[network, values["labels"]]
    )
    figure_class()  # matplotlib is optional: without it, fail before any work
    image = {name: values.pop(name) for name in _image_names()}
    training = _open(source, image, held_out, run)
    if held_out is not None:
        more = {name: value for name, value in image.items() if name not in ("limit", "labels")}
        held_out_images = open_source(held_out, more)
    options = CalibrationOptions(
        label=parse_label(label, training), seed=run.seed, device=run.device, threads=run.threads, **values
    )
    schedules = dict(_beside(text, training) for text in beside)
    with resumable(output), stages() as progress:
        result = patchindex.study.calibrate(
            training.source,
            None if network is None else _open_network(network, run),
            machine,
            None if scales is None else parse_scales(scales),
            held_out=None if held_out is None else held_out_images,
            n=n,
            steps=steps,
            options=options,
            folder=output,
            resume=resume,
            overwrite=overwrite,
            progress=progress,
        )
    result.save(output, beside=schedules, overwrite=overwrite)
    record_in(output / "calibration.json")
    if run.as_json:
        files = [str(output / name) for name in FILES]
        print_json({"settings": result.settings, "summary": result.summary(), "files": files})
        return
    _print(result)
    echo(f"written: {output / 'schedule.json'}, {output / 'calibration.png'}")


def _image_names() -> list[str]:
    from patchindex.images.registry import ImageOptions

    return ["labels", *ImageOptions.__annotations__]


def _open(source: str, image: dict[str, Any], held_out: str | None, run: RunOptions) -> Training:
    """Open SOURCE; with a store, the image options are for --held-out, except --limit and --labels."""
    from patchindex.denoisers import is_store

    if held_out is not None and is_store(source):
        image = {name: image[name] for name in ("limit", "labels")}
    return open_training(source, image, run)


def _beside(text: str, training: Training) -> tuple[str, LocalitySchedule]:
    """Return a schedule for the size of the images, with its name in the figure."""
    schedule = parse_locality(text)
    if schedule is None:
        raise InputError("is empty", parameter="beside", remedy="give a preset or a .json file")
    size = training.size
    known = None if schedule.provenance is None else schedule.provenance.image_size
    if known is None or known == size:
        return text, schedule
    return f"{text}, scaled from {known[0]} x {known[1]}", schedule.resized(size)


def _open_network(folder: Path, run: RunOptions) -> Any:
    from patchindex.networks import open_network

    return open_network(folder, device=run.device, threads=run.threads)


def _print(result: Calibration) -> None:
    measure = result.settings["measure"]
    on_network = result.settings["way"] == "network"
    table = new_table(["t", "beta", "k", "quartiles", measure, *([] if on_network else ["memorises from"])])
    for row in reversed(result.summary()):
        cells = [f"{row['t']:.2f}", f"{row['beta']:.4f}", str(row["k"]), f"{row['low']}-{row['high']}"]
        cells.append(f"{row['value']:.5f}")
        if not on_network:
            cells.append("-" if row["memorises_from"] is None else str(row["memorises_from"]))
        add_row(table, *cells)
    print_table(table)
