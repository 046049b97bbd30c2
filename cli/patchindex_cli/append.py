"""`patchindex append`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import patchindex

from .options import LocalPath, building_options, common, image_options, open_source
from .running import run_build

__all__ = ["append"]


@click.command()
@click.argument("store", type=LocalPath())
@click.argument("source")
@image_options
@building_options
@common
def append(
    store: Path,
    source: str,
    memory: str | None,
    tune: bool,
    resume: bool,
    seed: int,
    threads: int | None,
    device: str,
    as_json: bool,
    **image: Any,
) -> None:
    """Add the images of SOURCE to a finished STORE, without training it anew.

    The new store is made beside the old one, which it replaces once it is whole. Prints how far the new
    patches are from what the lists were trained on. Give the same --crop, --resize, --grayscale and --labels
    as in the build.

    \b
    Example:
      patchindex append photos.zarr more-photos/ --crop square --resize 32 --labels folders
    """
    images = open_source(source, image)
    run_build(
        lambda progress: patchindex.append(
            store, images, threads=threads, memory=memory, device=device, resume=resume, progress=progress
        ),
        store, tune, seed, threads, as_json, appended=True,
    )  # fmt: skip
