"""Shards: encoded patches of a range of images, sorted by inverted list, on their way into the index.

A shard is one file, written under another name and renamed when it is whole, with a checksum at its end. So
it can be made by any process, and what a build that was killed has left can be told from what it has not. All
shards of a scale are merged list by list, which takes the memory of some lists at a time, or of a part of
one: where many patches are alike, most of them are in one list.
"""

from __future__ import annotations

import math
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import google_crc32c
import numpy as np

from patchindex.build.merge import Bucket
from patchindex.errors import StoreError
from patchindex.index.faiss_file import ID_BYTES

__all__ = ["Part", "Shards", "Sorted", "shard_bytes"]

SHARD_BYTES = 64 << 20
PIECE_BYTES = 64 << 10  # of a shard for a bucket, at least: disks are slow with less
CHECKED_AT_ONCE = 8 << 20
CHECKSUM_BYTES = 4


def shard_bytes(total: int) -> int:
    """Return how large shards and buckets of a scale of so many bytes are: 64 MiB, or more beyond 64 GiB.

    Examples
    --------
    >>> [shard_bytes(total) >> 20 for total in (1 << 30, 64 << 30, 1 << 40)]
    [64, 64, 256]
    """
    return max(SHARD_BYTES, math.isqrt(total * PIECE_BYTES))


Part = tuple[np.ndarray, np.ndarray]  # ids, int64 (n,), and codes, uint8 (n, code bytes)


class Sorted(Protocol):
    """Patches that are in order of their lists already."""

    def sizes(self) -> np.ndarray:
        """Return how many patches each list has: int64, shape (lists,)."""

    def part(self, c: int, start: int, stop: int) -> Part:
        """Return some patches of list c, of which ids ascend."""


