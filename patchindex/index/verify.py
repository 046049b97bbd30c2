"""Verify a store: every byte against its checksum, and the lists against the images."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchindex.checks import check_path
from patchindex.errors import InputError, StoreError
from patchindex.geometry import gather_patches
from patchindex.index.layout import listed_scales, scale_group, scales_of
from patchindex.index.patch_index import PatchIndex, open_index
from patchindex.runtime import Progress, as_progress, plain_state
from patchindex.store.checksums import CURVE, SCALES, check_files, image_block, is_stray, read_checksummed
from patchindex.store.remote import is_url

__all__ = ["Report", "verify"]

SAMPLE = 1000  # patches per scale that are encoded again
SEEN_AT_ONCE = 1 << 29  # ids per pass over the lists; a bit for each takes 64 MiB
BITS = np.array([byte.bit_count() for byte in range(256)], np.uint8)
PART = 1 << 20  # patches of a list that are checked at once
OTHER_ROUNDING = 1e-3  # relative tolerance of distances: products of another shape round otherwise
PROJECTION_ROUNDING = 4e-6  # of a component of a patch, in float32, per root of its numbers


@dataclass(frozen=True)
class Report:
    """The result of `verify`.

    Attributes
    ----------
    path : str
    files, bytes : int
        Files, and their bytes, that were compared with their checksums.
    patches : int
        Patches whose ids were checked.
    encoded : int
        Patches that were encoded again.
    problems : tuple of (str, str)
        Each problem's place and description; empty for a whole store.
    """

    path: str
    files: int
    bytes: int
    patches: int
    encoded: int
    problems: tuple[tuple[str, str], ...]

    @property
    def whole(self) -> bool:
        """True when there is no problem."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return asdict(self) | {"whole": self.whole}


@plain_state()
def verify(path: str | Path, *, progress: Progress | None = None) -> Report:
    """Check every file of a store against its checksum, and every list against the images.

    The store and its scales must pass the checks of every use. Each file must have the size and the crc32c
    that it was written with, and each block of images its checksum. In each scale, every patch must be in
    exactly one list; and a sample of patches is encoded again and must get the same codes.

    Parameters
    ----------
    path : str or Path
        Folder of the store.
    progress : callable, optional
        Called as `progress(stage, done, total)`.

    Returns
    -------
    Report

    Raises
    ------
    SourceNotFoundError, InputError
        When the path is no store, or is a URL. Damage is not raised but reported.

    Examples
    --------
    >>> import tempfile, patchindex as pi
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)
    >>> index = pi.build_index(images, tempfile.mkdtemp() + "/s.zarr", scales=[3])
    >>> report = pi.verify(index.path)
    >>> report.whole, report.patches
    (True, 800)
    """
    if is_url(path):
        raise InputError(
            "is a URL, and verify reads local folders only",
            where=path,
            remedy="verify a local copy; opening a URL checks each file that it copies",
        )
    check_path(path)
    path, progress = Path(path), as_progress(progress)
    problems: list[tuple[str, str]] = []
    files = size = patches = encoded = 0
    try:
        index = open_index(path)
    except StoreError as error:  # check the files all the same
        index = None
        problems.append((str(error.where), error.what))
    parts = [path, *(path / scale_group(k) for k in scales_of(path))]
    for i, part in enumerate(parts):
        for name, wrong in check_files(part):
            file = part / name
            files += 1
            size += file.stat().st_size if file.is_file() else 0
            if wrong is not None:
                problems.append((str(file), wrong))
        for file in (part / SCALES, part / CURVE):
            if file.exists():
                files += 1
                size += file.stat().st_size
                try:
                    read_checksummed(file)
                except StoreError as error:
                    problems.append((str(file), error.what))
        progress("checksums", i + 1, len(parts))
    problems += _wrong_scales(path)
    problems = list(dict.fromkeys(problems))
    files_are_whole = not problems
    if index is not None:
        problems += _damaged_images(index)
    if index is not None and files_are_whole:  # lists of damaged files cannot be read
        for k in index.scales:
            try:
                lists = _Lists(index, k)
            except StoreError as error:
                problems.append((str(error.where), error.what))
                continue
            problems += lists.check(progress)
            patches += lists.patches
            encoded += len(lists.sample)
    return Report(str(path), files, size, patches, encoded, tuple(problems))


def _damaged_images(index: PatchIndex) -> list[tuple[str, str]]:
    """Compare each block of images with its checksum."""
    found: dict[tuple[str, str], None] = {}
    block = image_block(index.training.size, index.training.channels)
    for first in range(0, len(index.training), block):
        try:
            index.check_images(first, min(first + block, len(index.training)))
        except StoreError as error:
            found[str(error.where), error.what] = None
    return list(found)


