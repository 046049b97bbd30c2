"""`patchindex explain`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchindex.errors import InputError, Option, SourceNotFoundError
from patchindex.schedules import LocalitySchedule

from .computing import Computing
from .config import record_of
from .options import LocalPath, RunOptions, count_option, json_option, store_path, threads_option
from .output import add_row, echo, new_table, print_json, print_table
from .outputs import check_output
from .progress import stages
from .sources import Training, fingerprint_of, open_denoiser, open_training

if TYPE_CHECKING:
    from torch import Tensor

    from patchindex import ScoreMachine
    from patchindex.explain import Explanation, Steps
    from patchindex.runtime import Progress

FILES = ("mosaic.png", "steps.png", "sources.png", "explain.json")
TRAJECTORY = "trajectory.zarr"
# The settings of a run that are read, with their types.
SETTINGS: dict[str, Any] = {
    **dict.fromkeys(("machine", "train_windows", "estimator", "noise", "sampler"), str),
    "locality": dict | None,
    "options": dict,
    "seed": int,
    "steps": int | list,
}
OPTIONS = ("tolerance", "probes", "candidates", "quality")  # of estimators
SHOWN = 4  # patches per pixel in the printed table


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
@count_option("--top", "Patches per pixel.", 8)
@click.option(
    "--all-steps",
    is_flag=True,
    help="Find the patches of all steps. The page has them; without --html, the last step is enough for the "
    "figures.",
)
@click.option("--exact", is_flag=True, help="Compare every patch, whatever estimator drew the samples.")
@click.option(
    "--tolerance",
    type=float,
    metavar="X",
    help="Difference up to which a pixel equals the centre of its nearest patch, in [-1, 1].  "
    "[default: 0.05]",
)
@click.option(
    "--store",
    type=store_path,
    metavar="STORE",
    help="Where the store is now, if it was moved after the samples were drawn.",
)
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier run.")
@threads_option
@click.option("--device", metavar="DEVICE", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
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
    tolerance: float | None,
    store: Path | str | None,
    overwrite: bool,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Name the training patches behind the pixels of a sample, and draw its mosaic.

    SAMPLES is the folder that `patchindex sample` wrote, or its samples.npz. The steps of the sample are read
    from trajectory.zarr in this folder, or else the sample is drawn again.

    Writes mosaic.png (pixels by training image and by segment), steps.png (ESS and entropy by step),
    sources.png (nearest training images, and the images that most pixels came from) and explain.json (the
    numbers of the figures). With --html also one page that shows the patches of each pixel at each step.

    \b
    Examples:
      patchindex explain samples -o explained
      patchindex explain samples -o explained --image 3 --pixels 14,9 --pixels 3,20
      patchindex explain samples -o explained --html explained/sample.html --beside network/samples.npz
      patchindex explain samples -o explained --all-steps --exact --top 16
      patchindex explain samples -o explained --store moved/fashion.zarr --tolerance 0.02 --overwrite
    """
    import patchindex
    from patchindex.explain.mosaic import TOLERANCE
    from patchindex.study.plots import figure_class

    outputs = [(output, FILES), *([] if html is None else [(html.parent, (html.name,))])]
    for place, names in outputs:
        check_output(place, names, overwrite=overwrite, inputs=[samples, beside])
    folder = samples.parent if samples.suffix == ".npz" else samples
    record = _read_record(folder)
    where = store or _recorded_store(record)
    for place, names in outputs:
        check_output(place, names, overwrite=overwrite, sources=[where])
    run = RunOptions(int(record["settings"]["seed"]), threads, device, as_json)
    figure_class()  # matplotlib is optional: without it, fail before any work
    training = open_training(str(where), {}, run)
    _check_fingerprint(training, record, where)
    machine = _machine(training, record, run)
    drawn = _read_sample(samples, folder, image, machine, record)
    chosen = [_parse_pixel(text, training.size) for text in pixels]
    second = None if beside is None else _read_beside(beside, image, machine)
    with patchindex.runtime.threads(threads), stages() as progress:
        steps = _steps(machine, drawn, folder, progress)
        found = patchindex.explain.explain_sample(
            machine.exact() if exact else machine,
            steps,
            top=top,
            last_only=not (all_steps or html is not None),
            tolerance=TOLERANCE if tolerance is None else tolerance,
            progress=progress,
        )
    more = {"pixels": found.pixels(chosen)} if chosen else {}
    files = _write(output, found, {**more, "command": record_of(click.get_current_context())})
    if html is not None:
        text = patchindex.explain.page_of(
            found, beside=second, beside_name=str(beside or ""), label_names=list(training.label_names)
        )
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(text, encoding="utf-8")
        files.append(str(html))
    if as_json:
        print_json({**found.as_dict(), **more, "files": files})
        return
    _print(found, chosen)
    echo(", ".join(file for file in files if not file.endswith(".json")))


