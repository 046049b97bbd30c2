"""`patchindex compare` and `patchindex compare-table`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchindex.errors import InputError, Option

from .computing import Computing
from .config import record_in
from .options import (
    LocalPath,
    RunOptions,
    SamplingOptions,
    cluster_option,
    connected,
    count_option,
    one_label,
    run_options,
    sampling_options,
)
from .output import add_row, echo, new_table, print_json, print_table
from .outputs import check_output
from .progress import resumable, stages
from .sources import Training, image_options, locality_of, open_denoiser, open_training, parse_label

if TYPE_CHECKING:
    from patchindex import Denoiser, ImageSource
    from patchindex.networks import Network
    from patchindex.study.theory_table import Run

FILES = (
    *("table.md", "table.csv", "images.csv", "trajectory.csv", "results.json"),
    *("scatter.png", "curves.png", "images.png"),
)
JOINED = ("table.md", "table.csv", "scatter.png", "trajectories.png")
SIZES = ("network_steps", "along", "noised")  # options that are attributes of `TheoryOptions`
MACHINES = ("LS", "IS", "wiener")  # beside the machine of the store


@click.command(cls=Computing, short_help="Compare denoisers with a trained network.")
@click.argument("source")
@click.option(
    "--network",
    "network_path",
    required=True,
    metavar="RUN",
    help="Folder that `patchindex train` wrote, or a diffusers folder.",
)
@click.option("-o", "--output", required=True, type=LocalPath(), help="Folder for the files.")
@click.option(
    "--machines",
    metavar="NAME[:OPTION=VALUE,...],...",
    help="Denoisers to compare; the first is compared with each of the others.  "
    f"[default: the store's machine (bbELS without an index), {', '.join(MACHINES)}]",
)
@count_option("-n", "Number of images.", 100)
@count_option("--network-steps", "Grid points for the network.", 150, least=2)
@count_option("--along", "Compare posterior means along the trajectories of N images.", 10, least=0)
@count_option("--noised", "Compare posterior means of N training images, noised.", 10, least=0)
@click.option(
    "--held-out",
    metavar="SOURCE",
    help="Compare posterior means of held-out images, noised. Images of another size are resized, and images "
    "that are in the store are left out.",
)
@click.option(
    "--estimator",
    metavar="NAME[:OPTION=VALUE,...]",
    help="Estimator of the store's machine.  [default: auto, or exact for a store without an index]",
)
@click.option("--name", help="Name of the row in the table.  [default: data set and architecture]")
@click.option("--other-images", is_flag=True, help="Accept a network that was trained on other images.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run; images and machines may be added.")
@click.option(
    "--reuse",
    type=LocalPath(),
    metavar="DIR",
    help="Take images from DIR, the output of a comparison with another network of the same training images, "
    "for denoisers with the same settings.",
)
@cluster_option("Compute batches")
@sampling_options(batch_size=16)
@image_options
@run_options("Seed of the noise. Equal seeds give equal images, up to rounding.", several_devices=True)
def compare(
    source: str,
    network_path: str,
    output: Path,
    machines: str | None,
    n: int,
    held_out: str | None,
    estimator: str | None,
    name: str | None,
    other_images: bool,
    resume: bool,
    reuse: Path | None,
    cluster: str | None,
    options: SamplingOptions,
    run: RunOptions,
    **values: Any,
) -> None:
    """Compare a network with analytic denoisers of its training images, from the same noise.

    SOURCE is a store, or images as `build` takes them. Denoisers other than the store's machine are computed
    exactly, from all images. For a network with L labels, image i has the label i mod L, and denoisers use
    the training images of the label.

    Writes table.md and table.csv (a row for the network, a column per denoiser), images.csv (r and R2 of each
    final image), trajectory.csv (r, R2 and MSE of posterior means at each time), results.json (settings,
    versions, times), scatter.png, curves.png and images.png.

    \b
    Columns of the table that it prints:
      r             Pearson's r of final images with the network's, median over images; the paper's "r^2"
      R2            coefficient of determination, median over images
      first better  share of images where the first denoiser has a larger r than the denoiser of the row
      difference    r of the first denoiser minus r of the denoiser of the row, median over images
      s / image     seconds that the denoiser takes for an image

    \b
    Examples:
      patchindex compare fashion.zarr --network runs/fashion -o compared
      patchindex compare data/fashion_mnist_6k.npz --network data/fashion_resnet -o compared -n 10 \\
          --locality fashion-mnist-resnet-zeros --resize-locality
      patchindex compare fashion.zarr --network runs/fashion -o compared -n 20 \\
          --machines bbELS,LS,IS,wiener,nearest --held-out data/fashion_mnist_6k.npz --resume
      patchindex compare fashion.zarr --network runs/fashion -o compared --batch-size 4 --cluster local
    """
    import patchindex
    from patchindex.figures import figure_class
    from patchindex.study import TheoryOptions
    from patchindex.study.parts import PARTS

    check_output(
        output,
        FILES,
        overwrite=options.overwrite or (resume and (output / PARTS).is_dir()),
        sources=[source, held_out],
        inputs=[network_path, values["labels"]],
    )
    figure_class()  # matplotlib is optional: without it, fail before any work
    network = patchindex.networks.open_network(network_path, device=run.device, threads=run.threads)
    sizes = {name: values.pop(name) for name in SIZES}
    training = open_training(source, values, run)
    remedy: Sequence[str | Option] = [
        "give its images with the same options, or ",
        Option("other_images", True),
    ]
    if not other_images:
        images = training.images if training.index is None else training.index.training
        network.check_images(images, remedy=remedy)
    texts = split_machines(machines or ",".join(dict.fromkeys((_machine(training), *MACHINES))))
    schedules = (locality_of(text, options, training, network.noise, "machines") for text in texts)
    schedule = next((each for each in schedules if each is not None), None)
    denoisers = _open_all(texts, training, network, run, schedule, estimator)
    theory_options = TheoryOptions(
        steps=options.steps,
        labels="auto" if not options.label else parse_label(one_label(options.label), training),
        seed=run.seed,
        batch_size=options.batch_size,
        **sizes,
    )
    with resumable(output), stages() as progress, connected(cluster) as client:
        found = patchindex.study.theory(
            network,
            denoisers,
            n,
            options=theory_options,
            held_out=None if held_out is None else _open_held_out(held_out, training),
            folder=output,
            resume=resume,
            overwrite=options.overwrite,
            reuse=reuse,
            progress=progress,
            client=client,
        )
    found.write(output, name or _row_name(network, training), _network_record(network))
    record_in(output / "results.json")
    summary = found.summary()
    if run.as_json:
        files = [str(output / file) for file in FILES if (output / file).exists()]
        print_json({"summary": summary, "seconds": found.seconds(), "files": files})
        return
    _print_summary(summary)
    echo(f"written: {output / 'table.md'}, {output / 'images.png'}")


@click.command(name="compare-table", short_help="Join comparisons into one table.")
@click.argument("folders", nargs=-1, required=True, metavar="DIR...")
@click.option("-o", "--output", required=True, type=LocalPath(), help="Folder for the files.")
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier run.")
def compare_table(folders: Sequence[str], output: Path, overwrite: bool) -> None:
    """Join the results of `patchindex compare` in some folders into one table, a row for each folder.

    Writes table.md, table.csv, scatter.png and trajectories.png (r of posterior means along the trajectory of
    each network), and prints table.md.

    \b
    Example:
      patchindex compare-table compared/mnist compared/fashion -o compared
    """
    from patchindex.study.plots_theory import plot_scatter, plot_trajectories
    from patchindex.study.theory_table import markdown, read_run, write_tables

    check_output(output, JOINED, overwrite=overwrite)
    runs: list[Run] = [read_run(folder) for folder in folders]
    figures = {"scatter": plot_scatter(runs), "trajectories": plot_trajectories(runs)}
    output.mkdir(parents=True, exist_ok=True)
    write_tables(output, runs)
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(output / f"{name}.png", dpi=120)
    echo(markdown(runs))


def split_machines(text: str) -> list[str]:
    """Split denoisers at commas, but not at commas between options.

    >>> split_machines("bbELS:estimator=exact,tolerance=0.01, LS,IS")
    ['bbELS:estimator=exact,tolerance=0.01', 'LS', 'IS']
    """
    texts: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        if texts and re.match(r"\w+\s*=", part):
            texts[-1] += f",{part}"
        else:
            texts.append(part)
    return texts


def _open_all(
    texts: Sequence[str],
    training: Training,
    network: Network,
    run: RunOptions,
    schedule: Any,
    estimator: str | None,
) -> dict[str, Denoiser]:
    """Return the denoisers by their texts."""
    from patchindex.estimators import parse_estimator

    found: dict[str, Denoiser] = {}
    if estimator is not None and texts and all(_name(text) != _machine(training).lower() for text in texts):
        raise InputError(
            f"{_machine(training)} is not among the denoisers",
            parameter="estimator",
            remedy=f"write {texts[0]}:estimator={estimator}, or leave it out",
        )
    for text in texts:
        if text in found:
            raise InputError(f"{text} is given twice", parameter="machines", remedy="give it once")
        settings: dict[str, Any] = {"noise": network.noise}
        own = _name(text) == _machine(training).lower() and "estimator=" not in text
        if estimator is not None and own:
            settings["estimator"], inside = parse_estimator(estimator)
            settings |= inside
        found[text] = open_denoiser(
            text, training, run, locality=schedule, settings=settings, parameter="machines"
        )
    return found


def _name(text: str) -> str:
    return text.partition(":")[0].strip().lower()


def _machine(training: Training) -> str:
    """Return the score machine of the store; bbELS for images, as networks are mostly padded with zeros."""
    return "bbELS" if training.index is None else training.index.machine


def _open_held_out(source: str, training: Training) -> ImageSource:
    """Open held-out images in the size and the colours of the training images."""
    import patchindex

    images = patchindex.open_images(source)
    height, width = training.size
    gray = training.images.shape[3] == 1 < images.shape[3]
    if images.shape[1:3] == (height, width) and not gray:
        return images
    return patchindex.open_images(
        source, crop="square" if height == width else None, resize=(height, width), grayscale=gray
    )


def _row_name(network: Network, training: Training) -> str:
    """Return the data set and the architecture, or the name of the network."""
    data = Path(training.images.name).stem
    architecture = (network.run or {}).get("architecture")
    if architecture is None:
        return f"{data}, {Path(str(network.name)).name}"
    padding = architecture.get("padding")
    return f"{data}, {architecture['name']}" + (f" ({padding})" if padding else "")


def _network_record(network: Network) -> dict[str, Any]:
    """Return the parameters, losses, steps and minutes of a network, where they are known."""
    run = network.run or {}
    names = ("parameters", "loss", "validation_loss", "step", "epochs")
    facts = {name: run[name] for name in names if run.get(name) is not None}
    if run.get("seconds") is not None:
        facts["minutes"] = round(run["seconds"] / 60, 1)
    return facts


def _print_summary(summary: Sequence[dict[str, Any]]) -> None:
    """Print a row per denoiser, with a column of r for each number of network steps."""
    grids = list(dict.fromkeys(row["network_steps"] for row in summary))
    headings = [f"r, {steps} steps" for steps in grids]
    table = new_table(["denoiser", *headings, "R2", "first better", "difference", "s / image"])
    table.columns[0].justify, table.columns[0].overflow = "left", "fold"
    for row in summary:
        if row["network_steps"] != grids[0]:
            continue
        mine = [other for other in summary if other["denoiser"] == row["denoiser"]]
        r = [f"{r['pearson_r']:.3f} [{r['pearson_r_low']:.3f}, {r['pearson_r_high']:.3f}]" for r in mine]
        better, difference = "", ""
        if row["share"] is not None:
            better = f"{100 * row['share']:.0f} %"
            difference = (
                f"{row['difference']:+.3f} [{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]"
            )
        add_row(
            table,
            row["denoiser"],
            *r,
            "-" if row["r2"] is None else f"{row['r2']:.3f}",
            better,
            difference,
            f"{row['seconds']:.2f}",
        )
    print_table(table)
