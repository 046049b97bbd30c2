"""Reports of `patchindex info`: an unfinished build, and the picture of a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchindex.errors import InputError, Option

from .output import count, echo
from .outputs import check_output

if TYPE_CHECKING:
    from patchindex.build import ScaleState, UnfinishedBuild

PICTURES = (".png", ".pdf", ".svg")


def print_unfinished(store: Path | str, build: UnfinishedBuild) -> None:
    """Print the stages of an unfinished build that are done, and how to go on."""
    state = "runs now" if build.running else "is unfinished"
    done = sum(scale.stage == "done" for scale in build.scales)
    echo(f"{build.folder}: {build.kind} of {count(build.images, 'image')}, with {build.source}, {state}")
    echo(f"images: {'written' if build.images_written else 'not all written'}")
    echo(f"scales: {done} of {len(build.scales)} done")
    for scale in build.scales:
        echo(f"  k = {scale.k}: {_stage(scale)}")
    if build.running:
        return
    command = "build SOURCE -o" if build.kind == "build" else "append"
    end = "with the options of the build" if build.kind == "build" else "SOURCE with the same images"
    echo(f"continue: patchindex {command} {store} --resume, {end}")


def _stage(scale: ScaleState) -> str:
    if scale.shards is None:
        return "done" if scale.stage == "done" else "not trained"
    return f"trained; {scale.encoded:,} of {count(scale.shards, 'shard')} encoded; not merged"


def save_plot(found: dict[str, Any], file: Path, store: Path | str) -> None:
    """Draw the contents of a store, as `PatchIndex.info` returns them, and write the picture."""
    from patchindex.store.atomic import atomic_write
    from patchindex.study.plots_store import plot_store

    kind = file.suffix.lower()
    if kind not in PICTURES:
        raise InputError(
            f"{file.name!r} is no name of a picture",
            parameter="plot",
            remedy=f"end it in {', '.join(PICTURES)}",
        )
    if file.exists():
        raise InputError("exists already", where=file, remedy="use another path, or remove it")
    if not found["indexes"]:
        raise InputError(
            f"a store of {found['machine']} has no index", where=store, remedy=["leave out ", Option("plot")]
        )
    check_output(file.parent, inputs=[store])
    figure = plot_store(found)
    with atomic_write(file, durable=False) as out:
        figure.savefig(out, format=kind[1:], dpi=150)