@dataclass(frozen=True)
class _Drawn:
    """A sample as the files of its run have it."""

    number: int
    image: Tensor
    x_T: Tensor | None  # noqa: N815  (the field's name for it)
    label: int | None
    settings: dict[str, Any]


def _read_record(folder: Path) -> dict[str, Any]:
    """Read samples.json."""
    path = folder / "samples.json"
    if not path.is_file():
        raise SourceNotFoundError(
            "no such file", where=path, remedy="give the folder that patchindex sample wrote"
        )
    try:
        record = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"is no JSON ({error})", where=path, remedy="draw the samples again") from error
    settings = record.get("settings") if isinstance(record, dict) else None
    settings = settings if isinstance(settings, dict) else {}
    drawn_by = settings.get("denoiser")
    if isinstance(drawn_by, str) and drawn_by != "ScoreMachine":
        raise InputError(
            f"were drawn by {drawn_by}, which has no patches",
            parameter="samples",
            remedy="give samples of IS, LS, ELS or bbELS",
        )
    wrong = [name for name, kind in SETTINGS.items() if not isinstance(settings.get(name), kind)]
    if drawn_by is None or wrong or not isinstance(record.get("store") or {}, dict):
        missing = ", ".join(wrong) or "settings"
        raise InputError(f"is no record of samples: {missing}", where=path, remedy="draw the samples again")
    found: dict[str, Any] = record
    return found


def _recorded_store(record: dict[str, Any]) -> Path | str:
    """Return the store that the samples name."""
    path = (record.get("store") or {}).get("path")
    if path is None:
        raise InputError(
            "samples.json names no store", parameter="samples", remedy=["give ", Option("store")]
        )
    if "://" not in str(path) and not Path(path).exists():
        raise SourceNotFoundError(
            "the store of the samples is not there", where=path, remedy=["give ", Option("store")]
        )
    return store_path(str(path))


def _check_fingerprint(training: Training, record: dict[str, Any], where: Path | str) -> None:
    """Refuse a store that differs from the store of the samples."""
    expected = (record.get("store") or {}).get("fingerprint")
    found = fingerprint_of(training)
    if expected is not None and found != expected:
        raise InputError(
            f"is another store than the samples were drawn from (fingerprint {found}, not {expected})",
            where=where,
            remedy=["give the store of the samples with ", Option("store")],
        )


def _machine(training: Training, record: dict[str, Any], run: RunOptions) -> ScoreMachine:
    """Return the machine that drew the samples."""
    import patchindex

    settings = record["settings"]
    schedule = settings["locality"]
    options = {name: settings["options"][name] for name in OPTIONS if name in settings["options"]}
    made = open_denoiser(
        settings["machine"],
        training,
        run,
        locality=None if schedule is None else LocalitySchedule.from_dict(schedule),
        settings={
            "estimator": settings["estimator"],
            "train_windows": settings["train_windows"],
            "noise": settings["noise"],
            **options,
        },
        parameter="samples",
    )
    assert isinstance(made, patchindex.ScoreMachine)
    return made


