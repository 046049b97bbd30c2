"""`patchindex sample`."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchindex.errors import InputError, SourceNotFoundError

from .options import (
    LocalPath,
    NameIn,
    RunOptions,
    SamplingOptions,
    count_option,
    run_options,
    sampling_options,
    store_path,
)
from .output import count, echo, print_json
from .outputs import check_output
from .progress import stages
from .sources import Training, choose_locality, open_denoiser, parse_label

if TYPE_CHECKING:
    import numpy as np

    from patchindex import Denoiser, SampleResult
    from patchindex.runtime import Progress

FILES = ("grid.png", "samples.npz", "samples.json")


@click.command(short_help="Draw images from a store.")
@click.argument("store", type=store_path)
@count_option("-n", "Number of images.  [default: 16, or as many as in --x-t]")
@click.option("-o", "--output", required=True, type=LocalPath(), help="Folder for the files.")
@click.option(
    "--machine",
    metavar="NAME[:OPTION=VALUE,...]",
    help="Denoiser: a score machine (IS, LS, ELS, bbELS), or wiener, nearest, ..., with its options, such as "
    "wiener:circulant=true. Other denoisers than the store's own machine are computed from all its images.  "
    "[default: the store's machine]",
)
@click.option(
    "--estimator",
    metavar="NAME[:OPTION=VALUE,...]",
    help="Of a score machine: exact, topk or auto, with options: topk:candidates=512,probes=64,quality=0.9 "
    "or auto:candidates=2048,probes=1024.  [default: auto, or exact for a store without an index]",
)
@click.option(
    "--tolerance",
    type=float,
    metavar="X",
    help="auto: largest standard error of a pixel, in [-1, 1].  [default: 0.01]",
)
@click.option(
    "--nearest-scales",
    is_flag=True,
    help="Move each entry of the locality schedule to the nearest scale of the store.",
)
@click.option(
    "--memory",
    metavar="SIZE",
    help="Memory for temporary arrays, such as 500M.  [default: 256M, or 1G for wiener]",
)
@click.option(
    "--x-t",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Noise to start from: .npy, or .npz with the key x_T.",
)
@click.option(
    "--sampler",
    type=NameIn("patchindex.sampling", "SAMPLERS"),
    default="ddim",
    show_default=True,
    help="Sampling method.",
)
@sampling_options(batch_size=16)
@run_options("Seed of the noise. Equal seeds give equal images, up to rounding.")
def sample(
    store: Path | str,
    n: int | None,
    output: Path,
    machine: str | None,
    estimator: str | None,
    tolerance: float | None,
    nearest_scales: bool,
    memory: str | None,
    x_t: Path | None,
    sampler: str,
    options: SamplingOptions,
    run: RunOptions,
) -> None:
    """Draw images from a STORE.

    Writes grid.png, samples.npz (images, x_T, labels, settings) and samples.json (settings, versions,
    fingerprint of the store, times) to the output folder.

    \b
    Examples:
      patchindex sample fashion.zarr -n 16 -o samples
      patchindex sample fashion.zarr -n 4 -o bags --label 8 --estimator exact --seed 1
      patchindex sample fashion.zarr -n 8 -o out --estimator topk:candidates=512
      patchindex sample fashion.zarr -n 8 -o gaussian --machine wiener
      patchindex sample cifar.zarr -n 8 -o out --locality cifar10-resnet-circular --nearest-scales
    """
    import patchindex

    check_output(output, FILES, overwrite=options.overwrite, sources=[store], inputs=[x_t])
    index = patchindex.open_index(store, device=run.device)
    text = machine or index.machine
    settings = _score_settings(text, options, estimator, tolerance, nearest_scales)
    settings["memory"] = memory
    training = Training.of(index)
    schedule = choose_locality(options, training)
    if schedule is not None and nearest_scales and index.scales:
        schedule = schedule.nearest(index.scales)
    label = parse_label(options.label, training)
    denoiser = open_denoiser(text, training, run, locality=schedule, label=label, settings=settings)
    noise = None if x_t is None else _read_noise(x_t)
    if noise is None and n is None:
        n = 16
    with stages() as progress:
        compile_seconds = _load_kernels(denoiser, progress)
        progress("sampling", 0, 1)
        start = time.perf_counter()
        result = patchindex.sample(
            denoiser,
            n,
            options.steps,
            sampler,
            run.seed,
            noise,
            batch_size=options.batch_size,
            progress=progress,
        )
    seconds = time.perf_counter() - start
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "store": {"path": str(store), "fingerprint": index.attributes["fingerprint"]},
        "settings": result.settings,
        "versions": _versions(),
        "seconds": round(seconds, 3),
        "compile_seconds": None if compile_seconds is None else round(compile_seconds, 3),
        "steps": result.steps,
    }
    _write(output, result, record)
    if run.as_json:
        print_json({**record, "files": [str(output / name) for name in FILES]})
        return
    echo(f"{output / FILES[0]}: {count(len(result.images), 'image')} in {seconds:.1f} s")
    if compile_seconds is not None:
        echo(f"compiled the exact kernels for this machine in {compile_seconds:.1f} s (only once)")


def _score_settings(
    text: str, options: SamplingOptions, estimator: str | None, tolerance: float | None, nearest_scales: bool
) -> dict[str, Any]:
    """Return the estimator of a score machine and its options; refuse options that the denoiser lacks."""
    from patchindex.denoisers import parse_denoiser, takes_locality
    from patchindex.estimators import parse_estimator
    from patchindex.geometry import MACHINES

    name, own = parse_denoiser(text)
    given = {"estimator": estimator, "tolerance": tolerance} if name not in MACHINES else {}
    if not takes_locality(name):
        given |= {"locality": options.locality, "resize_locality": options.resize_locality}
        given |= {"nearest_scales": nearest_scales}
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


def _read_noise(path: Path) -> np.ndarray:
    """Read the noise to start from."""
    import numpy as np

    from patchindex.images.npz import read_array, read_arrays

    if not path.is_file():
        raise SourceNotFoundError("no such file", where=path, remedy="check --x-t")
    if path.suffix == ".npz":
        return read_arrays(path, required="x_T")["x_T"]
    return np.array(read_array(path))


def _write(output: Path, result: SampleResult, record: dict[str, Any]) -> None:
    """Write all files to a temporary folder first, so that the output folder never has half a file."""
    import numpy as np

    from .pictures import image_grid

    output.mkdir(parents=True, exist_ok=True)
    label = result.settings["label"]
    with tempfile.TemporaryDirectory(dir=output, prefix=".writing-") as scratch:
        folder = Path(scratch)
        image_grid(result.images).save(folder / "grid.png")
        np.savez_compressed(
            folder / "samples.npz",
            images=result.images.cpu().numpy(),
            x_T=result.x_T.cpu().numpy(),
            labels=np.full(len(result.images), -1 if label is None else label),  # -1: all labels
            settings=json.dumps(result.settings),
        )
        (folder / "samples.json").write_text(json.dumps(record, indent=2, default=str) + "\n")
        for name in FILES:
            shutil.move(os.fspath(folder / name), output / name)
