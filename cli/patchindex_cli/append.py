"""`patchindex append`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .building import run_build
from .options import BuildOptions, LocalPath, RunOptions, build_options, run_options
from .sources import image_options, open_source


@click.command(short_help="Add images to a store.")
@click.argument("store", type=LocalPath())
@click.argument("source")
@image_options
@build_options
@run_options("Seed for the images that the estimators are tuned on.")
def append(store: Path, source: str, options: BuildOptions, run: RunOptions, **image: Any) -> None:
    """Add the images of SOURCE to a finished STORE; its lists are not trained again.

    The new store is written beside the old store and replaces it when it is complete. For each scale, a line
    says how much the new patches differ from the patches that the lists were trained on; beyond the limits,
    build the store again. Give the same --crop, --resize, --grayscale and --labels as in the build.

    \b
    Example:
      patchindex append photos.zarr more-photos/ --crop square --resize 32 --labels folders
    """
    import patchindex

    images = open_source(source, image)
    run_build(
        lambda progress: patchindex.append(
            store,
            images,
            threads=run.threads,
            memory=options.memory,
            device=run.device,
            resume=options.resume,
            progress=progress,
        ),
        store,
        options,
        run,
        appended=True,
    )
