"""The state of an unfinished build: the stages that are done, read from the working directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from patchindex.build.scale import SHARDS
from patchindex.build.shards import Shards
from patchindex.build.workdir import has_images, is_building, real_path, unfinished_settings, working_path
from patchindex.errors import InputError, StoreError
from patchindex.geometry import Geometry
from patchindex.index.attributes import check_scale_numbers, check_settings
from patchindex.index.layout import attributes_of, scale_group
from patchindex.store.raw import open_raw

__all__ = ["ScaleState", "UnfinishedBuild", "unfinished_build"]


@dataclass(frozen=True)
class ScaleState:
    """The state of one scale of an unfinished build.

    Attributes
    ----------
    k : int
    stage : str
        The stage to run next: `"train"`, `"encode"` or `"merge"`; or `"done"`.
    encoded, shards : int or None
        Shards that are encoded, and all shards; None until the scale is trained.
    """

    k: int
    stage: str
    encoded: int | None = None
    shards: int | None = None


@dataclass(frozen=True)
class UnfinishedBuild:
    """The state of an unfinished build.

    Attributes
    ----------
    folder : str
        The working directory.
    kind : str
        `"build"` or `"append"`.
    source : str
        The source of the images that are added.
    images : int
        Images of the complete store.
    images_written : bool
    running : bool
        True while a process works on the build.
    scales : tuple of ScaleState
    """

    folder: str
    kind: str
    source: str
    images: int
    images_written: bool
    running: bool
    scales: tuple[ScaleState, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return asdict(self)


def unfinished_build(store: str | os.PathLike[str]) -> UnfinishedBuild | None:
    """Return the state of the unfinished build of a store, or None when there is none.

    Reads small files only. Shards are counted, and their checksums are not compared.

    Parameters
    ----------
    store : str or Path
        The path that was given to `build_index` or `append`.

    Returns
    -------
    UnfinishedBuild or None

    Raises
    ------
    StoreError
        When the working directory is damaged.

    Examples
    --------
    >>> import contextlib, tempfile, numpy as np, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)
    >>> path = tempfile.mkdtemp() + "/s.zarr"
    >>> def stop(stage, done, total):
    ...     raise KeyboardInterrupt
    >>> with contextlib.suppress(KeyboardInterrupt):
    ...     pi.build_index(images, path, scales=[3], progress=stop)
    >>> unfinished_build(path).scales
    (ScaleState(k=3, stage='train', encoded=None, shards=None),)
    """
    path = real_path(store)
    folder = working_path(path)
    settings = unfinished_settings(folder)
    if settings is None:
        return None
    check_settings(settings, folder)
    written = has_images(folder)
    n, height, width, channels = settings["shape"]
    appended = settings.get("appended", [])
    added = min(n, appended[-1]["images"]) if appended else n
    if written:
        open_raw(folder, "images", "uint8", (n, height, width, channels))  # as many images as the file has
    try:
        scales = tuple(
            _scale(
                folder,
                Geometry.of(settings["machine"], k, (height, width), settings["train_windows"]),
                (n, added, channels),
                written,
            )
            for k in settings["scales"]
        )
    except InputError as error:
        raise StoreError(error.what, where=folder, remedy="delete the folder, and build again") from None
    kind, source = ("append", appended[-1]["source"]) if appended else ("build", settings["source"])
    return UnfinishedBuild(str(folder), kind, source, n, written, is_building(path), scales)


def _scale(root: Path, geometry: Geometry, size: tuple[int, int, int], images_written: bool) -> ScaleState:
    final = root / scale_group(geometry.k)
    folder = final.with_name(final.name + ".tmp")
    if final.is_dir():
        return ScaleState(geometry.k, "done")
    found = attributes_of(folder)
    done = found.get("seconds")
    if not images_written or not isinstance(done, Mapping) or "train" not in done:
        return ScaleState(geometry.k, "train")
    n, added, channels = size
    check_scale_numbers(found, geometry, n, channels, folder)
    shards = len(
        Shards(
            folder / SHARDS, found["lists"], found["pca_dims"], np.arange(added), geometry.patches_per_image
        )
    )
    there = sum(file.name.isdecimal() for file in (folder / SHARDS).glob("*"))
    encoded = shards if "write" in done else min(shards, there)
    return ScaleState(geometry.k, "merge" if encoded == shards else "encode", encoded, shards)
