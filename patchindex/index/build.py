"""The offline builder: from images to a store, stage by stage, visible only when it is whole.

A build works in a folder beside the store, `<store>.building`: first the images, then scale after scale, each
renamed into place when it is whole, at last the folder itself. So whatever interrupts it, what stands under
the final path is complete or is not there, and `resume=True` goes on after the last whole stage.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from filelock import FileLock, Timeout

from patchindex.backends import require_faiss, resolve_device, threads
from patchindex.errors import InputError, OutputExistsError, PatchIndexError
from patchindex.images import ImageSource, open_images
from patchindex.index.model import CHUNK_BYTES
from patchindex.index.plan import BuildPlan, parse_memory, plan_build
from patchindex.index.raw import RawWriter
from patchindex.index.stages import BUILDING, CHOSEN, ScaleBuild
from patchindex.index.store import (
    FORMAT_VERSION,
    PatchIndex,
    open_index,
    read_attributes,
    scale_group,
    tree_bytes,
)
from patchindex.index.train import Progress
from patchindex.training import TrainingImages

__all__ = ["build_index", "free_bytes"]

DIGEST_IMAGES = 64  # a build goes on with the same images only; reading them all to know would take too long


def build_index(
    images: Any,
    path: str | os.PathLike[str],
    scales: Sequence[int] | None = None,
    labels: Any = None,
    *,
    machine: str = "ELS",
    train_windows: str = "valid",
    locality: Any = None,
    pca_dims: int | None = None,
    lists: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    memory: int | str | None = None,
    device: str | torch.device | None = None,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> PatchIndex:
    """Put every patch of the images, at each locality scale, into a store.

    Parameters
    ----------
    images : array, path or name
        uint8 images (N, H, W) or (N, H, W, C), or anything `open_images` takes.
    path : str or Path
        The store to make, a folder.
    scales : sequence of int, optional
        Odd locality scales; by default those of `locality`.
    labels : array of int or path, optional
        Class of each image, shape (N,); the source's own by default.
    machine : str
        `"ELS"`, `"bbELS"`, or `"LS"` and `"IS"`, whose stores hold images and no index.
    train_windows : str
        `"valid"` or `"wrapped"`, for ELS.
    locality : str or sequence of int, optional
        A published preset's name or a schedule, kept in the store as the default for sampling. With
        `scales` too, it is moved to the nearest of them.
    pca_dims, lists : int, optional
        Code size and number of inverted lists. By default as many principal components as keep the logits'
        variance from what is left out below 0.2 at the lowest noise where a scale is used, by `locality` or
        any preset, and at most 56, or as many as keep it below 1, and at most 128; and a list for every 256
        patches, up to 131 072, halved down to 1 024 as long as `memory` does not do.
    seed : int
        Seed of the samples that PCA and k-means are trained on.
    threads : int, optional
        CPU threads. Stores built with different numbers differ in rounding.
    memory : int or str, optional
        What the build may take, in bytes or as `"4G"`; by default half of the machine's memory. A build
        that needs more is refused before it starts.
    device : str or torch.device, optional
        `"cpu"` (default) or `"cuda"`: where lists are trained and patches assigned to them.
    overwrite : bool
        Replace a store that is there, once the new one is whole.
    resume : bool
        Go on with an interrupted build of the same settings. For a finished store: nothing to do.
    progress : callable, optional
        Called as `progress(stage, done, total)`.

    Returns
    -------
    PatchIndex
        The store, opened.

    Raises
    ------
    InputError
        When images, labels or settings are not acceptable, or memory or disk will not do; nothing was
        written then.
    OutputExistsError
        When the store, or an unfinished build of it, is there already.
    PatchIndexError
        When the disk fails or is full during the build, which can be resumed then.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)
    >>> build_index(images, tempfile.mkdtemp() + "/s.zarr", scales=(3, 5)).scales
    (3, 5)
    """
    path = Path(os.path.abspath(path))
    if not path.name:
        raise InputError("is no name for a store", where=path, remedy="give a folder that does not exist yet")
    if seed < 0:
        raise InputError(f"must be at least 0, got {seed}", where="seed", remedy="use 0 or more")
    source = open_images(images, labels=labels)
    budget = parse_memory(memory)
    plan, schedule = plan_build(
        source,
        scales,
        machine=machine,
        train_windows=train_windows,
        locality=locality,
        pca_dims=pca_dims,
        lists=lists,
        memory=budget,
        chosen=_chosen(_building_path(path)) if resume else None,
    )
    where = resolve_device(device, needs_faiss=True)
    if plan.scales:
        require_faiss()
    settings = {
        "machine": machine,
        "train_windows": train_windows,
        "scales": [scale.k for scale in plan.scales],
        "locality": {"name": schedule.name, "scales": schedule.scales} if schedule else None,
        "pca_dims": pca_dims,
        "lists": lists,
        "seed": seed,
        "source": source.name,
        "shape": source.shape,
        "images": _digest(source.read(np.linspace(0, len(source) - 1, DIGEST_IMAGES).astype(int))),
        "labels": None if source.labels is None else _digest(source.labels),
    }
    settings = json.loads(json.dumps(settings))  # as they come back from the store: lists for tuples
    finished = _check_output(path, settings, overwrite, resume)
    if not finished:
        _check_memory(plan, budget)
        _check_space(path, plan)
        with _threads(threads), _building(path, settings, plan, resume) as folder:
            _write_images(folder, TrainingImages(source), progress)
            for k in settings["scales"]:
                _write_scale(folder, k, where, progress)
            _finish(folder, settings, source, plan)
            _move_into_place(folder, path, overwrite)
    return open_index(path, device=device)


_threads = threads  # build_index's own parameter has this name


def _check_output(path: Path, settings: dict[str, Any], overwrite: bool, resume: bool) -> bool:
    """Say whether the store is finished already; refuse to touch what is in the way."""
    building = _building_path(path)
    if path.exists():
        found = read_attributes(path) if path.is_dir() else None
        interrupted_overwrite = overwrite and building.exists()
        if resume and found is not None and not interrupted_overwrite:
            _check_settings(found["settings"], settings, path)
            return True
        if not overwrite:
            raise OutputExistsError("exists already", where=path, remedy="use another path, or overwrite")
        if found is None:
            raise OutputExistsError(
                "exists and is not a patchindex store", where=path, remedy="use another path"
            )
    parent = _existing_parent(path)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError("cannot write there", where=parent, remedy="use a folder that you may write to")
    if building.exists():
        if resume:
            _check_settings(_building_settings(building), settings, building)
        elif not overwrite:
            raise OutputExistsError(
                "an unfinished build is there", where=building, remedy="resume it, or overwrite to start anew"
            )
    return False


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.exists())


def free_bytes(path: Path) -> int:
    """Return what a build at this path may take of its disk: what is free, and what an unfinished one has."""
    return shutil.disk_usage(_existing_parent(path)).free + tree_bytes(_building_path(path))


def _check_memory(plan: BuildPlan, budget: int) -> None:
    if plan.memory_bytes > budget:
        need, have = (f"{b / 2**30:.2f} GiB" for b in (plan.memory_bytes, budget))
        raise InputError(
            f"the build may need {need}, over the budget of {have}",
            where="memory",
            remedy="raise it, or give a smaller pca_dims or fewer lists",
        )


def _check_space(path: Path, plan: BuildPlan) -> None:
    need, have = plan.disk_bytes + plan.scratch_bytes, free_bytes(path)
    if need > have:
        raise InputError(
            f"the build may need {need / 2**30:.2f} GiB there, and {have / 2**30:.2f} are free",
            where=_existing_parent(path),
            remedy="free some, use another disk, fewer scales or a smaller pca_dims",
        )


def _check_settings(found: dict[str, Any], settings: dict[str, Any], where: Path) -> None:
    different = sorted(key for key in settings if found.get(key) != settings[key])
    if different:
        raise InputError(
            f"was built with other settings ({', '.join(different)})",
            where=where,
            remedy="give the same ones, or overwrite",
        )


def _building_path(path: Path) -> Path:
    return path.with_name(path.name + ".building")


def _building_settings(building: Path) -> dict[str, Any]:
    return dict(_building_attributes(building).get(BUILDING, {}))


def _building_attributes(building: Path) -> dict[str, Any]:
    if not (building / "zarr.json").is_file():
        return {}
    return dict(zarr.open_group(building, mode="r").attrs)


def _chosen(building: Path) -> dict[int, tuple[int, int]]:
    """Return what an unfinished build chose for each scale, whatever memory it is resumed with."""
    return {k: (dims, lists) for k, dims, lists in _building_attributes(building).get(CHOSEN, [])}


@contextmanager
def _building(path: Path, settings: dict[str, Any], plan: BuildPlan, resume: bool) -> Iterator[Path]:
    """Give the folder that a build works in, held by a lock: another builder is refused."""
    building = _building_path(path)
    building.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(building.with_name(building.name + ".lock"), blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError("another build of it is running", where=path, remedy="wait for it to end") from None
    try:
        if building.exists() and not resume:
            if any(building.iterdir()) and not _building_settings(building):
                raise OutputExistsError(
                    "is in the way and no unfinished build", where=building, remedy="use another path"
                )
            shutil.rmtree(building)
        if not (building / "zarr.json").exists():
            chosen = [[scale.k, scale.dims, scale.list_goal] for scale in plan.scales]
            zarr.open_group(building, mode="w", attributes={BUILDING: settings, CHOSEN: chosen})
        try:
            yield building
        except InputError:
            # Bad input that shows only when it is read, a damaged image say, leaves nothing behind either.
            if not (building / "source_ids").exists():
                shutil.rmtree(building)
            raise
        except PatchIndexError:
            raise
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise PatchIndexError(
                "the disk is full" if full else f"cannot be written or read ({error.strerror or error})",
                where=building,
                remedy=f"{'free some' if full else 'mend that'}, and build again with --resume to go on",
            ) from error
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _write_images(folder: Path, training: TrainingImages, progress: Progress | None) -> None:
    group = zarr.open_group(folder, mode="a")
    if "source_ids" in group:  # the stage's last array
        return
    for name in ("images", "labels"):
        shutil.rmtree(folder / name, ignore_errors=True)
    height, width, channels = training.source.shape[1:]
    step = max(1, CHUNK_BYTES // (height * width * channels))
    with RawWriter(folder, "images", "uint8", (height, width, channels)) as out:
        for start in range(0, len(training), step):
            out.write(training.read(start, start + step))
            if progress is not None:
                progress("images", min(start + step, len(training)), len(training))
    if training.labels is not None:
        group.create_array("labels", data=training.labels)
    group.create_array("source_ids", data=training.source_ids)


def _write_scale(folder: Path, k: int, device: torch.device, progress: Progress | None) -> None:
    scale = ScaleBuild(folder, k, device)
    scale.train(progress)
    for shard in scale.missing():
        scale.encode(shard, progress)
    scale.merge(progress)


def _finish(folder: Path, settings: dict[str, Any], source: ImageSource, plan: BuildPlan) -> None:
    """Write down what the store is; with this it is one."""
    arrays = [folder / "images", *(folder / scale_group(scale.k) for scale in plan.scales)]
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for array in arrays:
        fingerprint.update(_file_checksum(array))
    labels = None if source.labels is None else [int(label) for label in np.unique(source.labels)]
    attributes = {
        "format": FORMAT_VERSION,
        "fingerprint": fingerprint.hexdigest()[:16],
        **{
            key: settings[key]
            for key in ("machine", "train_windows", "scales", "locality", "source", "shape")
        },
        "labels": labels,
        "label_names": None if source.label_names is None else list(source.label_names),
        "settings": settings,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("patchindex", "torch", "numpy", "zarr")}
        | {"faiss": str(require_faiss().__version__) if plan.scales else None},
    }
    zarr.open_group(folder, mode="a").attrs["patchindex"] = attributes


def _file_checksum(folder: Path) -> bytes:
    """Return the crc32c that ends every raw file of a folder: the contents in four bytes."""
    raw = sorted(
        file for file in folder.rglob("0") if file.is_file() and "c" in file.relative_to(folder).parts
    )
    found = b""
    for file in raw:
        with file.open("rb") as handle:
            handle.seek(-4, os.SEEK_END)
            found += handle.read()
    return found


def _move_into_place(folder: Path, path: Path, overwrite: bool) -> None:
    if path.exists():
        # It may have come while the build was running: what is not ours to replace stays.
        if not overwrite or read_attributes(path) is None:
            raise OutputExistsError(
                "appeared during the build", where=path, remedy="move it away, and build with --resume"
            )
        replaced = path.with_name(f"{path.name}.replaced-{os.getpid()}")
        path.rename(replaced)
        folder.rename(path)
        shutil.rmtree(replaced)
    else:
        folder.rename(path)


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