class Shards:
    """The shards of one scale, in a folder of their own.

    Parameters
    ----------
    folder : Path
        It need not exist yet.
    lists : int
        How many lists there are.
    code_bytes : int
        Bytes of a code.
    images : int or array of int, shape (n,)
        How many images there are; or their numbers in the store, ascending, where it has others as well.
    patches_per_image : int
        Patch ids are `image * patches_per_image + place`.

    Examples
    --------
    >>> import tempfile
    >>> shards = Shards(Path(tempfile.mkdtemp()), 4, 1, images=3, patches_per_image=1)
    >>> [shards.images(i) for i in range(len(shards))]
    [(0, 3)]
    >>> shards.write(0, np.array([2, 0, 2]), np.array([[1], [2], [3]], np.uint8), 0.0)
    >>> [(n, ids.tolist()) for bucket in shards.merged() for n, ids, _ in bucket.lists()]
    [(0, [1]), (2, [0, 2])]
    """

    def __init__(
        self, folder: Path, lists: int, code_bytes: int, *, images: int | np.ndarray, patches_per_image: int
    ) -> None:
        self._images = np.arange(images) if isinstance(images, int) else images
        self.folder, self._lists, self._per_image = folder, lists, patches_per_image
        self._record = np.dtype([("id", "<i8"), ("code", "u1", (code_bytes,))])
        assert self._record.itemsize == ID_BYTES + code_bytes
        an_image = patches_per_image * self._record.itemsize
        n = len(self._images)
        self._bytes = shard_bytes(n * an_image)
        self._bounds = [*range(0, n, max(1, self._bytes // an_image)), n]
        # A shard: seconds it took, then the length of each list, then the records, then the checksum.
        self._head = np.dtype([("seconds", "<f8"), ("sizes", "<i4", (lists,))])

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def images(self, i: int) -> tuple[int, int]:
        """Return the range [start, stop) of images, in their order, whose patches shard i holds."""
        return self._bounds[i], self._bounds[i + 1]

    def _path(self, i: int) -> Path:
        return self.folder / f"{i:06d}"

    def missing(self) -> list[int]:
        """Return the shards that are not there or not whole: a checksum is taken of all that are there."""
        return [i for i in range(len(self)) if not self._whole(i)]

    def _whole(self, i: int) -> bool:
        start, stop = self.images(i)
        records = (stop - start) * self._per_image * self._record.itemsize
        path = self._path(i)
        if not path.is_file() or path.stat().st_size != self._head.itemsize + records + CHECKSUM_BYTES:
            return False
        checksum, left = google_crc32c.Checksum(), self._head.itemsize + records
        with path.open("rb") as file:
            while left:
                piece = file.read(min(left, CHECKED_AT_ONCE))
                checksum.update(piece)
                left -= len(piece)
            return file.read() == checksum.digest()

    def write(self, i: int, lists: np.ndarray, codes: np.ndarray, seconds: float) -> None:
        """Write shard i.

        Parameters
        ----------
        i : int
        lists : array of int, shape (n,)
            Of every patch of its images, in order of patch ids.
        codes : array of uint8, shape (n, code_bytes)
        seconds : float
            That it took to find them.

        Raises
        ------
        FileNotFoundError
            When there is no folder: it was not made yet, or all is merged.
        """
        order = np.argsort(lists, kind="stable")
        records = np.empty(len(lists), self._record)
        image, place = np.divmod(order, self._per_image)
        records["id"] = self._images[self.images(i)[0] + image] * self._per_image + place
        records["code"] = codes[order]
        head = np.zeros(1, self._head)
        head["seconds"], head["sizes"] = seconds, np.bincount(lists, minlength=self._lists)
        # Where several processes make the same shard, each has a file of its own until one is whole.
        unfinished = self.folder / f"{uuid.uuid4().hex}.tmp"
        checksum = google_crc32c.Checksum()
        try:
            with unfinished.open("wb") as file:
                for part in (head, records):
                    view = part.view(np.uint8)
                    for start in range(0, len(view), CHECKED_AT_ONCE):
                        piece = view[start : start + CHECKED_AT_ONCE].tobytes()
                        file.write(piece)
                        checksum.update(piece)
                file.write(checksum.digest())
            unfinished.replace(self._path(i))
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def seconds(self) -> float:
        """Return the seconds that all shards took."""
        return float(sum(self._read(i, 0, np.dtype("<f8"), 1)[0] for i in range(len(self))))

    def sizes(self) -> np.ndarray:
        """Return how many patches each list has in all shards: int64, shape (lists,)."""
        total = np.zeros(self._lists, np.int64)
        for i in range(len(self)):
            total += self._sizes(i, 0, self._lists)
        return total

    def _sizes(self, i: int, lo: int, hi: int) -> np.ndarray:
        offset = self._head.fields["sizes"][1] + 4 * lo  # type: ignore[index]
        return self._read(i, offset, np.dtype("<i4"), hi - lo)

    def _read(self, i: int, offset: int, dtype: np.dtype, n: int) -> np.ndarray:
        found = np.empty(n, dtype)
        with self._path(i).open("rb") as file:
            file.seek(offset)
            if file.readinto(found.view(np.uint8).data) != found.nbytes:
                raise StoreError("is shorter than it was", where=self._path(i), remedy="resume the build")
        return found

    def merged(self, others: Sorted | None = None) -> Iterator[Bucket]:
        """Yield all patches list by list, and others with them: no more at a time than a bucket holds."""
        total = self.sizes() if others is None else self.sizes() + others.sizes()
        before = np.cumsum(total) * self._record.itemsize
        at = [self._head.itemsize] * len(self)  # where the next list begins in each shard
        lo = 0
        while lo < self._lists:
            full = (before[lo - 1] if lo else 0) + self._bytes
            hi = int(np.searchsorted(before, full, "right"))
            if hi == lo:
                yield from self._in_parts(lo, at, others)
                lo += 1
                continue
            sizes = [self._sizes(i, lo, hi) for i in range(len(self))]
            pieces = []
            for i, own in enumerate(sizes):
                pieces.append(self._read(i, at[i], self._record, int(own.sum())))
                at[i] += pieces[i].nbytes
            if others is not None:
                more = others.sizes()[lo:hi]
                sizes.append(more)
                pieces.append(np.empty(int(more.sum()), self._record))
                filled = np.cumsum([0, *more])
                for c, start, stop in zip(range(lo, hi), filled, filled[1:], strict=False):
                    pieces[-1]["id"][start:stop], pieces[-1]["code"][start:stop] = others.part(
                        c, 0, int(stop - start)
                    )
            records = np.concatenate(pieces)
            del pieces
            lists = np.concatenate([np.repeat(np.arange(hi - lo), own) for own in sizes])
            # Later shards have larger ids, so that ids of a list ascend; others may be in between.
            order = np.argsort(lists, kind="stable") if others is None else np.lexsort((records["id"], lists))
            ids, codes = records["id"][order], records["code"][order]
            del records
            yield Bucket(lo, np.stack(sizes).sum(0, dtype=np.int64), ids, codes)
            lo = hi

    def _in_parts(self, c: int, at: list[int], others: Sorted | None) -> Iterator[Bucket]:
        """Yield a list that is larger than a bucket, and move on behind it in each shard."""
        step = max(1, self._bytes // (2 * self._record.itemsize))

        def own() -> Iterator[Part]:
            for i in range(len(self)):
                left = int(self._sizes(i, c, c + 1)[0])
                while left:
                    records = self._read(i, at[i], self._record, min(left, step))
                    at[i] += records.nbytes
                    left -= len(records)
                    yield records["id"].copy(), records["code"].copy()

        def old() -> Iterator[Part]:
            n = 0 if others is None else int(others.sizes()[c])
            for start in range(0, n, step):
                yield others.part(c, start, min(start + step, n))  # type: ignore[union-attr]

        for ids, codes in _merged(own(), old()):
            yield Bucket(c, np.array([len(ids)]), ids, codes)

    def remove(self) -> None:
        """Remove the folder."""
        if self.folder.exists():
            shutil.rmtree(self.folder)


def _merged(first: Iterator[Part], second: Iterator[Part]) -> Iterator[Part]:
    """Merge two sequences of parts, in each of which ids ascend."""
    a, b = next(first, None), next(second, None)
    while a is not None and b is not None:
        last = min(a[0][-1], b[0][-1])
        to_a, to_b = (int(np.searchsorted(ids, last, "right")) for ids, _ in (a, b))
        ids = np.concatenate([a[0][:to_a], b[0][:to_b]])
        codes = np.concatenate([a[1][:to_a], b[1][:to_b]])
        order = np.argsort(ids, kind="stable")
        yield ids[order], codes[order]
        a = (a[0][to_a:], a[1][to_a:]) if to_a < len(a[0]) else next(first, None)
        b = (b[0][to_b:], b[1][to_b:]) if to_b < len(b[0]) else next(second, None)
    for part, rest in ((a, first), (b, second)):
        if part is not None:
            yield part
        yield from rest
