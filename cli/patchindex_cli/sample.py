"""`patchindex sample`."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchindex.errors import InputError

from .computing import Computing
from .conditions import Conditions, condition_options
from .config import record_of
from .drawing import Drawing, OutputOptions, cost_of, files_in_the_way, output_options
from .options import (
    LocalPath,
    NameIn,
    RunOptions,
    SamplingOptions,
    cluster_option,
    connected,
    count_option,
    run_options,
    sampling_options,
    store_path,
)
from .output import count, echo, print_json
from .outputs import check_output
from .progress import stages
from .repeat import check_files, check_settings, check_store, report_store, report_versions
from .sources import (
    Training,
    fingerprint_of,
    image_options,
    locality_of,
    open_denoiser,
    open_training,
    parse_label,
    report_exact,
    store_record,
)

if TYPE_CHECKING:
    import numpy as np

    from patchindex import Denoiser
    from patchindex.runtime import Progress


@click.command(cls=Computing, short_help="Draw images from a store.")
@click.argument("store", type=store_path)
@count_option("-n", "Number of images.  [default: 16, or as many as in --x-t]")
@click.option("-o", "--output", required=True, type=LocalPath(), help="Folder for the files.")
@click.option(
    "--machine",
    metavar="NAME[:OPTION=VALUE,...]",
    help="Denoiser: a score machine (IS, LS, ELS, bbELS), or wiener, nearest, ..., with its options, such as "
    "wiener:circulant=true. Other denoisers than the store's own machine are computed from all its images.  "
    "[default: the store's machine; ELS for images]",
)
@click.option(
    "--estimator",
    metavar="NAME[:OPTION=VALUE,...]",
    help="Of a score machine: exact, topk or auto, with options: topk:candidates=512,quality=0.9 "
    "or auto:candidates=2048,probes=1024.  [default: auto, or exact without an index]",
)
@click.option(
    "--tolerance",
    type=float,
    metavar="X",
    help="auto: largest standard error of a pixel of images in [-1, 1], at most 2.  [default: 0.01]",
)
@click.option(
    "--nearest-scales",
    is_flag=True,
    help="Move each entry of the locality schedule to the nearest scale of the store.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory for temporary arrays on each device, such as 500M.  [default: 256M, or 1G for wiener; on a "
    "GPU 0.4 of what is free]",
)
@click.option(
    "--noise",
    type=NameIn("patchindex.schedules", "NOISE_SCHEDULES"),
    default="cosine",
    show_default=True,
    help="Noise schedule: cosine (the paper's), squaredcos, linear, flow or edm.",
)
@click.option(
    "--sampler",
    type=NameIn("patchindex.sampling", "SAMPLERS"),
    default="ddim",
    show_default=True,
    help="ddim, ddpm, euler, heun or dpmpp.",
)
@click.option(
    "--spacing",
    type=NameIn("patchindex.sampling", "SPACINGS"),
    default="uniform",
    show_default=True,
    help="Spacing of the times: uniform (the paper's grid), karras or log-snr.",
)
@condition_options
@output_options
@cluster_option("Draw batches")
@sampling_options(
    16, "Use the training images of this label only. Given again: -n images, and a row of the grid, for each."
)
@image_options
@run_options("Seed of the noise. Equal seeds give equal images, up to rounding.", several_devices=True)
def sample(
    store: Path | str,
    n: int | None,
    output: Path,
    machine: str | None,
    estimator: str | None,
    tolerance: float | None,
    nearest_scales: bool,
    memory: str | None,
    noise: str,
    sampler: str,
    spacing: str,
    conditions: Conditions,
    files: OutputOptions,
    cluster: str | None,
    options: SamplingOptions,
    run: RunOptions,
    **image: Any,
) -> None:
    """Draw images from a STORE, or from images without one.

    Images are any source that `build` takes. Without an index, every patch is compared exactly by default,
    which takes long for many images; a line on stderr says from how many images on an index can pay. There,
    `--estimator auto` samples the training images, from 1 024 images on.

    Writes grid.png, samples.npz (images, x_T, labels, settings) and samples.json (settings, versions,
    fingerprint of the store, times) to the output folder; with --save-trajectory also trajectory.zarr (noisy
    images, posterior means, standard errors and ESS of each step) and filmstrip.png; with --png also a folder
    of single images.

    Finished images are kept until these files are written: an interrupted run goes on with --resume, draws
    the images that are missing, and gives the same images. The images of a batch are finished together; with
    --resume, --batch-size may differ.

    \b
    Examples:
      patchindex sample fashion.zarr -n 16 -o samples
      patchindex sample photos/ -n 4 -o samples --resize 32 --limit 500
      patchindex sample fashion.zarr -n 4 -o bags --label 8 --estimator exact --seed 1
      patchindex sample fashion.zarr -n 8 -o rows --label 0 --label 1 --label 8
      patchindex sample fashion.zarr -n 8 -o out --estimator topk:candidates=512
      patchindex sample fashion.zarr -n 8 -o gaussian --machine wiener
      patchindex sample cifar.zarr -n 8 -o out --locality cifar10-resnet-circular --nearest-scales
      patchindex sample fashion.zarr -n 4 -o heun --sampler heun --spacing karras --steps 12 --noise edm
      patchindex sample fashion.zarr -n 64 -o many --batch-size 4 --cluster tcp://host:8786
      patchindex sample fashion.zarr -n 64 -o steps --save-trajectory --batch-size 8 --resume
      patchindex sample fashion.zarr -n 4 -o varied --start photo.png --strength 0.5
      patchindex sample fashion.zarr -n 4 -o completed --known photo.png --mask left-half.png
      patchindex sample fashion.zarr -o again --x-t samples/samples.npz --columns 8
      patchindex sample --config samples/samples.json -o again
    """
    import patchindex.sampling

    conditions.check()
    check_output(
        output,
        files_in_the_way(output, resume=files.resume),
        overwrite=options.overwrite,
        sources=[store, conditions.start, conditions.known],
        inputs=[conditions.x_t, conditions.mask, image["labels"]],
    )
    training = open_training(str(store), image, run)
    index = training.index
    if nearest_scales and (index is None or not index.scales):
        raise InputError("needs a store with an index", parameter="nearest_scales", remedy="leave it out")
    fingerprint = fingerprint_of(training)
    check_store(store, fingerprint, accept=conditions.other_inputs)
    text = machine or ("ELS" if index is None else index.machine)
    settings = _score_settings(text, options, estimator, tolerance, nearest_scales)
    settings |= {"memory": memory, "noise": noise}
    schedule = locality_of(text, options, training, noise)
    if schedule is not None and nearest_scales and index is not None:
        schedule = schedule.nearest(index.scales)
    labels = [parse_label(label, training) for label in options.label] or [None]
    denoiser = open_denoiser(text, training, run, locality=schedule, label=labels[0], settings=settings)
    if denoiser.settings.get("estimator", "exact") == "exact":
        report_exact(text, training)
    arguments, fingerprints = conditions.read(denoiser)
    check_files(fingerprints, accept=conditions.other_inputs)
    per_label = _images_per_label(n, arguments.get("x_T"), len(labels))
    sampling = patchindex.sampling.Sampling(
        denoiser, per_label * len(labels), options.steps, sampler, run.seed, **arguments, spacing=spacing,
        trajectory=files.save_trajectory, batch_size=options.batch_size,
        label=None if len(labels) == 1 else [label for label in labels for _ in range(per_label)],
    )  # fmt: skip
    drawing = Drawing(output, sampling, {"store": fingerprint, **fingerprints}, png=files.png)
    check_settings(drawing.settings, accept=conditions.other_inputs)
    kept = store_record(store, training, [denoiser])
    report_store(kept, ["operating_curves"])
    versions = _versions()
    report_versions(versions)
    with drawing.hold():
        if files.resume and (record := drawing.finished_record(overwrite=options.overwrite)) is not None:
            echo(f"{output}: finished already", err=run.as_json)
            if run.as_json:
                print_json({**record, "files": [str(path) for path in drawing.files]})
            return
        parts = drawing.open_parts(resume=files.resume, overwrite=options.overwrite)
        with stages() as progress, connected(cluster) as client:
            compile_seconds = _load_kernels(denoiser, progress)
            progress("sampling", 0, 1)
            start = time.perf_counter()
            result = drawing.draw(parts, progress, client)
        seconds = time.perf_counter() - start
        record = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": record_of(click.get_current_context()),
            "store": kept,
            "settings": drawing.settings,
            "versions": versions,
            "seconds": round(seconds, 3),
            "compile_seconds": None if compile_seconds is None else round(compile_seconds, 3),
            "steps": result.steps,
        }
        columns = files.columns or (per_label if len(labels) > 1 else None)
        names = _row_names(labels, training, columns, per_label)
        written = drawing.write(result, record, columns, names)
    if run.as_json:
        print_json({**record, "files": [str(path) for path in written]})
        return
    images = len(result.images)
    echo(f"{output}: {count(images, 'image')} in {seconds:.1f} s, {seconds / images:.2f} s per image")
    echo(cost_of(result.steps, denoiser.shape))
    if compile_seconds is not None:
        echo(f"compiled the exact kernels for this machine in {compile_seconds:.1f} s (only once)")
    echo(f"written: {', '.join(map(str, written))}")


def _images_per_label(n: int | None, x_T: np.ndarray | None, labels: int) -> int:
    """Return the number of images per label: -n, or the number of noise images divided by the labels."""
    if x_T is None:
        return 16 if n is None else n
    per_label, rest = divmod(len(x_T), labels)
    if rest or (n is not None and n != per_label):
        if n is None:
            wanted, remedy = f"{labels} labels", f"give noise for a multiple of {labels} images"
        else:
            wanted = f"{count(labels, 'label')} with {count(n, 'image')} each"
            remedy = f"give noise for {count(n * labels, 'image')}" if rest else "leave -n out"
        raise InputError(
            f"has noise for {count(len(x_T), 'image')}, not for {wanted}", parameter="x_t", remedy=remedy
        )
    return per_label


def _row_names(
    labels: Sequence[int | None], training: Training, columns: int | None, per_label: int
) -> list[str]:
    """Return the name of the label that begins in each row of the grid, '' for other rows.

    A grid of one label, or with several labels in a row, has no names.
    """
    if len(labels) == 1 or columns is None or per_label % columns:
        return []
    known = dict(enumerate(training.label_names))
    names = [f"label {label}" if label is None else known.get(label, f"label {label}") for label in labels]
    return [name for label in names for name in (label, *[""] * (per_label // columns - 1))]


def _score_settings(
    text: str, options: SamplingOptions, estimator: str | None, tolerance: float | None, nearest_scales: bool
) -> dict[str, Any]:
    """Return the estimator of a score machine and its options; refuse options that the denoiser lacks."""
    from patchindex.denoisers import parse_denoiser, takes_locality
    from patchindex.estimators import parse_estimator
    from patchindex.geometry import MACHINES

    name, own = parse_denoiser(text)
    given = {"estimator": estimator, "tolerance": tolerance} if name not in MACHINES else {}
    unused = {"locality": options.locality, "resize_locality": options.resize_locality}
    for parameter, asked in {**unused, "nearest_scales": nearest_scales}.items():
        if asked and not takes_locality(name):
            echo(f"{name} has no locality: --{parameter.replace('_', '-')} is not used", err=True)
    for parameter, value in given.items():
        if value is not None and value is not False:
            raise InputError(f"{name} has no such option", parameter=parameter, remedy="leave it out")
    settings: dict[str, Any] = {}
    if estimator is not None:
        settings["estimator"], inside = parse_estimator(estimator)
        settings |= inside
    if tolerance is not None:
        if "tolerance" in settings:
            raise InputError("is also in --estimator", parameter="tolerance", remedy="give it once")
        settings["tolerance"] = tolerance
    for option in settings.keys() & own.keys():
        raise InputError("is also in --machine", parameter=option, remedy="give it once")
    return settings


def _load_kernels(denoiser: Denoiser, progress: Progress) -> float | None:
    """Load the exact kernels, so that the time of sampling has no compilation; return the seconds of one."""
    from patchindex.denoisers import ScoreMachine
    from patchindex.exact import load_kernel

    if not isinstance(denoiser, ScoreMachine) or denoiser.device.type != "cpu":
        return None
    if denoiser.estimator not in ("exact", "auto"):
        return None
    progress("loading kernels", 0, 1)
    seconds = load_kernel()
    progress("loading kernels", 1, 1)
    return seconds


def _versions() -> dict[str, str | None]:
    from patchindex.runtime import load_faiss

    versions: dict[str, str | None] = {name: version(name) for name in ("patchindex", "torch", "numpy")}
    faiss = getattr(load_faiss(), "__version__", None)
    return {**versions, "python": platform.python_version(), "faiss": faiss}
