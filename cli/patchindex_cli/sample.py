"""`patchindex sample`."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import patchindex
from patchindex.denoisers.score_machine import ScoreMachine
from patchindex.errors import InputError, SourceNotFoundError
from patchindex.estimators import ESTIMATORS
from patchindex.exact import load_kernel
from patchindex.images.npz import read_arrays
from patchindex.index import open_index
from patchindex.runtime import load_faiss
from patchindex.sampling.samplers import SAMPLERS, SampleResult
from patchindex.sampling.samplers import sample as draw

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
)
from .pictures import image_grid
from .progress import stages
from .words import counted

__all__ = ["sample"]

FILES = ("grid.png", "samples.npz", "samples.json")


@click.command()
@click.argument("store", type=StorePath())
@click.option("-n", type=click.IntRange(1), help="How many images.  [default: 16, or as many as in --x-t]")
@click.option("-o", "--output", required=True, type=LocalPath(), help="Folder for the files.")
@click.option(
    "--estimator", type=click.Choice(list(ESTIMATORS)), help="[default: auto where there is an index]"
)
@click.option("--tolerance", type=float, help="auto: standard error of a pixel.  [default: 0.01]")
@click.option(
    "--candidates",
    type=int,
    help="Patches retrieved for a pixel.  [default: auto: by the operating curve; topk: 256]",
)
@click.option(
    "--probes",
    type=int,
    help="Inverted lists scanned for a pixel.  [default: by the store's operating curve]",
)
@click.option(
    "--quality",
    type=float,
    help="topk: share of what as many of the heaviest patches weigh.  [default: 0.98]",
)
@locality_option("Locality schedule, in place of the store's own.")
@click.option(
    "--nearest-scales", is_flag=True, help="Move the schedule to the nearest scales that the store has."
)
@label_option("Draw from training images of this label only: its number or name.")
@click.option(
    "--x-t", type=click.Path(path_type=Path), help="Noise to start from: .npy, or .npz with key x_T."
)
@click.option(
    "--steps",
    type=click.IntRange(2),
    default=20,
    show_default=True,
    help="Steps of the time grid; one less is taken.",
)
@click.option("--sampler", type=click.Choice(list(SAMPLERS)), default="ddim", show_default=True)
@click.option(
    "--batch-size", type=click.IntRange(1), default=16, show_default=True, help="Images drawn together."
)
@click.option("--overwrite", is_flag=True, help="Replace the files of an earlier run.")
@common
def sample(
    store: Path | str,
    n: int | None,
    output: Path,
    estimator: str | None,
    tolerance: float | None,
    candidates: int | None,
    probes: int | None,
    quality: float | None,
    locality: str | None,
    nearest_scales: bool,
    label: str | None,
    x_t: Path | None,
    steps: int,
    sampler: str,
    batch_size: int,
    overwrite: bool,
    seed: int,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Draw images from a STORE.

    Writes grid.png, samples.npz (images, x_T, labels, settings) and samples.json (settings, versions,
    fingerprint of the store, timings) to the output folder.

    \b
    Examples:
      patchindex sample fashion.zarr -n 16 -o samples
      patchindex sample fashion.zarr -n 4 -o bags --label 8 --estimator exact --seed 1
      patchindex sample cifar.zarr -n 8 -o out --locality cifar10-resnet-circular --nearest-scales
    """
    check_output(output, FILES, overwrite)
    index = open_index(store, device=device)
    schedule = parse_locality(locality) or index.locality
    if schedule is None and index.machine != "IS":
        raise InputError(
            "the store has no schedule of its own", where="--locality", remedy="give a preset or scales"
        )
    if schedule is not None and nearest_scales and index.scales:
        schedule = schedule.nearest(index.scales)
    options: dict[str, Any] = {
        name: value
        for name, value in (
            ("tolerance", tolerance),
            ("candidates", candidates),
            ("probes", probes),
            ("quality", quality),
        )
        if value is not None
    }
    machine = ScoreMachine(
        index, estimator=estimator, locality=schedule, label=parse_label(label, index), device=device,
        threads=threads, **options,
    )  # fmt: skip
    noise = None if x_t is None else _read_noise(x_t)
    if noise is None and n is None:
        n = 16
    with stages() as progress:
        compiling = None
        if machine.estimator in ("exact", "auto") and machine.device.type == "cpu":
            progress("loading the kernel", 0, 1)  # by itself, so that its time is not taken for the drawing's
            compiling = load_kernel()
            progress("loading the kernel", 1, 1)
        start = time.perf_counter()
        result = draw(
            machine,
            n,
            steps,
            sampler,
            seed,
            noise,
            batch_size=batch_size,
            progress=lambda share: progress("sampling", share, 1.0),
        )
    seconds = round(time.perf_counter() - start, 3)
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "store": {"path": str(store), "fingerprint": index.attributes["fingerprint"]},
        "settings": result.settings,
        "versions": {
            "patchindex": patchindex.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "faiss": getattr(load_faiss(), "__version__", None),
        },
        "seconds": seconds,
        "compile_seconds": None if compiling is None else round(compiling, 3),
        "steps": result.steps,
    }
    _write(output, result, record)
    if as_json:
        print_json({**record, "files": [str(output / name) for name in FILES]})
    else:
        click.echo(f"{output / FILES[0]}: {counted(len(result.images), 'image')} in {seconds:.1f} s")
        if compiling is not None:
            click.echo(f"(and {compiling:.1f} s once, to compile the exact kernel for this processor)")


def _read_noise(path: Path) -> np.ndarray:
    """Read the noise to start from."""
    if not path.is_file():
        raise SourceNotFoundError("no such file", where=path, remedy="check --x-t")
    if path.suffix == ".npz":
        return read_arrays(path, required="x_T")["x_T"]
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise InputError(
            f"cannot be read ({error})", where=path, remedy="give .npy, or .npz with key x_T"
        ) from None


def _write(output: Path, result: SampleResult, record: dict[str, Any]) -> None:
    """Write all files beside the folder first, so that what is in it is whole."""
    output.mkdir(parents=True, exist_ok=True)
    count = len(result.images)
    label = result.settings["label"]
    with tempfile.TemporaryDirectory(dir=output, prefix=".writing-") as scratch:
        folder = Path(scratch)
        image_grid(result.images).save(folder / "grid.png")
        np.savez_compressed(
            folder / "samples.npz",
            images=result.images.cpu().numpy(),
            x_T=result.x_T.cpu().numpy(),
            labels=np.full(count, -1 if label is None else label),  # -1: drawn from all labels
            settings=json.dumps(result.settings),
        )
        (folder / "samples.json").write_text(json.dumps(record, indent=2, default=str) + "\n")
        for name in FILES:
            shutil.move(os.fspath(folder / name), output / name)
