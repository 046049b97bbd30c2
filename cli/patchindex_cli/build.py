"""`patchindex build`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchindex.errors import InputError, Option

from .building import is_tuned, run_build, summary_of, untuned_scales
from .computing import Computing
from .dry_run import codes_of, report_clamped, report_plan
from .options import (
    BuildOptions,
    LocalPath,
    NameIn,
    RunOptions,
    build_options,
    cluster_option,
    connected,
    count_option,
    locality_option,
    parse_locality,
    parse_scales,
    resized_locality,
    run_options,
)
from .output import echo, print_json, shorten
from .outputs import check_output
from .sources import default_locality, image_options, open_source

if TYPE_CHECKING:
    from patchindex import PatchIndex
    from patchindex.runtime import Progress


@click.command(cls=Computing, short_help="Index all patches of a set of images.")
@click.argument("source", required=False)
@click.option("-o", "--output", required=True, type=LocalPath(), help="The store to write.")
@click.option(
    "--scales",
    metavar="K,K,...",
    help="Odd locality scales, such as 3,5,7.  [default: the scales of --locality]",
)
@locality_option(
    "Locality schedule that `sample` uses by default. If you also give --scales, each entry moves to the "
    "nearest of them.",
    otherwise="none with --scales; without them",
)
@click.option(
    "--machine",
    type=NameIn("patchindex.geometry", "MACHINES"),
    default="ELS",
    show_default=True,
    help="Score machine. It compares a pixel with training patches at all positions (ELS), at the same "
    "distance from the borders (bbELS), or at the same position (LS), or with whole images (IS).",
)
@click.option(
    "--train-windows",
    type=NameIn("patchindex.geometry", "TRAIN_WINDOWS"),
    default="valid",
    show_default=True,
    help="ELS: take training patches that lie inside the image (valid), or also patches that wrap around "
    "its borders (wrapped).",
)
@click.option(
    "--add-scales",
    metavar="K,K,...",
    help="Index more scales, such as 9,11, of the images in the store --output. Takes no SOURCE.",
)
@image_options
@count_option(
    "--pca-dims",
    "Size of a patch's code: principal components kept.  [default: by the lowest noise, at most 128]",
)
@count_option("--lists", "Inverted lists per scale.  [default: patches / 256, fewer if memory is short]")
@build_options
@click.option("--overwrite", is_flag=True, help="Replace an existing store once the new store is complete.")
@cluster_option("Build")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the patches, disk, memory and time that the build needs, and whether it fits. Build nothing.",
)
@count_option(
    "--assume-images",
    "With --dry-run: the images of SOURCE are a sample of this many images; sizes and times are scaled.",
)
@run_options("Seed for k-means and for the sample of training patches.")
def build(
    source: str | None,
    output: Path,
    scales: str | None,
    locality: str | None,
    resize_locality: bool,
    machine: str,
    train_windows: str,
    add_scales: str | None,
    pca_dims: int | None,
    lists: int | None,
    overwrite: bool,
    cluster: str | None,
    dry_run: bool,
    assume_images: int | None,
    options: BuildOptions,
    run: RunOptions,
    **image: Any,
) -> None:
    """Build a store from the images of SOURCE: an index of all patches at each locality scale.

    SOURCE is a folder or .zip of images, a .npz, .npy, HDF5, zarr or IDX file, a file or folder of CIFAR's
    binary version, several files by a pattern with *, the CelebA folder, the URL of a zarr array, or the
    name of a known data set.

    \b
    Examples:
      patchindex build data/fashion_mnist_6k.npz -o fashion.zarr --scales 3,7,15
      patchindex build photos/ -o photos.zarr --crop square --resize 32 --labels folders \\
          --locality celeba-resnet-zeros --machine bbELS --dry-run
      patchindex build photos/ -o photos.zarr --resize 32 --limit 500 --dry-run --assume-images 200000
      patchindex build --add-scales 9,11 -o photos.zarr
    """
    import patchindex
    from patchindex.build import BuildSettings, parse_memory, plan_build, plan_scales
    from patchindex.geometry import INDEXED_MACHINES

    if assume_images is not None and not dry_run:
        raise InputError(
            "is for a plan only", parameter="assume_images", remedy=["give ", Option("dry_run", True)]
        )
    budget = parse_memory(options.memory)
    codes: dict[str, Any] = {"pca_dims": pca_dims, "lists": lists}
    how = {**codes, "seed": run.seed, "threads": run.threads, "memory": options.memory, "device": run.device}
    start: Callable[..., PatchIndex]
    if add_scales is not None:
        schedule = ("scales", "locality", "resize_locality")
        fixed = ("source", *schedule, "machine", "train_windows", "overwrite", "assume_images", *image)
        _refuse_given(fixed, "is fixed in the store", "leave it out with --add-scales")
        asked = parse_scales(add_scales, "add_scales")
        store = patchindex.open_index(output)
        if store.machine not in INDEXED_MACHINES:
            raise InputError(f"{store.machine} has no index", parameter="add_scales", remedy="leave it out")
        new = sorted(set(asked) - set(store.scales))
        if not new:
            echo(f"nothing to add: {output} has k = {shorten(asked)} already", err=True)
            if dry_run or not (untuned_scales(store) and is_tuned(store, options.tune)):
                if run.as_json:
                    print_json(summary_of(store, 0.0, added_scales=[]))
                return
        if dry_run:
            plan = plan_scales(store, new, **codes, memory=budget)
            report_plan(plan, store.training.source, output, codes, options, run)
            return
        start = partial(patchindex.add_scales, output, new, **how)
    else:
        if source is None:
            raise click.UsageError("Missing argument 'SOURCE'.")
        check_output(output, sources=[source], inputs=[image["labels"]], own="store")
        if machine not in INDEXED_MACHINES:
            needless = ("scales", "pca_dims", "lists", "cluster")
            _refuse_given(needless, f"{machine} builds no index", "leave it out")
        settings: dict[str, Any] = {
            "scales": None if scales is None else parse_scales(scales),
            "machine": machine,
            "train_windows": train_windows,
            "locality": parse_locality(locality),
        }
        images = open_source(source, image)
        if scales is None and locality is None and not resize_locality and machine != "IS":
            settings["locality"] = default_locality(images)
        if resize_locality:
            settings["locality"] = resized_locality(settings["locality"], images.shape[1:3])
        if dry_run:
            given = BuildSettings(**settings, **codes, seed=run.seed)
            plan, nearest = plan_build(images, given, memory=budget, assume_images=assume_images)
            stored = given.to_json(images, [scale.k for scale in plan.scales], nearest)
            report_plan(plan, images, output, stored, options, run, overwrite=overwrite)
            return
        start = partial(
            patchindex.build_index, images, output, **settings, **how,
            overwrite=overwrite, resume=options.resume,
        )  # fmt: skip
        new = None

    def work(progress: Progress) -> PatchIndex:
        with connected(cluster) as client:
            return start(progress=progress, client=client)

    index = run_build(work, output, options, run, added_scales=new)
    report_clamped(codes_of(index, index.scales if new is None else new), **codes)


def _refuse_given(names: Sequence[str], what: str, remedy: str) -> None:
    """Refuse options that do not apply; the record of a run, which --config reads, has their defaults."""
    context, origins = click.get_current_context(), click.core.ParameterSource
    defaults = {parameter.name: parameter.default for parameter in context.command.params}
    for name in names:
        source, value = context.get_parameter_source(name), context.params.get(name)
        if source is origins.DEFAULT_MAP and (value is False or value == defaults[name]):
            continue
        if source not in (None, origins.DEFAULT):
            raise InputError(what, parameter=name, remedy=remedy)
