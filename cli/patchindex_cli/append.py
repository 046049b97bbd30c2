"""`patchindex append`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .building import run_build
from .computing import Computing
from .options import BuildOptions, LocalPath, RunOptions, build_options, run_options
from .output import echo
from .sources import image_options, open_source


@click.command(cls=Computing, short_help="Add images to a store.")
@click.argument("store", type=LocalPath())
@click.argument("source")
@image_options
@build_options
@run_options("Seed for the images that the estimators are tuned on.")
def append(store: Path, source: str, options: BuildOptions, run: RunOptions, **image: Any) -> None:
    """Add the images of SOURCE to a finished STORE; its lists are not trained again.

    The new store is written beside the old store and replaces it when it is complete. For each scale, a line
    says how much the new patches differ from the patches that the lists were trained on; beyond the limits,
    build the store again. Another line counts new images that are equal to an image of the store or to
    another new image; they are added all the same.

    --crop, --resize, --grayscale and --labels are as in the build, unless you give them. Other values are
    taken when the images get the size and the channels of the store.

    \b
    Examples:
      patchindex append photos.zarr more-photos/
      patchindex append photos.zarr larger-photos/ --crop 300 --resize 32
    """
    import patchindex
    from patchindex.build import image_options_of

    kept = {name: value for name, value in image_options_of(store).items() if not image[name]}
    if kept:
        options_text = " ".join(map(_spell, kept.items()))
        echo(f"as in the build: {options_text}", err=True)
    images = open_source(source, image | kept)
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


def _spell(option: tuple[str, Any]) -> str:
    """Return an option of images as it is typed; a size of two numbers is one of Python only."""
    name, value = option
    if value is True:
        return f"--{name}"
    if isinstance(value, tuple):
        value = value[0] if value[0] == value[1] else " x ".join(map(str, value))
    return f"--{name} {value}"