def _wrong_scales(path: Path) -> list[tuple[str, str]]:
    """Compare the scales of a store with the list of its scales; unfinished scales are ignored."""
    try:
        given = listed_scales(path)
    except StoreError as error:
        return [(str(path / SCALES), error.what)]
    found = {
        entry.name
        for entry in (path / "scales").glob("*")
        if entry.suffix != ".tmp" and not is_stray(entry.name)
    }
    names = {Path(scale_group(k)).name for k in scales_of(path)}
    missing = {Path(scale_group(k)).name for k in given} - names
    return [(str(path / "scales" / name), "is missing") for name in sorted(missing)] + [
        (str(path / "scales" / name), "does not belong to the store")
        for name in sorted(found - names - {"zarr.json"})
    ]


class _Lists:
    """The check of all lists of a scale, beyond what each use of the scale checks."""

    def __init__(self, index: PatchIndex, k: int) -> None:
        self._index, self._scale, self._k = index, index.scale(k), k
        self._scale.check_head()
        self._geometry = index.geometry(k)
        self.patches = len(index.training) * self._geometry.patches_per_image
        rng = np.random.default_rng(k)
        self.sample = np.sort(rng.choice(self.patches, min(SAMPLE, self.patches), replace=False))
        self._found_in = np.full(len(self.sample), -1)
        self._codes = np.zeros((len(self.sample), self._scale.pca.dims), np.uint8)

    def check(self, progress: Progress) -> list[tuple[str, str]]:
        """Return the problems: wrong lists, patches in two lists, and codes of other patches."""
        where = str(self._scale.path)
        wrong: dict[int, tuple[str, str]] = {}
        sizes = self._scale.list_sizes()
        passes = range(0, self.patches, SEEN_AT_ONCE)
        twice = []
        for number, first in enumerate(passes):
            seen = np.zeros(min(SEEN_AT_ONCE, self.patches - first) // 8 + 1, np.uint8)
            for c, n in enumerate(sizes.tolist()):
                if c % 1024 == 0:
                    progress(f"k = {self._k}: lists", number * len(sizes) + c, len(passes) * len(sizes))
                for start in range(0, n, PART):
                    try:
                        ids, codes = self._scale.part(c, start, start + PART)
                    except StoreError as error:
                        wrong[c] = (str(error.where), error.what)
                        break
                    if first == 0:
                        self._note(c, ids, codes)
                    some = ids[(ids >= first) & (ids < first + SEEN_AT_ONCE)] - first
                    np.bitwise_or.at(seen, some >> 3, (1 << (some & 7)).astype(np.uint8))
            missing = min(SEEN_AT_ONCE, self.patches - first) - int(BITS[seen].sum())
            if missing and not wrong:
                twice.append((where, f"{missing} patches are in no list, and others in two"))
        problems = [*wrong.values(), *twice]
        return problems or self._check_codes()

    def _note(self, c: int, ids: np.ndarray, codes: np.ndarray) -> None:
        at = np.minimum(np.searchsorted(self.sample, ids), len(self.sample) - 1)
        hit = self.sample[at] == ids
        self._found_in[at[hit]], self._codes[at[hit]] = c, codes[hit]

    def _check_codes(self) -> list[tuple[str, str]]:
        """Encode the sample again: codes may differ by rounding, and lists where two are equally near."""
        scale, ids = self._scale, self.sample
        patches = gather_patches(self._index.pixels, self._geometry, torch.from_numpy(ids))
        vectors = scale.pca.project(patches)
        classes = self._geometry.train_classes[ids % self._geometry.patches_per_image]
        assigned = scale.lists.assign(vectors, classes)
        codes = scale.model.codes(vectors.numpy())
        distance = [
            np.square(vectors.numpy() - scale.lists.centroids[lists]).sum(1)
            for lists in (assigned, self._found_in)
        ]
        lost = distance[1] > distance[0] * (1 + OTHER_ROUNDING) + OTHER_ROUNDING
        # A component without variance has codes of rounding errors: their steps are as small.
        step = scale.model.ranges[1] / 255
        apart = np.abs(codes.astype(int) - self._codes) * step
        lost |= (apart > step + PROJECTION_ROUNDING * patches[0].numel() ** 0.5).any(1)
        if not lost.any():
            return []
        training = self._index.training
        place = int(ids[np.argmax(lost)]) // self._geometry.patches_per_image
        example = training.numbered(int(training.source_ids[place]))
        what = f"{lost.sum()} of {len(ids)} patches are not found by their code, the first of image {example}"
        return [(str(scale.path), what)]