def _read_sample(
    samples: Path, folder: Path, number: int, machine: ScoreMachine, record: dict[str, Any]
) -> _Drawn:
    """Read one sample, its noise and its label."""
    import torch

    from patchindex.images.npz import read_arrays

    path = samples if samples.suffix == ".npz" else folder / "samples.npz"
    if not path.is_file():
        raise SourceNotFoundError("no such file", where=path, remedy="draw the samples again")
    arrays = read_arrays(path, required="images", optional=("x_T", "labels"))
    images = arrays["images"]
    if images.ndim != 4 or tuple(images.shape[1:]) != machine.shape or images.dtype.kind != "f":
        raise InputError(
            f"has images of shape {tuple(images.shape[1:])} and type {images.dtype}, not floats of shape "
            f"{machine.shape}",
            where=path,
            remedy="give samples of this store",
        )
    if number >= len(images):
        raise InputError(
            f"there is no sample {number}", parameter="image", remedy=f"use 0 to {len(images) - 1}"
        )
    noise, label = arrays.get("x_T"), -1
    if noise is not None and (noise.shape != images.shape or noise.dtype.kind != "f"):
        raise InputError("has noise x_T of another shape", where=path, remedy="draw the samples again")
    labels = arrays.get("labels")
    if labels is not None and labels.shape == (len(images),) and labels.dtype.kind in "iu":
        label = int(labels[number])
    return _Drawn(
        number,
        torch.from_numpy(images[number].astype("float32")),
        None if noise is None else torch.from_numpy(noise[number].astype("float32")),
        None if label == -1 else label,
        record["settings"],
    )


def _steps(machine: ScoreMachine, drawn: _Drawn, folder: Path, progress: Progress) -> Steps:
    """Return the steps of a sample: from the saved trajectory, or drawn again."""
    from patchindex.explain import read_steps, redraw

    seed, trajectory = int(drawn.settings["seed"]), folder / TRAJECTORY
    if trajectory.exists():
        return read_steps(trajectory, drawn.number, drawn.image, seed=seed, label=drawn.label)
    if drawn.x_T is None:
        raise InputError(
            "has neither a trajectory nor the noise x_T", where=folder, remedy="draw the samples again"
        )
    if {"strength", "known_pixels"} & drawn.settings.keys():
        raise InputError(
            "samples of an image or of known pixels cannot be drawn again",
            parameter="samples",
            remedy=["draw the samples with ", Option("save_trajectory", True)],
        )
    echo(f"{folder} has no {TRAJECTORY}: sample {drawn.number} is drawn again", err=True)
    return redraw(
        machine,
        drawn.x_T,
        steps=drawn.settings["steps"],
        sampler=str(drawn.settings["sampler"]),
        spacing=str(drawn.settings.get("spacing", "uniform")),
        seed=seed,
        number=drawn.number,
        label=drawn.label,
        expected=drawn.image,
        progress=progress,
    )


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
    return images[number if len(images) > 1 else 0]


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


def _print(found: Explanation, pixels: list[tuple[int, int]]) -> None:
    numbers = found.mosaic.summary()
    single = numbers["single"]
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
        ("nearest image", f"{found.nearest_images[0]} at {found.nearest_distances[0]:.3f}"),
    ]
    table = new_table([f"t = {numbers['t']:.3g}", f"k = {numbers['k'] or 'whole image'}"])
    table.columns[0].justify = "left"
    for row in rows:
        add_row(table, *row)
    print_table(table)
    if not pixels:
        return
    patches = new_table(["pixel", "weight", "image", "row", "column", "label", "rest", "ESS"])
    last = found.pixels(pixels)
    t = float(found.steps.t[-1])
    for one in (row for row in last if row["t"] == t):
        for i, patch in enumerate(one["patches"][:SHOWN]):
            ess = "-" if one["ess"] is None else f"{one['ess']:.1f}"
            ends = (f"{one['rest']:.4f}", ess) if i == 0 else ("", "")
            name = f"{one['pixel'][0]},{one['pixel'][1]}" if i == 0 else ""
            label = "-" if patch["label"] < 0 else patch["label"]
            add_row(
                patches, name, f"{patch['weight']:.4f}", patch["image"], patch["y"], patch["x"], label, *ends
            )
    print_table(patches)
